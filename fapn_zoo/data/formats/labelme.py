"""Folders with LabelMe's json files: polygons, rectangles and masks that were drawn by hand."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fapn_zoo.data.annotated import AnnotatedPictures, one_split
from fapn_zoo.data.coco_annotations import BAD_ENTRY, BAD_MASK, Annotation, Fault, Picture, Refused
from fapn_zoo.data.coco_instances import MISSING, SAME
from fapn_zoo.data.formats.common import Beside, Names, add_object, fixed_names, left_over, named_classes, of_file
from fapn_zoo.data.listing import files_in, printable
from fapn_zoo.data.mask_decoding import crop_of
from fapn_zoo.data.mask_encoding import RunLengths
from fapn_zoo.data.reading import stored_size
from fapn_zoo.runtime.files import load_json

LARGE, LARGEST = 1 << 20, 1 << 28  # bytes: what may be COCO's file of all pictures, and what is no other
OTHER = "shapes that cannot be read"
LEAST = {"polygon": 3, "rectangle": 2, "mask": 2}  # points of a shape
ROUND = {"circle": "a circle", "line": "a line", "linestrip": "a line", "point": "a point", "points": "points"}


class LabelMeFolder(AnnotatedPictures):
    """A folder with LabelMe's json files beside their pictures, in `{split}` or without splits.

    A picture is where `imagePath` says, else beside its json and of its name. Polygons and masks are objects with a
    mask, rectangles boxes; shapes of one label and one `group_id` are one object. Circles, lines and points are
    refused. Classes are the `names` of `classes.json`, else all labels in alphabetical order.
    """

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        return list(_lists(root)) if root.is_dir() else []

    def _read(self, split: str) -> list[str]:
        lists, remarks = _lists(self.root), []
        if not lists:
            raise FileNotFoundError(f"no json files of LabelMe in {self.root}")
        part = one_split(list(lists), split, self.root, SAME.get(split, ()))
        self.file = self.root / part
        names = Names()
        if given := fixed_names(self.root):
            self.labels, names = named_classes(self.root, (), remarks)
        self.pictures, beside, start = [], Beside(), len(os.path.join(self.file, ""))
        for file in lists[part]:
            if (table := _table(file, self.faults)) is None:
                continue
            if not given:
                _meet(table, names)
            named = table.get("imagePath")
            path = file.parent / str(named).replace("\\", "/")
            if not path.is_file() and (path := beside.find(file, file.parent)) is None:
                hint = "; its pixels are in the json: save them as a file" if table.get("imageData") else ""
                text = f"it names the picture {named!r}, which is not there{hint}"
                self.faults.append(of_file(file, MISSING, text))
                continue
            height, width = (table.get(key) for key in ("imageHeight", "imageWidth"))
            known = type(height) is int and type(width) is int and min(height, width) > 0
            size = (height, width) if known else stored_size(path, self.reading, "picture")
            objects = _objects(table["shapes"], file, names, size, self.faults)
            name = f"{os.path.splitext(file)[0][start:]}{path.suffix}".replace(os.sep, "/")
            self.pictures.append(Picture(name, name, size, objects, path, file))
        if not given:
            for file in (one for split, files in lists.items() if split != part for one in files):
                _meet(_table(file, []), names)
            self.labels, class_of = named_classes(self.root, names, remarks)
            names.become(class_of, self.pictures)
        return [*remarks, *left_over(self.file, self.pictures, "json")]


def _lists(root: Path) -> dict[str, list[Path]]:
    """By split its json files; none where the first of them is no file of LabelMe."""
    below = {p.name: files_in(p, (".json",)) for p in sorted(root.glob("*")) if p.is_dir()}
    flat = [file for file in files_in(root, (".json",), deep=False) if file.name != "classes.json"]
    ours = {split: _is_labelme(files) for split, files in below.items()}
    if any(ours.values()):  # then files that cannot be read are meant to be of it
        return {split: below[split] for split, known in ours.items() if known is not False}
    return {"": flat} if _is_labelme(flat) else {}


def _is_labelme(files: Sequence[Path]) -> bool | None:
    """Whether the first file that can be read is LabelMe's; None where none of the first can."""
    for file in files[:5]:
        try:
            size = file.stat().st_size
            if size > LARGEST or (size > LARGE and b'"shapes"' not in file.read_bytes()):
                return False
            table = load_json(file)
        except (OSError, ValueError):
            continue
        return isinstance(table, dict) and isinstance(table.get("shapes"), list) and "imagePath" in table
    return None if files else False


