"""What COCO's formats share: the annotation file, its categories, and where it and the pictures lie."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import msgspec

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.files import load_json
from fapn_zoo.runtime.tables import some

LISTS = ("images", "annotations", "categories")
FORGET = 1 << 14  # entries after which what was read of their file is given back
CATEGORY = {"id": int, "name": str}


def read_table(file: Path, what: str) -> dict[str, Any]:
    """The annotation file, a dict with the lists images, annotations and categories; DataError for another form."""
    try:
        table = load_json(file)
    except OSError as error:
        raise DataError(f"{file} is not readable JSON: {error}") from None
    except ValueError as error:
        raise DataError(str(error)) from None
    if not isinstance(table, Mapping) or not all(isinstance(table.get(key), list) for key in LISTS):
        raise DataError(f"{file} is no {what} file: expected an object with lists {', '.join(LISTS)}")
    return table


NOT_QUICK = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # of `quick_table` and its entries


class _Lists(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


class Entries(Sequence[Any]):
    """Entries of a list in a json file: texts, of which each becomes values when it is asked for."""

    def __init__(self, texts: list[msgspec.Raw], file: mmap.mmap) -> None:
        self.texts, self.file, self.decode = texts, file, msgspec.json.Decoder().decode

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, place: int) -> Any:
        if place % FORGET == 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.file.madvise(mmap.MADV_DONTNEED)  # what was read; else memory holds the file beside what is made of it
        return self.decode(self.texts[place])


def quick_table(file: Path) -> dict[str, Entries] | None:
    """The lists of an annotation file, faster than `read_table` and in a quarter of the memory.

    None where it is not plain JSON with these lists. An entry that is not raises one of `NOT_QUICK` when it is asked
    for. `read_table` tells what is wrong, and takes some files that are nearly JSON.
    """
    try:
        with file.open("rb") as opened:
            pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        found = msgspec.json.decode(pages, type=_Lists)
    except (OSError, ValueError, RecursionError):
        return None
    return {name: Entries(getattr(found, name), pages) for name in LISTS}


def check_entry(entry: Any, needed: Mapping[str, type], where: str) -> None:
    """DataError for an entry that lacks something, or whose file lies outside of the folder."""
    wrong = [n for n, kind in needed.items() if not isinstance(entry, Mapping) or not isinstance(entry.get(n), kind)]
    if wrong:
        raise DataError(f"{where} lacks {', '.join(f'{name} ({needed[name].__name__})' for name in wrong)}")
    name = PurePath(entry.get("file_name", ""))
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{where} names the file {str(name)!r}, which is outside of the folder")


def read_categories(file: Path, entries: Sequence[Mapping[str, Any]]) -> tuple[LabelMap, dict[int, int]]:
    """Classes in the order of their COCO ids, and the class id of each COCO id; those without `isthing` are things."""
    table = sorted(entries, key=lambda entry: entry["id"])
    class_of = {entry["id"]: i for i, entry in enumerate(table)}
    ids = [entry["id"] for entry in table]
    if len(class_of) < len(table):
        raise DataError(f"{file}: category id {some([i for i in class_of if ids.count(i) > 1])} is listed twice")
    colours = [tuple(entry["color"]) if isinstance(entry.get("color"), list) else () for entry in table]
    ignore = 255 if len(table) <= 255 else 65535
    things = tuple(i for i, entry in enumerate(table) if entry.get("isthing", 1))
    palette = tuple(colours) if all(colours) else ()
    own = () if ids == [*range(1, len(ids) + 1)] else tuple(ids)
    try:
        labels = LabelMap(tuple(entry["name"] for entry in table), palette, ignore, things, own)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
    return labels, class_of


def coco_ids(labels: LabelMap) -> Sequence[int]:
    """The COCO id of every class."""
    return labels.category_ids or range(1, labels.num_classes + 1)


def one_folder(folders: Sequence[Path], what: str, names: Collection[str] = ()) -> Path:
    """The first folder that is there and has, where some are given, one of these files; else FileNotFoundError."""
    for folder in folders:
        if folder.is_dir() and (not names or any((folder / name).is_file() for name in names)):
            return folder
    such = f", such as {next(iter(names))}" if names else ""
    raise FileNotFoundError(f"no folder with {what}{such}; looked for {', '.join(map(str, dict.fromkeys(folders)))}")
