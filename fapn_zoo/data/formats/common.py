"""What the formats with a file of objects per picture share: their classes, and entries that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fapn_zoo.data.coco_annotations import UNKNOWN, Annotation, Fault, Picture, Refused, annotation
from fapn_zoo.data.columns import packed
from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import files_in, printable
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.files import load_json
from fapn_zoo.runtime.tables import some

# `supervision` reads these formats as well, but not exactly: it rounds the corners of polygons to whole pixels and
# fills their edges too, keeps boxes in float32, takes a picture's size before EXIF turns it, and numbers classes in the
# order of the files. So these small texts are read here, and polygons become pixels as COCO's do.


def of_file(file: Path, kind: str, text: str, error: bool = True) -> Fault:
    """A fault of a file, which the sentence begins with."""
    return Fault(kind, f"{file}: {text}", error, file)


def said(root: Path) -> dict[str, Any]:
    """What `classes.json` in a folder says; empty where there is none."""
    file = root / "classes.json"
    try:
        found = load_json(file, strict=True) if file.is_file() else {}
    except ValueError as error:
        raise DataError(str(error)) from None
    return found if isinstance(found, dict) else {}


def fixed_names(root: Path) -> Any:
    """The class names that a `classes.json` fixes; falsy where it names none, or merges those of the files."""
    found = said(root)
    return None if found.get("values") or found.get("ignored_values") else found.get("names")


def object_classes(root: Path, names: Iterable[str], where: Path) -> LabelMap:
    """Classes of a folder, all of them things: those of its `classes.json`, else these names.

    DataError for names that are none, or a `classes.json` that lacks some of them.
    """
    names, file = tuple(names), root / "classes.json"
    try:
        if not fixed_names(root):
            return LabelMap(names, (), 255 if len(names) <= 255 else 65535, tuple(range(len(names))))
        table = LabelMap.from_json(file)
    except ValueError as error:
        raise DataError(f"{where}: {error}" if str(where) not in str(error) else str(error)) from None
    if strange := [name for name in names if name not in table.names]:
        raise DataError(f"{file} has no {some(map(repr, strange))}, which {where} has; it has {some(table.names, 20)}")
    return LabelMap(table.names, table.palette, table.ignore_index, tuple(range(table.num_classes)))


class Names(dict[str, int]):
    """Labels and provisional ids, in the order in which they are met; so the files need be read only once."""

    def __missing__(self, label: str) -> int:
        self[label] = len(self)
        return self[label]

    def become(self, class_of: Mapping[str, int], pictures: Sequence[Picture]) -> None:
        """Gives all objects their class ids."""
        packed(pictures).renumber([class_of[label] for label in self], pictures)


def named_classes(root: Path, found: Iterable[str], remarks: list[str]) -> tuple[LabelMap, dict[str, int]]:
    """Classes of a format that has names in its objects alone, and the id of each.

    Without a `classes.json` they are all that are `found`, in all splits, and `remarks` gets a sentence on them.
    """
    names: list[str] = []
    if not fixed_names(root):
        names = sorted(set(found))
        if not names:
            raise DataError(f'{root} names no class: no object has a name, and there is no classes.json with "names"')
        shown = f"{len(names)} names in its files, in alphabetical order: {some(names, 20)}"
        if not said(root).get("names"):
            remarks.append(f'{root}: its classes are the {shown}; a classes.json with "names" would fix them')
    labels = object_classes(root, names, root)
    return labels, {name: i for i, name in enumerate(labels.names)}


def add_object(
    objects: list[Annotation],
    entry: Mapping[str, Any],
    name: str,
    file: Path,
    category: int | None,
    size: tuple[int, int],
    faults: list[Fault],
) -> None:
    """Adds an object of COCO's keys, or what is wrong with it; `category` None is a class that is not listed."""
    found: list[Fault] = []
    try:
        if category is None:
            raise Refused(UNKNOWN, f"{file}: {name} is of no class that is listed")
        objects.append(annotation(entry, name, f"{file}: {name}", category, size, found))
    except Refused as error:
        found.append(Fault(*error.args))
    faults.extend(one._replace(file=file) for one in found)


class Beside:
    """The pictures of annotation files, by their names, with any ending of pictures, in any case."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, Path]] = {}

    def find(self, file: Path, folder: Path) -> Path | None:
        """The picture in this folder that has the name of `file`."""
        if folder not in self._known:
            self._known[folder] = {path.stem: path for path in files_in(folder, EXTENSIONS, deep=False)}
        return self._known[folder].get(file.stem)


def left_over(folder: Path, pictures: Iterable[Picture], ending: str) -> Iterator[str]:
    """Words for the pictures of a folder that have no annotation file: they are not used."""
    used = {picture.path for picture in pictures}
    if rest := [path for path in files_in(folder, EXTENSIONS, deep=False) if path not in used]:
        shown = some(printable(path.name) for path in rest)
        yield f"{folder}: not used: {len(rest)} pictures that have no {ending} file: {shown}"
