"""Folders with COCO's instance json, as labelling tools export it: objects with boxes or masks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np
from torch import Tensor

from fapn_zoo.data.coco_annotations import Annotation, Fault, Picture, read_pictures, summary, without_group
from fapn_zoo.data.coco_files import CATEGORY, check_entry, one_folder, read_categories, read_table
from fapn_zoo.data.decoding import header
from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import Unused, list_folder, missing, printable, told
from fapn_zoo.data.mask_decoding import crop_of
from fapn_zoo.data.opening import upright_size
from fapn_zoo.data.reading import EXIF_WHERE, read_image
from fapn_zoo.data.reading_rules import Reading, read_rules
from fapn_zoo.data.sample import BOXES, MASKS, Crop, DataError, Objects, Sample
from fapn_zoo.runtime.tables import some

USUAL = ("train", "val", "valid", "validation", "test")
MISSING = "picture that is not there"
SAME = {"val": ("valid", "validation")}  # other words for a split
# Where annotation files lie; {} is the split. Those of the second row have none, and serve whatever split is asked for.
PLACES = ("annotations_{}.json", "annotations/instances_{}.json", "instances_{}.json", "{}/_annotations.coco.json")
WHOLE = ("instances.json", "annotations.json", "_annotations.coco.json", "result.json", "labels.json")


class CocoInstances:
    """A folder with COCO's instance json: boxes, polygons, run lengths, crowds. All classes are things.

    The annotation file of a split is `annotations_{split}.json`, `annotations/instances_{split}.json`,
    `instances_{split}.json` (each also with a year, as `train2017`), `{split}/_annotations.coco.json` or, for the usual
    splits, `{split}.json`; `valid` is `val`. Pictures lie in `{split}/images`, `{split}`, `images/{split}`, `images`,
    `data`, or beside the file. Class ids are the places of the categories in the order of their COCO ids, which
    `labels.category_ids` keeps; a first row that is the supercategory of all others and has no annotation is no class.
    Pictures without objects are kept. Where an object has no mask the data set holds boxes alone. Boxes are as
    annotated, also where they reach out of the picture: so COCO's evaluation takes them. `unused` says what is worth
    knowing. A `classes.json` in the folder may hold `white_level` and `exif` (see `FolderDataset`).

    Args:
        strict: raise errors of single entries; else they are in `faults` alone, and entries without one are used.

    Raises:
        FileNotFoundError: no such folder, annotation file or folder of pictures; the message names what was looked for.
        DataError: an annotation file that cannot be used, or a picture that is not there; the message names the file,
            the entry, and how many more there are.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        num_classes: int | None = None,
        reading: Reading | None = None,
        strict: bool = True,
    ) -> None:
        self.root, self.split = Path(root).expanduser(), split
        self.name = os.path.basename(os.path.realpath(self.root))
        self.file = _annotation_file(self.root, split)
        self.reading = read_rules(self.root, reading)
        self.labels, self.pictures, self.faults = read_instances(self.file)
        self._folder = self._pictures_in(split)
        found = list_folder(self._folder, EXTENSIONS)
        there = {path.relative_to(self._folder).as_posix() for path in found.files}
        self.faults += self._missing(there)
        if strict and (errors := list(summary(self.faults, error=True))):
            more = f"; {len(errors) - 1} other kinds of errors too, fapn-zoo check-data {self.root} lists all"
            raise DataError(f"{self.file}: {errors[0]}{more * (len(errors) > 1)}")
        if num_classes is not None and num_classes != self.labels.num_classes:
            raise DataError(f"num_classes is {num_classes}, but {self.file} lists {self.labels.num_classes} classes")
        objects = [one for picture in self.pictures for one in picture.objects]
        maskless = [one for one in objects if one.shape is None]
        self.holds = BOXES if maskless else MASKS
        self.remarks = (*self._remarks(len(objects), maskless), *self._left_over(found.unused, there))
        self.unused = (*(f"{self.file}: {text}" for text in summary(self.faults, error=False)), *self.remarks)

    def _pictures_in(self, split: str) -> Path:
        part = re.sub(r"^(annotations|instances)_|\.coco$|^_.*", "", self.file.stem) or self.file.parent.name
        splits = dict.fromkeys((part, split, *SAME.get(split, ())))
        below = [f"{one}/images" for one in splits] + [*splits] + [f"images/{one}" for one in splits]
        folders = [self.root / name for name in (*below, "images", "data")]
        names = [picture.file_name for picture in self.pictures]
        return one_folder([*folders, self.file.parent, self.root], f"the pictures of {self.file}", names)

    def _missing(self, there: set[str]) -> Iterator[Fault]:
        for picture in self.pictures:
            path = self._folder / picture.file_name
            if picture.file_name not in there and not path.is_file():
                yield Fault(MISSING, missing(path, self.file))

    def _remarks(self, count: int, maskless: Sequence[Annotation]) -> Iterator[str]:
        if 0 < len(maskless) < count:
            which = f"{len(maskless):,} of {count:,} objects have no mask, such as {maskless[0].name}"
            yield f"{self.file}: only boxes are used: {which}"
        if self.file.name in WHOLE and self.file.parent in (self.root, self.root / "annotations"):
            yield f"{self.file} has no split: it serves {self.split!r} as every other"

    def _left_over(self, unused: Sequence[Unused], there: set[str]) -> Iterator[str]:
        """Words for pictures that no entry names, where no other split can have its pictures there."""
        if self._folder in (self.root, self.root / "images", self.root / "data"):
            return
        if rest := sorted(there - {picture.file_name for picture in self.pictures}):
            shown = some(map(printable, rest))
            yield f"{self._folder}: not used: {len(rest)} that {self.file.name} does not list: {shown}"
        if strange := [one for one in unused if one.path.suffix not in (".json", ".txt")]:
            yield f"{self._folder}: not used: {told(strange, self._folder)}"

    def __len__(self) -> int:
        return len(self.pictures)

    def listed(self, index: int) -> np.ndarray:
        """(K + 1,) int64: objects of sample `index` by class that are no crowds; 0 at the end."""
        classes = [found.category for found in self.pictures[index].objects if not found.crowd]
        return np.bincount(classes, minlength=self.labels.num_classes + 1).astype(np.int64)

    def files(self, index: int) -> tuple[Path, Path]:
        """The picture of sample `index` and the annotation file."""
        return self._folder / self.pictures[index].file_name, self.file

    def size(self, index: int) -> tuple[int, int]:
        return self.pictures[index].size

    def sample(self, index: int) -> Sample:
        name = printable(PurePath(self.pictures[index].file_name).with_suffix("").as_posix())
        return Sample(self.image(index), name, None, self.objects(index))

    def image(self, index: int) -> Tensor:
        """The picture of sample `index`. DataError where it is of another size than the annotation file says."""
        picture, (path, _) = self.pictures[index], self.files(index)
        image = read_image(path, self.reading)
        if tuple(image.shape[1:]) != picture.size:
            (h, w), (height, width) = image.shape[1:], picture.size
            hint = self._turn_hint(path, picture.size)
            raise DataError(f"sizes differ: {path} is {w}x{h}, {self.file} says {width}x{height}{hint}")
        return image

    def _turn_hint(self, path: Path, size: tuple[int, int]) -> str:
        stored, turned = header(path)
        if stored == size and self.reading.turns:
            what = f"the picture is turned by its EXIF orientation {turned}, its objects are not"
            return f" ({what}: set exif=ignore, {EXIF_WHERE})"
        return " (exif=apply would fit)" if turned > 4 and upright_size(stored, turned) == size else ""

    def objects(self, index: int) -> Objects:
        """The objects of sample `index`, whose picture is not read. DataError for run lengths that make no mask."""
        picture = self.pictures[index]
        crops = [self.crop(picture, one) for one in picture.objects] if self.holds == MASKS else None
        boxes = np.zeros((len(picture.objects), 4))
        areas = np.zeros(len(picture.objects))
        for m, one in enumerate(picture.objects):
            crop = crops[m] if crops is not None else None
            if one.box is None and crop is None:
                crop = self.crop(picture, one)
            boxes[m] = _around(crop) if one.box is None else one.box
            own = (boxes[m, 2:] - boxes[m, :2]).prod() if crop is None else np.count_nonzero(crop.pixels)
            areas[m] = own if one.area is None else one.area
        classes = np.array([one.category for one in picture.objects], np.int64)
        crowd = np.array([one.crowd for one in picture.objects], bool)
        return Objects(None, classes, crowd, None if crops is None else tuple(crops), boxes, areas)

    def crop(self, picture: Picture, found: Annotation) -> Crop:
        """The mask of an object that has one. DataError, which names it, for run lengths that make none."""
        try:
            return crop_of(found.shape, picture.size)
        except ValueError as error:
            raise DataError(f"{self.file}: {found.name} of {printable(picture.file_name)}: {error}") from None


