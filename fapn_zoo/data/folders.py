"""Folders in the house's own format: a picture and a label file of the same name."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fapn_zoo.data.coco_annotations import check_faults, summary
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import missing
from fapn_zoo.data.mask_folder import MaskFolder, table_of
from fapn_zoo.data.pairs import faults, find_splits, list_pairs, other_places
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
    return f"how many classes has {root}? {f'{missing(file)}. ' * os.path.lexists(file)}{fix}"


class FolderDataset(MaskFolder):
    """`{root}/{split}/images/NAME.jpg` (or any of `data.images.EXTENSIONS`) with `{root}/{split}/labels/NAME.png`.

    NAME may lie in subfolders, the same ones on both sides, and is then "aachen/x". What lies there and is no pair is
    refused where one was meant, and else named in `unused`; all of it is in `faults`.

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

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Folders that hold `images` or `labels`."""
        return find_splits(root)

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
        found = list_pairs(self.root / split)
        self.faults = list(faults(self.root / split, found))
        check_faults(self.faults, self.root, strict)
        self.remarks = tuple(filter(None, [table_of(self.labels)]))
        self.unused = (*summary(self.faults, error=False), *self.remarks)
        names = sorted(found.images.keys() & found.labels.keys())
        self.pairs = [(name, found.images[name][0], found.labels[name][0]) for name in names]
