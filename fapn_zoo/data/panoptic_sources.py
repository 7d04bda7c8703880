"""Folders in COCO's panoptic format: every pixel belongs to a segment of one class, or to none (void)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fapn_zoo.data.coco_files import CATEGORY, check_entry, coco_ids, one_folder, read_categories, read_table
from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.listing import list_folder, missing, printable, told
from fapn_zoo.data.mask_folder import table_of
from fapn_zoo.data.merging import folder_table, merged, void
from fapn_zoo.data.reading import check_sizes, read_ids, read_image
from fapn_zoo.data.reading_rules import Reading, read_rules
from fapn_zoo.data.sample import SEGMENTS, DataError, Objects, Sample
from fapn_zoo.runtime.tables import some


class CocoPanoptic:
    """A folder in COCO's panoptic format, as COCO, ADE20K and Cityscapes are offered or converted.

    The annotation file is `panoptic_{split}.json` or, with a year, `panoptic_{split}2017.json`, in the folder or in
    its `annotations`; a folder without splits has `panoptic.json`, which serves whatever split is asked for. Beside
    it lies a folder of its name with the segments as PNG files. Pictures are in `{split}2017`,
    `images/{split}2017` or `images`. Class ids are the places of the file's categories, in the order of their
    COCO ids. Pictures without annotation are left out, as COCO's evaluation leaves them out; `unused` names them. A
    `classes.json` in the folder may hold `white_level` and `exif` (see `FolderDataset`).

    Raises:
        FileNotFoundError: no such folder, annotation file, or folder of segments or pictures; the message names what
            was looked for.
        DataError: an annotation file of another form; the message names it and the entry.
    """

    holds = SEGMENTS

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """The splits of a folder of this format, "" for one without splits."""
        found = sorted(_split_files(root))
        return found or [""] * any((folder / "panoptic.json").is_file() for folder in (root, root / "annotations"))

    def __init__(
        self, root: str | Path, split: str, num_classes: int | None = None, reading: Reading | None = None
    ) -> None:
        self.root, self.split = Path(root).expanduser(), split
        self.name = os.path.basename(os.path.realpath(self.root))
        self.file = _annotation_file(self.root, split)
        self.reading = read_rules(self.root, reading)
        self._png_folder = one_folder([self.file.with_suffix("")], f"the segments of {self.file}")
        part = self.file.stem.removeprefix("panoptic").removeprefix("_")
        names = [part, f"images/{part}", "images"] if part else ["images"]
        self._image_folder = one_folder([self.root / name for name in names], f"the pictures of {self.file}")
        table = _read_table(self.file)
        self.labels, self._class_of = read_categories(self.file, table["categories"])
        lines = []
        if wanted := folder_table(self.root):
            known = coco_ids(self.labels)
            self.labels, ids = merged(self.labels, known, wanted, self.file)
            self._class_of = dict(zip(known, ids, strict=True))
            lines = [f"{self.file}: {len(ids)} categories become {self.labels.num_classes} classes", table_of(wanted)]
        if num_classes is not None and num_classes != self.labels.num_classes:
            raise DataError(f"num_classes is {num_classes}, but {self.file} lists {self.labels.num_classes} categories")
        self._entries = _entries(self.file, table, self._class_of)
        self.unused = (*lines, *self._left_over())

    def _left_over(self) -> Iterator[str]:
        """Words for each kind of file that is not used. DataError where a listed one is missing."""
        shared = self._image_folder.name == "images" and self.file.stem != "panoptic"  # by several splits
        for folder, place in ((self._image_folder, 0), (self._png_folder, 1)):
            names = {os.path.normpath(pair[place]["file_name"]) for pair in self._entries}
            found = list_folder(folder, EXTENSIONS)
            there = {str(path.relative_to(folder)) for path in found.files}
            gone = [folder / name for name in sorted(names - there) if not (folder / name).is_file()]
            if gone:
                more = f"; {len(gone) - 1:,} others too" if len(gone) > 1 else ""
                raise DataError(f"{missing(gone[0], self.file)}{more}")
            rest = [] if shared and place == 0 else sorted(there - names)
            if rest:
                yield f"{folder}: not used: {len(rest)} without annotation: {some(map(printable, rest))}"
            if found.unused:
                yield f"{folder}: not used: {told(found.unused, folder)}"

    def __len__(self) -> int:
        return len(self._entries)

    def listed(self, index: int, crowds: bool) -> np.ndarray:
        """(K + 1,) int64: what the annotation file says of sample `index`: pixels by class, or segments; 0 at the end.

        Args:
            crowds: pixels (1 of a segment whose area is not given), crowds included; else segments that are no crowds.
        """
        row = np.zeros(self.labels.num_classes + 1, np.int64)
        for segment in self._entries[index][1]["segments_info"]:
            if crowds or not segment.get("iscrowd", 0):
                area = segment.get("area")
                own = self._class_of[segment["category_id"]]
                place = self.labels.num_classes if own is None else own
                row[place] += area if crowds and type(area) is int and area > 0 else 1
        return row

    def files(self, index: int) -> tuple[Path, Path, Path]:
        """The picture, the segments and the annotations of sample `index`."""
        image, annotation = self._entries[index]
        folders = (self._image_folder / image["file_name"], self._png_folder / annotation["file_name"])
        return *folders, self.file

    def size(self, index: int) -> tuple[int, int]:
        image, _ = self._entries[index]
        return image["height"], image["width"]

    def sample(self, index: int) -> Sample:
        image_path, png_path, _ = self.files(index)
        image = read_image(image_path, self.reading)
        objects = self._objects(png_path, self._entries[index][1]["segments_info"])
        check_sizes(image.shape[1:], self.size(index), image_path, self.file, self.reading)
        check_sizes(objects.ids.shape, self.size(index), png_path, self.file, self.reading)
        table = np.array([self.labels.ignore_index, *objects.classes])
        labels = table.astype(np.uint8 if table.max() < 256 else np.int32)[objects.ids]
        name = printable(PurePath(self._entries[index][0]["file_name"]).with_suffix("").as_posix())
        return Sample(image, name, labels, objects)

    def _objects(self, path: Path, listed: list[dict[str, Any]]) -> Objects:
        """The segments of a PNG file in the order of the list."""
        try:
            colours = read_ids(path, self.reading)
        except FileNotFoundError:
            raise DataError(missing(path, self.file)) from None
        except ValueError as error:
            raise DataError(str(error)) from None
        known = np.array([0, *(s["id"] for s in listed)])
        order = np.argsort(known)
        places = np.searchsorted(known[order], colours).clip(max=len(known) - 1)
        ids = order[places].astype(np.int32)
        strange = colours[known[ids] != colours]
        if strange.size:
            what = f"{path} has pixels of segment {some(np.unique(strange))}"
            raise DataError(f"{what}, which {self.file} does not list")
        areas = np.bincount(ids.ravel(), minlength=len(listed) + 1)[1:]
        if empty := [s["id"] for s, area in zip(listed, areas, strict=True) if not area]:
            raise DataError(f"{path} has no pixel of segment {some(empty)}, which {self.file} lists")
        own = [self._class_of[s["category_id"]] for s in listed]
        kept = [i is not None for i in own]
        crowd = np.array([bool(s.get("iscrowd", 0)) for s in listed], bool)[kept]
        classes = np.array([i for i in own if i is not None], np.int64)
        return Objects(ids if all(kept) else void(ids, kept), classes, crowd)


# ---------------------------------------------------------------- COCO's files


def is_panoptic(root: Path) -> bool:
    """Whether a folder has annotation files of COCO's panoptic format."""
    return any(next(folder.glob("panoptic*.json"), None) for folder in (root, root / "annotations"))


