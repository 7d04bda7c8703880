"""Predictions as files for labelling tools and other trainers: COCO's, LabelMe's, Pascal VOC's and YOLO's."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from fapn_zoo.predict.formats.writer import SPLIT, FolderWriter, found
from fapn_zoo.runtime.files import write_json, write_text
from fapn_zoo.tasks.coco import CocoFile
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec


class CocoFolder(FolderWriter):
    """`annotations_train.json`, or `panoptic_train.json` with its folder; pictures in `images/train`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._file: CocoFile | None = None

    def _table(self, what: str) -> CocoFile:
        if self._file is None:
            inputs = [self.target(index) for index in range(len(self._inputs))]
            self._file = CocoFile(self.folder / f"{what}_{SPLIT}.json", inputs, self._stems, self.folder)
        return self._file

    def _add(self, index: int, picture: Path, result: Result) -> None:
        self._table("panoptic" if result.task == "panoptic" else "annotations").add(index, result)

    def _end(self, model: str, data: DataSpec) -> str:
        self._table("annotations").write(model, data)
        return ""


class LabelMeFiles(FolderWriter):
    """`train/x.json` beside `train/x.jpg`; a shape's description is its score."""

    pictures = SPLIT

    def _add(self, index: int, picture: Path, result: Result) -> None:
        height, width = result.image.shape[:2]
        shapes = []
        for segment, (x1, y1, x2, y2), way in found(result):
            points, kind = ([[x1, y1], [x2, y2]], "rectangle") if way is None else (way.tolist(), "polygon")
            about = {"group_id": None, "description": f"score {segment['score']}", "flags": {}}
            shapes.append({"label": segment["name"], "points": points, "shape_type": kind} | about)
        table = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": picture.name, "imageData": None}
        write_json(picture.with_suffix(".json"), table | {"imageHeight": height, "imageWidth": width})


class VocFiles(FolderWriter):
    """`Annotations`, `JPEGImages` and `ImageSets/Main/train.txt`; the first pixel is 1, as in VOC's own files."""

    pictures = "JPEGImages"
    more = {"first_pixel": 1}

    def _add(self, index: int, picture: Path, result: Result) -> None:
        height, width = result.image.shape[:2]
        root = ElementTree.Element("annotation")
        _put(root, filename=picture.name)
        _put(_put(root, size=None), width=width, height=height, depth=3)
        _put(root, segmented=int(result.labels is not None))
        for segment, (x1, y1, x2, y2), way in found(result):
            one = _put(root, object=None)
            _put(one, name=segment["name"], difficult=0)
            _put(_put(one, bndbox=None), xmin=x1 + 1, ymin=y1 + 1, xmax=x2, ymax=y2)
            if way is not None:
                points = {f"{'xy'[k]}{n}": point[k] + 1 for n, point in enumerate(way.tolist(), 1) for k in (0, 1)}
                _put(_put(one, polygon=None), **points)
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode")
        write_text(self.folder / "Annotations" / f"{picture.stem}.xml", f"{text}\n")

    def _end(self, model: str, data: DataSpec) -> str:
        stems = sorted(file.stem for file in (self.folder / "Annotations").glob("*.xml"))
        write_text(self.folder / "ImageSets" / "Main" / f"{SPLIT}.txt", "".join(f"{stem}\n" for stem in stems))
        return ""


def _put(parent: ElementTree.Element, **values: str | float | None) -> ElementTree.Element:
    """Adds an element for each, with its value as text; returns the last one."""
    for name, value in values.items():
        child = ElementTree.SubElement(parent, name)
        child.text = value if value is None or isinstance(value, str) else f"{value:.12g}"
    return child


class YoloFiles(FolderWriter):
    """`data.yaml`, and for `images/train/x.jpg` the objects in `labels/train/x.txt`."""

    def _add(self, index: int, picture: Path, result: Result) -> None:
        height, width = result.image.shape[:2]
        rows = []
        for segment, (x1, y1, x2, y2), way in found(result):
            values = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) if way is None else way.ravel()
            shares = values / np.resize([width, height], len(values))
            rows.append(" ".join([str(segment["category_id"]), *(f"{share:.12g}" for share in shares)]))
        write_text(self.folder / "labels" / SPLIT / f"{picture.stem}.txt", "".join(f"{row}\n" for row in rows))

    def _end(self, model: str, data: DataSpec) -> str:
        spec = {SPLIT: self.pictures, "nc": len(data.labels), "names": dict(enumerate(data.labels))}
        write_text(self.folder / "data.yaml", yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
        return ""
