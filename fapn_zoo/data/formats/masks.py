"""Folders of pictures and masks in other people's layouts; CVAT's "Segmentation mask" is one of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl

from fapn_zoo.data.folders import read_label_map
from fapn_zoo.data.formats.common import said
from fapn_zoo.data.formats.hub_rows import SPLITS, held_out
from fapn_zoo.data.formats.mask_classes import find_classes, wanted
from fapn_zoo.data.formats.mask_pairs import Files, Template, listed, pair_up, usual_templates
from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import list_folder, printable
from fapn_zoo.data.mask_folder import MaskFolder, proposals, table_of
from fapn_zoo.data.pairs import has_labels
from fapn_zoo.data.reading import LABEL_ENDINGS, read_stored
from fapn_zoo.data.reading_rules import Reading, read_rules
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.files import read_text
from fapn_zoo.runtime.tables import some

GRAMMAR = "FOLDER?masks=TEMPLATE, such as cells?masks={parent}/{stem}_mask.png, perhaps &images=PATTERN&classes=FILE"
OPTIONS = ("masks", "images", "classes")
LISTS = "ImageSets/Segmentation"


class MaskPairs(MaskFolder):
    """A folder of pictures and masks, wherever they lie; see `MaskFolder`.

    The place of a mask is what `?masks=TEMPLATE` says, or `masks` of `classes.json`, or else what the names of the
    folders tell: `images` beside `masks`, above or below the splits, `train` beside `train_masks`, `SegmentationClass`
    beside `JPEGImages`, `NAME_mask.png` beside `NAME.jpg`. What a pixel means says `values` of `classes.json`,
    `labelmap.txt` (CVAT: by colour) or `_classes.csv` (Roboflow), else it is the class id.

    Splits are folders called train, val or test (or training, validation, ...) anywhere on the way to a picture, or
    lists `ImageSets/Segmentation/{split}.txt`; where there are none, a tenth of the pictures is kept as val, drawn
    with seed 0.

    Raises:
        FileNotFoundError: no such folder or split. DataError: no template fits, or several; pictures without mask;
            classes that nothing names; the message says how to say it.
    """

    def __init__(
        self, root: str | Path, split: str, num_classes: int | None = None, reading: Reading | None = None
    ) -> None:
        folder, options = parse(str(root))
        self.root, self.split = folder, split
        self.name = os.path.basename(os.path.realpath(folder))
        if not folder.is_dir():
            raise FileNotFoundError(f"no data folder {folder}")
        self.options, self.reading = self._options(folder, options), read_rules(folder, reading)
        files = _listed(folder)
        template, pairs = _pairs(folder, self.options, files)
        chosen, remark = _of_split(_lists(folder, self.options), folder, sorted(pairs), split)
        if not chosen:
            raise DataError(f"{folder}: no pictures in split {split!r}")
        self.pairs = [(str(PurePosixPath(p).with_suffix("")), folder / p, folder / pairs[p]) for p in chosen]
        self.labels, lines = self._labels(num_classes)
        if template.text not in (options.get("masks"), said(folder).get("masks")):
            lines.append(f"{folder}: masks are {template.text}")
        left = sorted({*files} - {*pairs} - {*pairs.values()}) if "images" not in self.options else ()
        lines += [remark, f"{folder}: not used: {len(left)} files: {some(map(printable, left))}" if left else ""]
        self.unused = tuple(filter(None, (*lines, table_of(self.labels), *proposals(self.labels))))

    @classmethod
    def _options(cls, folder: Path, options: dict[str, str]) -> dict[str, str]:
        """`masks`, `images`, `classes` and `lists`, as far as they are known."""
        template = said(folder).get("masks")
        return {"lists": LISTS} | ({"masks": template} if template else {}) | options

    def _labels(self, num_classes: int | None) -> tuple[LabelMap, list[str]]:
        """The classes, and sentences on them. DataError with what the masks hold where nothing names them."""
        masks = [mask for _, _, mask in self.pairs]
        labels = find_classes(self.root, [self.pairs[0][1].parent], self.options.get("classes"), num_classes)
        if labels is None and num_classes is not None:
            return read_label_map(self.root, num_classes), []
        if labels is None:
            folder = self.root
            way, reading = f"Write {folder / 'classes.json'}", self.reading
            raise DataError(wanted(str(folder), len(masks), lambda i, rgb: read_stored(masks[i], rgb, reading), way))
        return labels, []

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """The splits of a folder that has such pairs; none of another."""
        folder, options = parse(str(root))
        if not folder.is_dir():
            return []
        options = cls._options(folder, options)
        pictures = _pairs(folder, options, _listed(folder))[1]
        return _splits(_lists(folder, options), sorted(pictures)) or ["train", "val"]


def parse(text: str) -> tuple[Path, dict[str, str]]:
    """The folder and the options of a data source. DataError for unknown ones, or a template that is none."""
    if Path(text).expanduser().exists() or "?" not in text:
        return Path(text).expanduser(), {}
    place, _, query = text.partition("?")
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))
    if strange := [key for key in options if key not in OPTIONS]:
        raise DataError(f"{text}: unknown option {strange[0]!r}; write {GRAMMAR}")
    return Path(place).expanduser(), options


def has_masks(path: Path) -> bool:
    """Whether a data source has a template, or its folders look like pictures and masks."""
    folder, options = parse(str(path))
    if options or not folder.is_dir() or has_labels(folder):
        return bool(options)
    if said(folder).get("masks"):
        return True
    try:
        return bool(_fitting(_listed(folder), folder))
    except DataError:  # opening it says the same
        return True
    except OSError:
        return False


def _listed(folder: Path) -> list[str]:
    """The files of pictures and masks, relative to the folder, sorted."""
    files = list_folder(folder, {*EXTENSIONS, *LABEL_ENDINGS}).files
    return [path.relative_to(folder).as_posix() for path in files]


def _fitting(paths: list[str], root: Path) -> dict[str, dict[str, str]]:
    """The templates that give a mask to all pictures that are none themselves, with the pairs."""
    files, pictures = listed(paths), [path for path in paths if PurePosixPath(path).suffix.lower() in EXTENSIONS]
    found = {template.text: pair_up(template, pictures, files, root) for template in usual_templates(pictures, files)}
    most = max(map(len, found.values()), default=0)
    return {text: pairs for text, pairs in found.items() if most and len(pairs) == most}


def _pairs(root: Path, options: dict[str, str], paths: list[str]) -> tuple[Template, dict[str, str]]:
    """The template and picture -> mask, both relative."""
    text = options.get("masks")
    if pattern := options.get("images"):
        inside = [path for path in paths if any(PurePosixPath(path).match(one) for one in pattern.split(","))]
        if not inside:
            raise DataError(f"no picture in {root} is like images={pattern!r}; there are {some(paths)}")
    else:
        inside = paths
    pictures = [path for path in inside if PurePosixPath(path).suffix.lower() in EXTENSIONS]
    if named := {name for file in _lists(root, options).values() for name in _names(file)}:
        pictures = [path for path in pictures if PurePosixPath(path).stem in named]
    if text is None:
        fitting = _fitting(paths, root)
        if len(fitting) != 1:
            what = f"several templates fit: {some(fitting)}" if fitting else "no mask lies where it is looked for"
            raise DataError(f'{root}: {what}; say which, as {GRAMMAR}, or as "masks" of classes.json')
        [text] = fitting
    try:
        template = Template(text)
    except ValueError as error:
        raise DataError(f"{root}: {error}") from None
    files: Files = listed(paths)
    pairs = pair_up(template, pictures, files, root)
    masks = {*pairs.values()}
    alone = [picture for picture in pictures if picture not in pairs and picture not in masks]
    if pairs:  # a split without any mask has no labels, and of pictures in other folders nobody spoke
        group = _split_of if "images" in options else _place
        groups = {group(picture) for picture in pairs}
        alone = [picture for picture in alone if group(picture) in groups]
    if not pairs or alone:
        first = (alone or pictures or ["none"])[0]
        looked = template(first) if first != "none" else None
        where = f", such as {first}, whose mask would be {looked}" if looked else f", such as {first}"
        raise DataError(
            f"{root}: {len(alone)} of {len({*pictures} - masks)} pictures have no mask{where} (masks={text})"
        )
    if twice := [mask for mask, number in Counter(pairs.values()).items() if number > 1]:
        both = [picture for picture, mask in pairs.items() if mask == twice[0]]
        raise DataError(f"{root}: {' and '.join(both)} have the same mask, {twice[0]}")
    return template, pairs


def _place(picture: str) -> str:
    return PurePosixPath(picture).parent.as_posix()


# ---------------------------------------------------------------- splits


def _lists(root: Path, options: dict[str, str]) -> dict[str, Path]:
    """By split the file that lists its pictures; none where no list is of a usual split."""
    folder = root / options.get("lists", LISTS)
    found = {path.stem: path for path in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}
    return {name: path for name, path in found.items() if name != "all"} if any(map(_word, found)) else {}


def _names(file: Path) -> list[str]:
    lines = (line.split() for line in read_text(file).splitlines())
    return [PurePosixPath(words[0]).stem for words in lines if words]


def _splits(lists: dict[str, Path], pictures: Iterable[str]) -> list[str]:
    """Splits by lists, or by the folders on the way to the pictures; none where all pictures are without."""
    found = {split for picture in pictures if (split := _split_of(picture))}
    order = [*SPLITS]
    named = sorted((name for name in lists if _word(name)), key=lambda name: order.index(_word(name)))
    return named or [split for split in SPLITS if split in found]


def _word(name: str) -> str | None:
    """The split that a word means."""
    return next((split for split, words in SPLITS.items() if name.lower() in (split, *words)), None)


def _split_of(picture: str) -> str | None:
    found = [split for part in PurePosixPath(picture).parts[:-1] if (split := _word(part))]
    return found[0] if found else None


def _of_split(lists: dict[str, Path], root: Path, pictures: list[str], split: str) -> tuple[list[str], str]:
    """The pictures of a split, and a sentence on it. FileNotFoundError, which names those there are."""
    there, wanted = _splits(lists, pictures), _word(split) or split
    if lists:
        words = [split, *(name for name in lists if _word(name) == wanted)]
        if (name := next((word for word in words if word in lists), None)) is None:
            raise FileNotFoundError(f"no split {split!r} in {root}; its lists are {', '.join(lists)}")
        return _of_list(lists[name], pictures), ""
    if not there:
        if wanted not in ("train", "val") or len(pictures) < 2:
            raise FileNotFoundError(f"no split {split!r} in {root}: its {len(pictures)} pictures have none")
        rows = {*held_out(len(pictures)).tolist()}
        kept = f"{len(rows)} of its {len(pictures)} pictures, drawn with seed 0, are kept as val"
        remark = f"{root} has no splits: {kept}"
        return [p for i, p in enumerate(pictures) if (i in rows) == (wanted == "val")], remark
    if wanted not in there:
        raise FileNotFoundError(f"no split {split!r} in {root}; it has {', '.join(there)}")
    rest = sum(_split_of(picture) is None for picture in pictures)
    remark = f"{root}: not used: {rest} pictures that are in no folder of a split" if rest else ""
    return [picture for picture in pictures if _split_of(picture) == wanted], remark


def _of_list(file: Path, pictures: Iterable[str]) -> list[str]:
    by_stem: dict[str, list[str]] = {}
    for picture in pictures:
        by_stem.setdefault(PurePosixPath(picture).stem, []).append(picture)
    names = _names(file)
    if gone := [name for name in names if name not in by_stem]:
        raise DataError(f"{file} lists {some(map(printable, gone))}, of which there is no picture with a mask")
    return [picture for name in names for picture in by_stem[name]]
