"""Folders with COCO's instance json, as labelling tools export it: objects with boxes or masks."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from fapn_zoo.data.annotated import AnnotatedPictures
from fapn_zoo.data.coco_annotations import (
    BAD_ENTRY,
    GROUP,
    SAME_ID,
    TWICE,
    UNKNOWN,
    Annotation,
    Fault,
    Picture,
    Refused,
    annotation,
)
from fapn_zoo.data.coco_files import (
    CATEGORY,
    NOT_QUICK,
    check_entry,
    coco_ids,
    one_folder,
    quick_table,
    read_categories,
    read_table,
)
from fapn_zoo.data.columns import Columns
from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import Unused, list_folder, missing, printable, told
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.tables import some

USUAL = ("train", "val", "valid", "validation", "test")
MISSING = "picture that is not there"
SAME = {"val": ("valid", "validation")}  # other words for a split
# Where annotation files lie; {} is the split. Those of the second row have none, and serve whatever split is asked for.
PLACES = ("annotations_{}.json", "annotations/instances_{}.json", "instances_{}.json", "{}/_annotations.coco.json")
WHOLE = ("instances.json", "annotations.json", "_annotations.coco.json", "result.json", "labels.json")


class CocoInstances(AnnotatedPictures):
    """A folder with COCO's instance json; see `AnnotatedPictures`.

    The annotation file of a split is `annotations_{split}.json`, `annotations/instances_{split}.json`,
    `instances_{split}.json` (each also with a year, as `train2017`), `{split}/_annotations.coco.json` or, for the usual
    splits, `{split}.json`; `valid` is `val`. Pictures lie in `{split}/images`, `{split}`, `images/{split}`, `images`,
    `data`, or beside the file. Class ids are the places of the categories in the order of their COCO ids, which
    `labels.category_ids` keeps; a first row that is the supercategory of all others and has no annotation is no class.
    """

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        return list(instance_files(root)) if root.is_dir() else []

    def _read(self, split: str) -> list[str]:
        self.file = _annotation_file(self.root, split)
        self.labels, self.pictures, faults = read_instances(self.file)
        folder = self._pictures_in(split)
        found = list_folder(folder, EXTENSIONS)
        start = len(os.path.join(folder, ""))
        there = {os.fspath(path)[start:].replace(os.sep, "/") for path in found.files}
        for picture in self.pictures:
            picture.path, picture.source = folder / picture.file_name, self.file
            if picture.file_name not in there and not picture.path.is_file():
                faults.append(Fault(MISSING, missing(picture.path, self.file)))
        self.faults += [one._replace(text=f"{self.file}: {one.text}", file=self.file) for one in faults]
        return [*self._without_split(), *self._left_over(folder, found.unused, there)]

    def _numbers(self) -> Sequence[int]:
        return coco_ids(self.labels)

    def _pictures_in(self, split: str) -> Path:
        part = re.sub(r"^(annotations|instances)_|\.coco$|^_.*", "", self.file.stem) or self.file.parent.name
        splits = dict.fromkeys((part, split, *SAME.get(split, ())))
        below = [f"{one}/images" for one in splits] + [*splits] + [f"images/{one}" for one in splits]
        folders = [self.root / name for name in (*below, "images", "data")]
        names = [picture.file_name for picture in self.pictures]
        return one_folder([*folders, self.file.parent, self.root], f"the pictures of {self.file}", names)

    def _without_split(self) -> Iterator[str]:
        if self.file.name in WHOLE and self.file.parent in (self.root, self.root / "annotations"):
            yield f"{self.file} has no split: it serves {self.split!r} as every other"

    def _left_over(self, folder: Path, unused: Sequence[Unused], there: set[str]) -> Iterator[str]:
        """Words for pictures that no entry names, where no other split can have its pictures there."""
        if folder in (self.root, self.root / "images", self.root / "data"):
            return
        if rest := sorted(there - {picture.file_name for picture in self.pictures}):
            shown = some(map(printable, rest))
            yield f"{folder}: not used: {len(rest)} that {self.file.name} does not list: {shown}"
        if strange := [one for one in unused if one.path.suffix not in (".json", ".txt")]:
            yield f"{folder}: not used: {told(strange, folder)}"


# ---------------------------------------------------------------- COCO's files


def read_instances(file: Path) -> tuple[LabelMap, list[Picture], list[Fault]]:
    """Classes, pictures and faults of an annotation file. DataError where it is none, or its categories are none."""
    if (quick := quick_table(file)) is not None:
        with contextlib.suppress(*NOT_QUICK):
            return _instances(file, quick)
    return _instances(file, read_table(file, "COCO"))


def _instances(file: Path, table: Mapping[str, Sequence[Any]]) -> tuple[LabelMap, list[Picture], list[Fault]]:
    entries = [*table["categories"]]
    for place, entry in enumerate(entries):
        check_entry(entry, CATEGORY, f"{file}: categories[{place}]")
    categories, group = _without_group(entries, table["annotations"])
    labels, class_of = read_categories(file, [entry | {"isthing": 1} for entry in categories])
    pictures, faults = read_pictures(table, class_of)
    return labels, pictures, [*filter(None, [group]), *faults]


def _without_group(
    categories: Sequence[Mapping[str, Any]], annotations: Iterable[Any]
) -> tuple[list[Mapping[str, Any]], Fault | None]:
    """Without a first row that is the supercategory of all others and of no annotation, as Roboflow writes it."""
    first, *rest = sorted(categories, key=lambda entry: entry["id"]) or [{}]
    if rest and all(entry.get("supercategory") == first["name"] for entry in rest):
        if not any(isinstance(one, dict) and one.get("category_id") == first["id"] for one in annotations):
            text = f"category {first['id']} ({first['name']!r}) is no class: it is the supercategory of the others"
            return rest, Fault(GROUP, f"{text}, and no annotation has it", error=False)
    return [*categories], None


def read_pictures(table: Mapping[str, Any], class_of: Mapping[int, int]) -> tuple[list[Picture], list[Fault]]:
    """The images in the order of the file with the annotations that can be used, and all faults of both."""
    faults: list[Fault] = []
    pictures: dict[Any, Picture] = {}
    names: dict[str, Any] = {}
    lost: list[Any] = []  # what is wrong with an image is not said again of its annotations
    for place, entry in enumerate(table["images"]):
        try:
            picture = _picture(entry)
        except Refused as error:
            faults.append(Fault(BAD_ENTRY, f"images[{place}] {error}"))
            lost.append(entry.get("id") if isinstance(entry, Mapping) else None)
            continue
        if picture.id in pictures:
            both = f"{pictures[picture.id].file_name} and {picture.file_name}"
            faults.append(Fault(TWICE, f"image id {picture.id!r} is of two pictures, {both}"))
        elif picture.file_name in names:
            both = f"images {names[picture.file_name]!r} and {picture.id!r}"
            faults.append(Fault(TWICE, f"{picture.file_name} is of two {both}"))
        pictures.setdefault(picture.id, picture)
        names.setdefault(picture.file_name, picture.id)
    columns, rows, seen = Columns(), {key: row for row, key in enumerate(pictures)}, []
    for place, entry in enumerate(table["annotations"]):
        known = isinstance(entry, dict) and isinstance(entry.get("id"), (int, str))
        seen.append(f"annotation {entry['id']}" if known else f"annotations[{place}]")
        try:
            picture, found = _annotation(entry, seen[-1], pictures, class_of, faults)
        except Refused as error:
            if error.args[0] != UNKNOWN or entry.get("image_id") not in lost:
                faults.append(Fault(*error.args))
        else:
            columns.add(rows[picture.id], found)
    columns.hand_out([*pictures.values()])
    for name, times in Counter(seen).items() if len({*seen}) < len(seen) else ():
        if times > 1:
            faults.append(Fault(SAME_ID, f"{name} is there {times} times; all are used", error=False))
    return list(pictures.values()), faults


def _picture(entry: Any) -> Picture:
    needed = {"id": (int, str), "file_name": (str,), "height": (int, float), "width": (int, float)}
    wrong = [n for n, kinds in needed.items() if not isinstance(entry, dict) or not isinstance(entry.get(n), kinds)]
    if wrong:
        raise Refused(f"lacks {', '.join(f'{name} ({needed[name][0].__name__})' for name in wrong)}")
    name, size = entry["file_name"].replace("\\", "/"), (entry["height"], entry["width"])
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts or not name:
        raise Refused(f"names the file {name!r}, which is outside of the folder")
    if not all(0 < side < math.inf and side == int(side) for side in size):
        raise Refused(f"({name}) has height {size[0]} and width {size[1]}; expected whole numbers of 1 or more")
    return Picture(entry["id"], PurePath(name).as_posix(), (int(size[0]), int(size[1])))


def _annotation(
    entry: Any, name: str, pictures: Mapping[Any, Picture], class_of: Mapping[int, int], faults: list[Fault]
) -> tuple[Picture, Annotation]:
    """An annotation and its picture; Refused where it cannot be used. What is worth knowing is added to `faults`."""
    if not isinstance(entry, dict):
        raise Refused(BAD_ENTRY, f"{name} is {entry!r}; expected an object")
    image, category = entry.get("image_id"), entry.get("category_id")
    picture = pictures.get(image) if isinstance(image, (int, str)) else None
    if picture is None:
        raise Refused(UNKNOWN, f"{name} is of image {image!r}, which is not among the {len(pictures):,} images")
    where = f"{name} of {printable(picture.file_name)}"
    if type(category) is not int:
        raise Refused(BAD_ENTRY, f"{where} has category_id {category!r}; expected a whole number")
    if category not in class_of:
        ids = some(class_of, 8)
        raise Refused(UNKNOWN, f"{where} is of category {category}, which is not among the categories {ids}")
    return picture, annotation(entry, name, where, class_of[category], picture.size, faults)


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
