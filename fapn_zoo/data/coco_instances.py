"""Folders with COCO's instance json, as labelling tools export it: objects with boxes or masks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fapn_zoo.data.annotated import AnnotatedPictures
from fapn_zoo.data.coco_annotations import Fault, Picture, read_pictures, without_group
from fapn_zoo.data.coco_files import CATEGORY, check_entry, coco_ids, one_folder, read_categories, read_table
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
        there = {path.relative_to(folder).as_posix() for path in found.files}
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
    table = read_table(file, "COCO")
    for place, entry in enumerate(table["categories"]):
        check_entry(entry, CATEGORY, f"{file}: categories[{place}]")
    used = {e["category_id"] for e in table["annotations"] if isinstance(e, dict) and type(e.get("category_id")) is int}
    categories, group = without_group(table["categories"], used)
    labels, class_of = read_categories(file, [entry | {"isthing": 1} for entry in categories])
    pictures, faults = read_pictures(table, class_of)
    return labels, pictures, [*filter(None, [group]), *faults]


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