def _table(file: Path, faults: list[Fault]) -> Mapping[str, Any] | None:
    try:
        table = load_json(file)
        if isinstance(table, dict) and isinstance(table.get("shapes"), list):
            return table
        faults.append(of_file(file, BAD_ENTRY, "no file of LabelMe: expected an object with a list shapes"))
    except (OSError, ValueError) as error:
        faults.append(Fault(BAD_ENTRY, str(error), file=file))
    return None


def _meet(table: Mapping[str, Any] | None, names: Names) -> None:
    for one in table["shapes"] if table else ():
        if isinstance(one, dict) and isinstance(one.get("label"), str):
            names[one["label"]]


def _objects(
    shapes: Iterable[Any], file: Path, class_of: Mapping[str, int], size: tuple[int, int], faults: list[Fault]
) -> list[Annotation]:
    groups: dict[Any, list[Any]] = {}
    for number, shape in enumerate(shapes):
        known = isinstance(shape, dict) and shape.get("group_id") is not None
        key = (str(shape.get("label")), str(shape["group_id"])) if known else number
        groups.setdefault(key, []).append((f"shapes[{number}]", shape))
    objects: list[Annotation] = []
    for parts in groups.values():
        place, first = parts[0]
        label = first.get("label") if isinstance(first, dict) else None
        name = f"{place} ({printable(str(label))})"
        try:
            entry = _entry(parts, size)
        except Refused as error:
            faults.append(of_file(file, *error.args))
            continue
        add_object(objects, entry, name, file, class_of.get(label), size, faults)
    return objects


def _entry(parts: list[tuple[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    """COCO's keys of one object, whose shapes are these."""
    found = [_part(place, shape, size) for place, shape in parts]
    left, top, right, bottom = zip(*(box for _, _, box in found), strict=True)
    x1, y1, x2, y2 = min(left), min(top), max(right), max(bottom)
    entry: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1]}
    polygons, masks = ([shape for _, shape, _ in found if isinstance(shape, kind)] for kind in (list, RunLengths))
    if masks:
        if polygons:
            crop = crop_of(tuple(map(np.array, polygons)), size)
            masks.append(RunLengths.of(crop.pixels, crop.y, crop.x, size))
        runs = RunLengths.of(np.any([mask.pixels() for mask in masks], 0), 0, 0, size)
        return entry | {"segmentation": {"size": list(size), "counts": runs.counts.tolist()}}
    return entry | ({"segmentation": polygons} if any(kind != "rectangle" for kind, _, _ in found) else {})


def _part(place: str, shape: Any, size: tuple[int, int]) -> tuple[str, list[float] | RunLengths, Sequence[float]]:
    """One shape: its kind, its polygon or mask, and the box x1, y1, x2, y2 around it."""
    kind = shape.get("shape_type", "polygon") if isinstance(shape, dict) else None
    if kind in ROUND:
        raise Refused(OTHER, f"{place} ({shape.get('label')}) is {ROUND[kind]}; draw it as a polygon, or remove it")
    if kind not in LEAST:
        raise Refused(BAD_ENTRY, f"{place} has shape_type {kind!r}; expected {', '.join(LEAST)}")
    try:
        points = np.array(shape["points"], np.float64)
        fits = points.ndim == 2 and points.shape[1] == 2 and np.isfinite(points).all() and len(points) >= LEAST[kind]
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        what = f"of {LEAST[kind]} points or more: [[x, y], ...]"
        raise Refused(BAD_ENTRY, f"{place} has points {str(shape.get('points')):.60}; expected a {kind} {what}")
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    if kind == "mask":
        found = _mask(shape, place, round(y1), round(x1), size)
        return kind, found, found.box
    flat = [x1, y1, x2, y1, x2, y2, x1, y2] if kind == "rectangle" else points.ravel().tolist()
    return kind, flat, (x1, y1, x2, y2)


def _mask(shape: Mapping[str, Any], place: str, y: int, x: int, size: tuple[int, int]) -> RunLengths:
    """A mask that is a PNG file in text, whose first pixel is at row y, column x."""
    try:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
    except Exception as error:
        raise Refused(BAD_MASK, f"{place} has a mask that is no PNG picture: {error}") from None
    if pixels.ndim != 2 or min(x, y) < 0 or y + pixels.shape[0] > size[0] or x + pixels.shape[1] > size[1]:
        what = f"a mask of {'x'.join(map(str, pixels.shape[::-1]))} at column {x}, row {y}"
        raise Refused(BAD_MASK, f"{place} has {what}, which does not fit into a picture of {size[1]}x{size[0]}")
    return RunLengths.of(pixels, y, x, size)
