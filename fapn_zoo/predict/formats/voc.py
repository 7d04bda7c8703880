"""Predictions as Pascal VOC's xml files: boxes, and the outlines of masks."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from fapn_zoo.predict.formats.writer import SPLIT, FolderWriter, found
from fapn_zoo.runtime.files import write_text
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec


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
