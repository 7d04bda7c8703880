"""Folders with Pascal VOC's xml files: boxes, and polygons as some tools add them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fapn_zoo.data.annotated import AnnotatedPictures, one_split
from fapn_zoo.data.coco_annotations import BAD_BOX, BAD_ENTRY, Annotation, Fault, Picture
from fapn_zoo.data.coco_instances import MISSING, SAME
from fapn_zoo.data.formats.common import Beside, Names, add_object, fixed_names, left_over, named_classes, of_file, said
from fapn_zoo.data.listing import files_in, printable
from fapn_zoo.data.reading import stored_size
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.files import read_text

LISTS = ("ImageSets/Main", "ImageSets/Segmentation", "ImageSets/Layout")
SIDES = ("xmin", "ymin", "xmax", "ymax")
ORIGIN = "first_pixel"  # of a classes.json: what the first pixel is called, 1 or 0
FROM_0, DIFFICULT = "boxes that count from 0", "difficult objects"


class VocFolder(AnnotatedPictures):
    """A folder with Pascal VOC's annotations; see `AnnotatedPictures`.

    Either `Annotations/NAME.xml` with `JPEGImages/NAME.*` and lists of names `ImageSets/Main/{split}.txt`, also below
    `VOC2012` or `VOCdevkit/VOC2012`; or xml files beside their pictures, in `{split}` or without splits. Classes are
    the `names` of `classes.json`, else all names of objects in alphabetical order. Objects are boxes; where all have
    `polygon` elements these are their masks. Those marked `difficult` are neither trained nor scored, like crowds.

    Pixels are counted from 1, as VOC's own tools do (the first column has xmin 1, the last one has the width as xmax);
    `"first_pixel": 0` in `classes.json` is for tools that write the edges of boxes, from 0.
    """

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        try:
            return list(_lists(root))
        except FileNotFoundError:
            return []

    def _read(self, split: str) -> list[str]:
        lists = _lists(self.root)
        files = lists[one_split(list(lists), split, self.root, SAME.get(split, ()))]
        self.file, remarks = files[0].parent if files else self.root, []
        origin = said(self.root).get(ORIGIN)
        if origin not in (None, 0, 1):
            raise DataError(f"{self.root / 'classes.json'}: {ORIGIN} is {origin!r}; expected 1, as VOC counts, or 0")
        if origin is None:
            text = f'pixels are taken to be counted from 1, as in VOC\'s own files; "{ORIGIN}" in classes.json says it'
            remarks.append(f"{self.file}: {text}")
        names = Names()
        if given := fixed_names(self.root):
            self.labels, names = named_classes(self.root, (), remarks)
        self.pictures = []
        pictures, beside = self.file.with_name("JPEGImages"), Beside()
        flat = not pictures.is_dir()
        for file in files:
            tree, path = _tree(file, self.faults), beside.find(file, file.parent if flat else pictures)
            if not given:
                _meet(tree, names)
            if tree is None or path is None:
                if tree is not None:
                    self.faults.append(of_file(file, MISSING, "there is no picture of its name"))
                continue
            size = _size(tree) or stored_size(path, self.reading, "picture")
            objects = _objects(tree, file, names, 1 if origin is None else origin, size, self.faults)
            self.pictures.append(Picture(file.stem, path.name, size, objects, path, file))
        if not given:
            for file in {one for part in lists.values() for one in part}.difference(files):
                _meet(_tree(file, []), names)
            self.labels, class_of = named_classes(self.root, names, remarks)
            names.become(class_of, self.pictures)
        if flat:
            remarks += left_over(self.file, self.pictures, "xml")
        return remarks


def _lists(root: Path) -> dict[str, list[Path]]:
    """By split its xml files, those missing too. FileNotFoundError where a folder is not of this format."""
    official = sorted((*root.glob("Annotations"), *root.glob("VOC*/Annotations"), *root.glob("VOC*/VOC*/Annotations")))
    if len(official) > 1:
        raise DataError(f"{root} has several folders Annotations: {', '.join(map(str, official))}; give one of theirs")
    for folder in official:
        base = folder.parent
        for place in LISTS:
            if found := {file.stem: _listed(file, folder) for file in sorted((base / place).glob("*.txt"))}:
                return {split: files for split, files in found.items() if files}
        if files := files_in(folder, (".xml",)):
            return {"": files}
    flat = {"": files_in(root, (".xml",), deep=False)} if root.is_dir() else {}
    below = {p.name: files_in(p, (".xml",), deep=False) for p in sorted(root.glob("*")) if p.is_dir()}
    found = {split: files for split, files in (below | flat).items() if files and _is_voc(files[0])}
    if not found:
        raise FileNotFoundError(f"no Annotations of Pascal VOC in {root}, nor xml files beside pictures")
    return found


def _is_voc(file: Path) -> bool:
    tree = _tree(file, [])
    return tree is None or tree.tag == "annotation"


def _listed(file: Path, folder: Path) -> list[Path]:
    """The xml files of a list; none where it is one of a class, whose names have a number behind them."""
    files = [folder / f"{line.strip()}.xml" for line in read_text(file).splitlines() if line.strip()]
    of_class = bool(files) and re.search(r"\s-?[01]$", files[0].stem) and not files[0].is_file()
    return [] if of_class else files


def _tree(file: Path, faults: list[Fault]) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(file).getroot()
    except FileNotFoundError:
        faults.append(of_file(file, MISSING, "a list in ImageSets names it, and it is not there"))
    except (OSError, ElementTree.ParseError) as error:
        faults.append(of_file(file, BAD_ENTRY, f"no readable XML: {error}"))
    return None


def _meet(tree: ElementTree.Element | None, names: Names) -> None:
    for one in () if tree is None else tree.iterfind("object"):
        names[_name(one)]


def _name(found: ElementTree.Element) -> str:
    return (found.findtext("name") or "").strip()


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """(height, width) as the file says, None where it says nothing, or 0 as some tools do."""
    size = tree.find("size")
    height, width = (None if size is None else _number(size.findtext(side)) for side in ("height", "width"))
    return (int(height), int(width)) if height and width and min(height, width) >= 1 else None


def _objects(
    tree: ElementTree.Element,
    file: Path,
    class_of: dict[str, int],
    origin: int,
    size: tuple[int, int],
    faults: list[Fault],
) -> list[Annotation]:
    objects: list[Annotation] = []
    for number, one in enumerate(tree.iterfind("object"), 1):
        label = _name(one)
        name = f"object {number} ({printable(label)})"
        box = one.find("bndbox")
        sides = [None if box is None else _number(box.findtext(side)) for side in SIDES]
        if None in sides:
            faults.append(of_file(file, BAD_BOX, f"{name} has no bndbox with the numbers {', '.join(SIDES)}"))
            continue
        if min(sides[:2]) < origin and min(sides[:2]) > -1:
            way = f'if this folder counts from 0, write "{ORIGIN}": 0 in classes.json'
            text = f"{name} has xmin {sides[0]:g} and ymin {sides[1]:g}, but pixels are counted from 1: {way}"
            faults.append(of_file(file, FROM_0, text))
            continue
        x1, y1, x2, y2 = sides[0] - origin, sides[1] - origin, *sides[2:]
        entry: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": list(_polygons(one, origin))}
        entry["iscrowd"] = int(one.findtext("difficult") == "1")
        if entry["iscrowd"]:
            faults.append(of_file(file, DIFFICULT, f"{name} is difficult: it is neither trained nor scored", False))
        add_object(objects, entry, name, file, class_of.get(label), size, faults)
    return objects


def _polygons(found: ElementTree.Element, origin: int) -> Iterator[list[float | None]]:
    """The points x1, y1, x2, y2, ... of every polygon element."""
    for polygon in found.iterfind("polygon"):
        points = {(int(m[2]), m[1]): _number(p.text) for p in polygon if (m := re.fullmatch(r"([xy])(\d+)", p.tag))}
        yield [None if value is None else value - origin for _, value in sorted(points.items())]
