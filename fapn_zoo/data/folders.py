"""Folders in the house's own format: a picture and a label file of the same name."""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path

from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import ERRORS, missing, printable, told
from fapn_zoo.data.mask_folder import MaskFolder, table_of
from fapn_zoo.data.pairs import Pairs, find_splits, instead, list_pairs, near, other_places
from fapn_zoo.data.reading_rules import Reading, read_rules
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.processes import processes

logger = logging.getLogger(__name__)


def read_label_map(root: Path, num_classes: int | None = None, table: LabelMap | None = None) -> LabelMap:
    """The label map of a folder: its `classes.json`, else plain names for `num_classes`, else `table`, said once."""
    file = root / "classes.json"
    if not file.is_file():
        if os.path.lexists(file) or (num_classes is None and table is None):
            raise DataError(_classes_wanted(root, file))
        if num_classes is not None:
            return LabelMap.default(num_classes)
        warn(f"{root} has no classes.json: its classes are taken to be the {table.num_classes} of the model")
        return table
    try:
        labels = LabelMap.from_json(file)
    except ValueError as error:
        raise DataError(str(error)) from error
    if num_classes is not None and num_classes != labels.num_classes:
        raise DataError(f"num_classes is {num_classes}, but {file} names {labels.num_classes} classes")
    return labels


def warn(text: str) -> None:
    if processes().main:  # one voice is enough
        logger.warning("%s", text)


def _classes_wanted(root: Path, file: Path) -> str:
    form = '{"names": [...], "palette": [[r, g, b], ...], "ignore_index": 255}'
    fix = f"Either write {file} ({form}) or give num_classes (train: num_classes=N, check-data: --num-classes N)"
    if os.path.lexists(file):
        fix = f"{missing(file)}. {fix}"
    else:
        names = {path.name.lower(): path.name for path in root.iterdir()}
        close = difflib.get_close_matches(file.name, names, 1, 0.7)
        fix += f"; is {names[close[0]]} meant to be it?" if close else ""
    return f"how many classes has {root}? {fix}"


class FolderDataset(MaskFolder):
    """`{root}/{split}/images/NAME.jpg` (or any of `data.images.EXTENSIONS`) with `{root}/{split}/labels/NAME.png`.

    NAME may lie in subfolders, the same ones on both sides, and is then "aachen/x". What lies there and is no pair is
    refused where one was meant, and else named in `unused`.

    The value of a label pixel is the class id (8-bit grey or palette, 16-bit grey), or the class that `values` of
    `{root}/classes.json` says; that file has the names, or `num_classes` says how many there are, or they are those
    of `table`. `reading` says how pictures are
    read; what it leaves open, `classes.json` fills with its `white_level` and `exif`. Without `strict`, what is no
    pair is left out.

    Raises:
        FileNotFoundError: no such root or split; the message names the splits there are.
        DataError: no pictures, pictures without labels or the other way round, unknown classes.
    """

    takes_table = True

    def __init__(
        self,
        root: str | Path,
        split: str,
        num_classes: int | None = None,
        reading: Reading | None = None,
        table: LabelMap | None = None,
        strict: bool = True,
    ) -> None:
        self.root, self.split = Path(root).expanduser(), split
        self.name = os.path.basename(os.path.realpath(self.root))
        if not self.root.is_dir():
            raise FileNotFoundError(f"no data folder {self.root}")
        splits = find_splits(self.root)
        if split not in splits:
            found = f"it has {', '.join(splits)}"
            if not splits:
                way = (
                    f"; for masks that lie elsewhere write {self.root}?masks={{parent}}/{{stem}}_mask.png, or the like"
                )
                found = f"expected {{train,val,test}}/{{images,labels}}/ in it{other_places(self.root)}{way}"
            if (self.root / split).is_symlink():
                found = f"{missing(self.root / split)}; {found}"
            raise FileNotFoundError(f"no split {split!r} in {self.root}; {found}")
        self.labels = read_label_map(self.root, num_classes, table)
        self.reading = read_rules(self.root, reading)
        folder = self.root / split
        found = list_pairs(folder)
        if strict and (problems := _problems(folder, found)):
            raise DataError(f"{folder}: {'; '.join(problems)}")
        if not found.images:
            raise DataError(f"no pictures in {folder / 'images'} (looked for {', '.join(EXTENSIONS)})")
        left = f"{folder}: not used: {told(found.unused, folder)}" if found.unused else ""
        self.unused = tuple(filter(None, (left, table_of(self.labels))))
        names = sorted(found.images.keys() & found.labels.keys())
        self.pairs = [(name, found.images[name][0], found.labels[name][0]) for name in names]


def _problems(folder: Path, found: Pairs) -> list[str]:
    """What makes a split unusable: how many, of what, and the first few by name."""
    images, labels = found.images, found.labels
    orphans = {"images": [n for n in images if n not in labels], "labels": [n for n in labels if n not in images]}
    lists = {
        "label files that are no PNG": found.lossy,
        "pictures without label": [images[name][0] for name in orphans["images"]],
        "labels without picture": [labels[name][0] for name in orphans["labels"]],
    }
    problems = [told([one for one in found.unused if one.kind == kind], folder) for kind in ERRORS]
    if not images and not any(problems):
        return []  # said in other words
    for what, paths in lists.items():
        below = sorted(printable(path.relative_to(folder).as_posix().partition("/")[2]) for path in paths)
        problems.append(f"{len(below)} {what}: {', '.join(below[:5])}{', ...' * (len(below) > 5)}" if below else "")
    twice = [" and ".join(path.name for path in files) for files in images.values() if len(files) > 1]
    problems.append(f"{len(twice)} pictures with the same name: {', '.join(twice[:5])}" if twice else "")
    problems = [text for text in problems if text]
    if problems:
        problems[-1] += _hint(folder, found, orphans)
    return problems


def _hint(folder: Path, found: Pairs, orphans: dict[str, list[str]]) -> str:
    """What probably made a split lose its first pair; or ""."""
    if not (folder / "labels").is_dir() and not any(one.path == folder / "labels" for one in found.unused):
        return f"; there is no folder labels{other_places(folder, 1)}"
    if orphans["images"]:
        return near(orphans["images"][0], orphans["labels"])
    return instead(orphans["labels"][0], folder, found.unused) if orphans["labels"] else ""