def _around(crop: Crop) -> tuple[int, int, int, int]:
    return crop.x, crop.y, crop.x + crop.pixels.shape[1], crop.y + crop.pixels.shape[0]


# ---------------------------------------------------------------- COCO's files


def read_instances(file: Path) -> tuple[LabelMap, list[Picture], list[Fault]]:
    """Classes, pictures and faults of an annotation file. DataError where it is none, or its categories are none."""
    table = read_table(file, "COCO")
    for place, entry in enumerate(table["categories"]):
        check_entry(entry, CATEGORY, f"{file}: categories[{place}]")
    used = {e["category_id"] for e in table["annotations"] if isinstance(e, dict) and type(e.get("category_id")) is int}
    categories, group = without_group(table["categories"], used)
    labels, class_of = read_categories(file, [entry | {"isthing": 1} for entry in categories])
    pictures, faults = read_pictures(table, class_of)
    return labels, pictures, [*filter(None, [group]), *faults]


def is_instances(root: Path) -> bool:
    """Whether a folder has annotation files of this format, by their names."""
    return root.is_dir() and bool(instance_files(root))


def instance_files(root: Path) -> dict[str, list[Path]]:
    """Annotation files by split, "" those without one; a split with several is one too many."""
    found: dict[str, list[Path]] = {}
    for place in PLACES:
        before, after = place.split("{}")
        for file in sorted(root.glob(place.replace("{}", "*"))):
            name = file.relative_to(root).as_posix()
            found.setdefault(name[len(before) : len(name) - len(after)], []).append(file)
    for split in USUAL:
        if (root / f"{split}.json").is_file():
            found.setdefault(split, []).append(root / f"{split}.json")
    whole = [folder / name for folder in (root, root / "annotations") for name in WHOLE if (folder / name).is_file()]
    return found | ({"": whole} if whole else {})


def _annotation_file(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}")
    found = instance_files(root)
    for word in (split, *SAME.get(split, ())):
        names = [word] if word in found else [name for name in found if re.fullmatch(re.escape(word) + r"\d+", name)]
        fitting = [file for name in names for file in found[name]]
        if len(fitting) > 1:
            raise DataError(f"{root} has several files of split {split!r}: {some(fitting)}")
        if fitting:
            return fitting[0]
    named = sorted(name for name in found if name)
    if named:
        raise FileNotFoundError(f"no split {split!r} in {root}; it has {', '.join(named)}")
    if len(found.get("", ())) > 1:
        raise DataError(f"{root} has several annotation files without a split: {some(found[''])}")
    if found:
        return found[""][0]
    places = ", ".join(place.format(split) for place in PLACES)
    raise FileNotFoundError(f"no annotation file in {root}; looked for {places}, {split}.json, {', '.join(WHOLE)}")