def _split_files(root: Path) -> dict[str, Path]:
    folders = (root, root / "annotations")
    return {f.stem.removeprefix("panoptic_"): f for folder in folders for f in sorted(folder.glob("panoptic_*.json"))}


def _annotation_file(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}")
    folders, found = (root, root / "annotations"), _split_files(root)
    fitting = [split] if split in found else [n for n in found if re.fullmatch(re.escape(split) + r"\d+", n)]
    plain = [folder / "panoptic.json" for folder in folders if (folder / "panoptic.json").is_file()]
    if len(fitting) == 1:
        return found[fitting[0]]
    if fitting:
        raise DataError(f"{root} has several splits {split!r}: {', '.join(sorted(fitting))}; name one of them")
    if plain and not found:
        return plain[0]
    if found:
        raise FileNotFoundError(f"no split {split!r} in {root}; it has {', '.join(sorted(found))}")
    raise FileNotFoundError(f"no panoptic_{split}*.json or panoptic.json in {root} or {root / 'annotations'}")


def _read_table(file: Path) -> dict[str, Any]:
    """The annotation file, all entries checked."""
    table = read_table(file, "COCO panoptic")
    for key, needed in (
        ("images", {"id": int, "file_name": str, "height": int, "width": int}),
        ("annotations", {"image_id": int, "file_name": str, "segments_info": list}),
        ("categories", CATEGORY | {"isthing": int}),
    ):
        for place, entry in enumerate(table[key]):
            check_entry(entry, needed, f"{file}: {key}[{place}]")
    for entry in table["annotations"]:
        for segment in entry["segments_info"]:
            check_entry(segment, {"id": int, "category_id": int}, f"{file}: a segment of {entry['file_name']}")
    return table


def _entries(file: Path, table: Mapping[str, Any], class_of: Mapping[int, int]) -> list[tuple[dict, dict]]:
    """(image, annotation) in the order of the annotations, all ids checked."""
    images = {image["id"]: image for image in table["images"]}
    found: dict[int, tuple[dict, dict]] = {}
    for annotation in table["annotations"]:
        name, image_id = annotation["file_name"], annotation["image_id"]
        if image_id not in images:
            raise DataError(f"{file}: {name} is of image {image_id}, which is not among the images")
        if image_id in found:
            both = f"{found[image_id][1]['file_name']} and {name}"
            raise DataError(f"{file}: image {image_id} has two annotations, {both}")
        ids = [segment["id"] for segment in annotation["segments_info"]]
        if len(set(ids)) < len(ids) or not all(0 < i < 2**24 for i in ids):
            wrong = [i for i in dict.fromkeys(ids) if ids.count(i) > 1 or not 0 < i < 2**24]
            raise DataError(f"{file}: {name} lists segment {some(wrong)} twice, or it is not in 1..{2**24 - 1}")
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in class_of:
                what = f"segment {segment['id']} of {name} is of category {segment['category_id']}"
                raise DataError(f"{file}: {what}, which is none of the {len(class_of)} categories")
        found[image_id] = (images[image_id], annotation)
    return list(found.values())
