"""Tables of classes as tools write them beside masks, and what to ask for where there is none."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fapn_zoo.data.folders import read_label_map
from fapn_zoo.data.formats.common import said
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.raw_values import packed, shares, unpacked
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.files import read_text
from fapn_zoo.runtime.tables import some

LOOKED_AT = 200  # masks, where nobody says which classes there are


def find_classes(root: Path, folders: Sequence[Path], file: str | None, num_classes: int | None) -> LabelMap | None:
    """The classes that a file says, else `classes.json` of the folder, else a table of a tool; None where none does.

    Args:
        folders: where tables are looked for. file: relative to `root`. num_classes: that must be theirs.

    Raises:
        DataError: a table that cannot be used, or another number of classes.
    """
    if file is None and said(root).get("names"):
        return read_label_map(root, num_classes)
    there = [(folder / name, read) for name, read in TABLES.items() for folder in (root, *folders)]
    path, read = (
        (root / file, TABLES.get(Path(file).name, LabelMap.from_json))
        if file
        else next((one for one in there if one[0].is_file()), (None, None))
    )
    if path is None:
        return None
    try:
        labels = read(path)
    except (ValueError, OSError) as error:
        raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    check_number(num_classes, labels, path)
    return labels


def check_number(num_classes: int | None, labels: LabelMap, where: object) -> None:
    """DataError where another number of classes is asked for."""
    if num_classes not in (None, labels.num_classes):
        raise DataError(f"num_classes is {num_classes}, but {where} names {labels.num_classes} classes")


def wanted(title: str, count: int, stored: Callable[[int, bool], np.ndarray], way: str) -> str:
    """What the first masks hold, and a `classes.json` to fill in.

    Args:
        title: of the data. count: of its masks. stored: mask `i` as numbers (H, W), or as colours (H, W, 3).
        way: what to do with the file.

    Raises:
        DataError: some hold colours and some numbers, or neither.
    """
    counts: Counter[int] = Counter()
    colours = None
    for i in range(min(count, LOOKED_AT)):
        try:
            values, own = stored(i, False), False
        except DataError:
            values, own = packed(stored(i, True)), True
        if colours not in (None, own):
            raise DataError(f"{title}: mask {i} holds {'colours' if own else 'numbers'}, and those before it do not")
        colours = own
        counts.update(dict(zip(*(a.tolist() for a in np.unique(values, return_counts=True)), strict=True)))
    found = some(shares(counts, sum(counts.values()), bool(colours)), 30)
    void = not colours and 255 in counts and len(counts) > 2  # 0 and 255 alone are two classes
    kept = [list(unpacked(v)) if colours else v for v in sorted(counts) if not (void and v == 255)][:30]
    form: dict[str, Any] = {"names": [f"class_{i}" for i in range(len(kept))], "values": [[v] for v in kept]}
    form |= {"ignored_values": [255]} if void else {}
    text = f"{title} does not name its classes. Stored in {min(count, LOOKED_AT)} masks: {found}."
    return f"{text} {way}, with your names: {json.dumps(form)}"


def read_labelmap(file: Path) -> LabelMap:
    """CVAT's table: a line `name:red,green,blue:parts:actions` per class. ValueError for another form."""
    names, colours = [], []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"(.+?):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:.*)?", line.strip())
        if match is None:
            raise ValueError(f"{file}: line {number} is {line!r}; expected name:red,green,blue:parts:actions")
        names.append(match[1])
        colours.append(tuple(map(int, match.groups()[1:4])))
    return LabelMap(tuple(names), tuple(colours), 255, values=tuple((colour,) for colour in colours))


def read_classes_csv(file: Path) -> LabelMap:
    """Roboflow's table, with the columns `Pixel Value` and `Class`. ValueError for another form."""
    try:
        pairs = [(int(row["Pixel Value"]), row["Class"].strip()) for row in _rows(file)]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{file}: expected the columns Pixel Value and Class, with whole numbers and names") from None
    return LabelMap(tuple(name for _, name in pairs), values=tuple((value,) for value, _ in pairs))


def read_class_dict(file: Path) -> LabelMap:
    """A table with the columns `name`, `r`, `g` and `b`. ValueError for another form."""
    rows = [{key.strip().lower(): value for key, value in row.items() if key} for row in _rows(file)]
    try:
        colours = tuple(tuple(int(row[channel]) for channel in "rgb") for row in rows)
        names = tuple(row["name"].strip() for row in rows)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{file}: expected the columns name, r, g and b") from None
    return LabelMap(names, colours, 255, values=tuple((colour,) for colour in colours))


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(read_text(file)), skipinitialspace=True))


# What CVAT, Roboflow, and data sets on Kaggle write.
TABLES: Mapping[str, Callable[[Path], LabelMap]] = {
    "labelmap.txt": read_labelmap,
    "_classes.csv": read_classes_csv,
    "class_dict.csv": read_class_dict,
}
