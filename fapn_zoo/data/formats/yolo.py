"""Folders with YOLO's text files: a row per object, with its class and its box or polygon in shares of the picture."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fapn_zoo.data.annotated import AnnotatedPictures, one_split
from fapn_zoo.data.coco_annotations import (
    BAD_BOX,
    BAD_ENTRY,
    OUTSIDE,
    TWICE,
    UNKNOWN,
    Annotation,
    Fault,
    Picture,
    Refused,
)
from fapn_zoo.data.coco_instances import MISSING, SAME
from fapn_zoo.data.formats.common import object_classes, of_file
from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.listing import files_in, list_folder, missing, printable, told
from fapn_zoo.data.reading import stored_size
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.files import read_text
from fapn_zoo.runtime.tables import some

SPLITS = ("train", "val", "valid", "validation", "test")
SLACK = 1e-3  # share of a side that a coordinate may reach out without a word: files have few digits
DIGITS = 6  # of a pixel: less than a file can mean, and more than rounding adds
NAME_FILES = ("classes.txt", "obj.names", "data/obj.names", "labels/classes.txt")


class YoloFolder(AnnotatedPictures):
    """A folder with YOLO's labels, or its yaml file; see `AnnotatedPictures`.

    The yaml file has `names` (a list, or a dict with the ids 0..K-1) and for every split a folder of pictures, a text
    file that lists them, or several of these, below `path` where that is there, else below the yaml's folder. Without
    one, `classes.txt` or `obj.names` has a name per line, and pictures lie in `images/{split}`, `{split}/images`, or as
    `{split}.txt` lists them. The labels of `images/x/a.jpg` are in `labels/x/a.txt`; of pictures in no folder `images`
    beside them. A row has 5 numbers (class, middle x and y, width, height) or 7, 9, ... (class, polygon). A picture
    without a file is one without objects. Coordinates are shares of the picture as EXIF turns it.
    """

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        try:
            return list(_spec(root)[2])
        except DataError:
            return [""]  # so that opening it says what is wrong
        except FileNotFoundError:
            return []

    def _read(self, split: str) -> list[str]:
        self.file, names, splits = _spec(self.root)
        base = self.root if self.root.is_dir() else self.root.parent
        self.labels = object_classes(base, names, self.file)
        part = one_split(list(splits), split, self.root, SAME.get(split, ()))
        remarks: list[str] = []
        paths = _pictures(base, splits[part], self.file, remarks, self.faults)
        self.pictures, folders, bare = [], set(), []
        sources: dict[Path, str] = {}
        for path, name in paths:
            source = _labels_of(path)
            if (other := sources.setdefault(source, name)) != name:
                self.faults.append(of_file(path, TWICE, f"it shares the label file {source.name} with {other}"))
            folders.add(source.parent)
            objects = _rows(source, self.labels.num_classes, self.faults)
            self.pictures.append(Picture(name, name, (0, 0), objects or [], path, None if objects is None else source))
            if objects is None:
                bare.append(name)
        if not self.pictures:
            raise DataError(f"{self.file}: no pictures in split {split!r} (looked for {', '.join(EXTENSIONS)})")
        if bare:
            shown = some(map(printable, bare))
            text = f"{len(bare)} pictures without a label file are taken for pictures without objects: {shown}"
            remarks.append(f"{self.root}: {text}")
        if not any(os.fspath(path).endswith(".txt") for path in splits[part]):
            remarks += _orphans(folders, {picture.source for picture in self.pictures})
        return remarks

    def picture(self, index: int) -> Picture:
        raw = self.pictures[index]
        height, width = size = stored_size(raw.path, self.reading, "picture")
        scale = np.array([width, height])
        objects = []
        for one in raw.objects:
            box = tuple((np.array(one.box).reshape(2, 2) * scale).round(DIGITS).ravel().tolist())
            shape = one.shape and tuple((part.reshape(-1, 2) * scale).round(DIGITS).ravel() for part in one.shape)
            objects.append(one._replace(box=box, shape=shape))
        return Picture(raw.id, raw.file_name, size, objects, raw.path, raw.source)


def _spec(root: Path) -> tuple[Path, list[str], dict[str, list[str]]]:
    """The file with the classes, their names, and by split its folders and lists. FileNotFoundError where none is."""
    files = [root]
    if root.is_dir():
        usual = [root / name for name in ("data.yaml", "data.yml", "dataset.yaml") if (root / name).is_file()]
        others = (file for file in sorted(root.iterdir()) if file.suffix in (".yaml", ".yml"))
        files = usual[:1] or [file for file in others if "names" in _yaml(file)]
    if len(files) > 1:
        raise DataError(f"{root} has several yaml files with names: {some(files)}; give the one that is meant as data=")
    for file in files:
        spec = _yaml(file)
        if "kpt_shape" in spec:
            raise DataError(f"{file} is of key points (kpt_shape), which are not read")
        found = {key: _listed(spec[key], file, key) for key in SPLITS if spec.get(key)}
        below = str(spec.get("path") or "")
        return file, _names(spec, file), {key: [os.path.join(below, p) for p in paths] for key, paths in found.items()}
    for name in NAME_FILES:
        if (root / name).is_file():
            names = [line.strip() for line in read_text(root / name).splitlines() if line.strip()]
            if splits := _folders(root):
                return root / name, names, splits
    raise FileNotFoundError(f"no data.yaml in {root}, and none of {', '.join(NAME_FILES)} beside YOLO's labels")


def _yaml(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{file} is not readable YAML: {' '.join(str(error).split())}") from None
    return found if isinstance(found, dict) else {}


def _listed(value: Any, file: Path, key: str) -> list[str]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise DataError(f"{file}: {key} is {value!r}; expected a folder, a text file, or a list of these")
    return paths


def _names(spec: dict[str, Any], file: Path) -> list[str]:
    names, count = spec.get("names"), spec.get("nc")
    if isinstance(names, dict):
        ids = list(names)
        if not all(type(i) is int for i in ids) or sorted(ids) != list(range(len(ids))):
            raise DataError(f"{file}: names has the ids {some(ids, 10)}; expected 0..{len(ids) - 1}, each once")
        names = [names[i] for i in range(len(ids))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names is {names!r}; expected a list of class names, or a dict of them by id")
    if count is not None and count != len(names):
        raise DataError(f"{file}: nc is {count!r}, but names lists {len(names)}")
    if strange := [name for name in names if not isinstance(name, (str, int)) or isinstance(name, bool)]:
        raise DataError(f"{file}: names has {some(map(repr, strange))}, no text for YAML; write it in quotes")
    return [str(name) for name in names]


def _folders(root: Path) -> dict[str, list[str]]:
    """The splits of a folder without a yaml file."""
    lists = {s: [f"{s}.txt"] for s in SPLITS if (root / f"{s}.txt").is_file()}
    below = {p.parent.name: [f"{p.parent.name}/images"] for p in sorted(root.glob("*/images")) if p.is_dir()}
    inside = {p.name: [f"images/{p.name}"] for p in sorted(root.glob("images/*")) if p.is_dir()}
    return lists or below or inside or ({"": ["images"]} if (root / "images").is_dir() else {})


def _place(text: str, folders: Sequence[Path]) -> Path | None:
    """What a path of a yaml file or list means: below one of these folders, else without its first parts."""
    parts = Path(text.replace("\\", "/")).parts
    for start in range(len(parts)):
        for folder in folders:
            if (place := folder.joinpath(*parts[start:])).exists():
                return Path(os.path.normpath(place))
    return None


def _pictures(
    root: Path, paths: Iterable[str], file: Path, remarks: list[str], faults: list[Fault]
) -> list[tuple[Path, str]]:
    """Pictures and their names, below the folder that lists them, in order."""
    found: dict[Path, str] = {}
    for text in paths:
        place = _place(text, [file.parent, root])
        if place is None:
            raise FileNotFoundError(f"{file} names {text}, which is neither there nor below {root}")
        if place != Path(os.path.normpath(file.parent / text)):
            remarks.append(f"{file}: {text} is not there; {place} is taken")
        if place.is_dir():
            listing = list_folder(place, EXTENSIONS)
            start = len(os.path.join(place, ""))
            found |= {path: os.fspath(path)[start:].replace(os.sep, "/") for path in listing.files}
            faults += [Fault(one.kind, one.reason, True, one.path) for one in listing.unused if one.error]
            if rest := [one for one in listing.unused if not one.error and one.path.suffix not in (".txt", ".npy")]:
                remarks.append(f"{place}: not used: {told(rest, place)}")
            continue
        for line in filter(None, map(str.strip, read_text(place).splitlines())):
            path = _place(line, [place.parent, root])
            if path is None:
                faults.append(of_file(place, MISSING, missing(place.parent / line)))
            else:
                found[path] = os.path.relpath(path, root).replace(os.sep, "/")
    return list(found.items())


def _labels_of(path: Path) -> Path:
    """The label file of a picture: its path with the last folder `images` called `labels`, or the one beside it."""
    beside = f"{os.path.splitext(path)[0]}.txt"
    above, inside, below = beside.rpartition(f"{os.sep}images{os.sep}")
    usual = os.sep.join((above, "labels", below)) if inside else beside
    return Path(beside if inside and not os.path.isfile(usual) and os.path.isfile(beside) else usual)


def _orphans(folders: Iterable[Path], used: set[Path | None]) -> Iterable[str]:
    for folder in sorted(folders):
        files = files_in(folder, (".txt",), deep=False) if folder.is_dir() else []
        if rest := [path.name for path in files if path not in used and path.name not in ("classes.txt", "train.txt")]:
            yield f"{folder}: not used: {len(rest)} label files without picture: {some(map(printable, rest))}"


def _rows(file: Path, classes: int, faults: list[Fault]) -> list[Annotation] | None:
    """The objects of a label file, in shares of the picture; None where there is no such file."""
    objects, seen = [], {}
    try:
        lines = read_text(file).removeprefix("\ufeff").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        faults.append(Fault(BAD_ENTRY, str(error), file=file))
        return []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = _row(line, f"row {number}", file, classes, faults)
        except Refused as error:
            faults.append(of_file(file, error.args[0], f"row {number} {error.args[1]}"))
            continue
        if line in seen:
            faults.append(of_file(file, TWICE, f"rows {seen[line]} and {number} are equal; both are used", False))
        seen.setdefault(line, number)
        objects.append(found)
    return objects


def _row(line: str, name: str, file: Path, classes: int, faults: list[Fault]) -> Annotation:
    try:
        category, *values = map(float, line.split())
    except ValueError:
        category, values = 0.0, []
    if not values or not all(map(math.isfinite, (category, *values))):
        raise Refused(BAD_ENTRY, f"is {line[:60]!r}; expected a class id and coordinates, all of them numbers")
    if not 0 <= category < classes or category % 1:
        raise Refused(UNKNOWN, f"is of class {category:g}; expected 0..{classes - 1}, for there are {classes} names")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        hint = "; is the last one a score? Leave it out" if len(values) == 5 else ""
        forms = "5 (class and box) or 7, 9, ... (class and polygon)"
        raise Refused(BAD_ENTRY, f"has {len(values) + 1} numbers; expected {forms}{hint}")
    shape = (np.array(values),) if len(values) > 4 else None
    if shape:
        xs, ys = values[::2], values[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    else:
        x, y, w, h = values
        x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    beyond = max(-x1, -y1, x2 - 1, y2 - 1)
    if beyond > 1:
        hint = "are they pixels? Divide x by the width and y by the height"
        raise Refused(BAD_BOX, f"has coordinates up to {max(map(abs, values)):g}; expected shares in 0..1: {hint}")
    if min(x2, y2) <= 0 or max(x1, y1) >= 1:
        raise Refused(BAD_BOX, f"with x {x1:.4g}..{x2:.4g}, y {y1:.4g}..{y2:.4g} of 0..1 is outside of its picture")
    if min(x2 - x1, y2 - y1) <= 0 and not shape:
        raise Refused(BAD_BOX, f"has width {w:g} and height {h:g}; both must be above 0")
    if beyond > SLACK:
        faults.append(of_file(file, OUTSIDE, f"{name} reaches out by {beyond:.2%} of the picture", False))
    return Annotation(name, int(category), False, (x1, y1, x2, y2), None, shape)
