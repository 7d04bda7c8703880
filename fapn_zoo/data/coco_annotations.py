"""Annotated objects, each looked at once: what is used of them, and all that is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fapn_zoo.data.mask_decoding import Shape
from fapn_zoo.data.sample import DataError

NUMBERS = frozenset((int, float))  # and no truth values
ROUNDING = 0.5  # pixels that a box may reach out of its picture without a word
BAD_BOX, BAD_MASK, BAD_ENTRY = "bad box", "bad mask", "entry of another form"
TWICE, UNKNOWN = "listed twice", "of nothing that is listed"
OUTSIDE, FLAT, PARTS = "boxes that reach out", "boxes without area", "polygons of fewer than 3 points"
SAME_ID, GROUP = "ids of several annotations", "row that is no class"


class Fault(NamedTuple):
    """Something about one entry: its kind, a sentence that names it, whether it keeps its file from being used."""

    kind: str
    text: str
    error: bool = True
    file: Path | None = None


class Annotation(NamedTuple):
    """One object.

    Attributes:
        name: for messages: "annotation 7".
        category: class id.
        box: x1, y1, x2, y2 as annotated; None where the one around the mask is meant.
        area: in pixels, as annotated; None where it is not.
        shape: its mask; None where there is none.
    """

    name: str
    category: int
    crowd: bool
    box: tuple[float, float, float, float] | None
    area: float | None
    shape: Shape | None


@dataclass
class Picture:
    """An image of a split and its objects.

    Attributes:
        size: (height, width). path: of the picture. source: the file with its objects, None where they have none.
    """

    id: int | str
    file_name: str
    size: tuple[int, int]
    objects: Sequence[Annotation] = field(default_factory=list)
    path: Path = Path()
    source: Path | None = None


class Refused(Exception):
    """What is wrong with an annotation, in a few words, after its kind."""


def annotation(
    entry: Mapping[str, Any], name: str, where: str, category: int, size: tuple[int, int], faults: list[Fault]
) -> Annotation:
    """An object of COCO's `bbox`, `segmentation`, `iscrowd` and `area`, all but the first two optional, and checked.

    Args:
        name, where: for messages, without and with its picture. category: its class id. size: (H, W) of its picture.
        faults: gets what is worth knowing.

    Raises:
        Refused: it cannot be used.
    """
    crowd, area = entry.get("iscrowd") or 0, entry.get("area")
    if crowd not in (0, 1):
        raise Refused(BAD_ENTRY, f"{where} has iscrowd {crowd!r}; expected 0 or 1")
    if area is not None and not (_is_number(area) and area >= 0):
        raise Refused(BAD_ENTRY, f"{where} has area {area!r}; expected a number of 0 or more")
    shape = _shape(entry.get("segmentation"), where, size, faults)
    box = _box(entry.get("bbox"), where, size, shape is not None, faults)
    return Annotation(name, category, bool(crowd), box, None if area is None else float(area), shape)


def _is_number(value: Any) -> bool:
    return type(value) in NUMBERS and math.isfinite(value)


def _are_numbers(values: list[Any]) -> bool:
    kinds = [*map(type, values)]
    plain = kinds.count(float) == len(kinds) and math.isfinite(sum(values))  # nearly all are: a fifth of the time
    return plain or all(map(_is_number, values))


def _box(
    values: Any, where: str, size: tuple[int, int], has_mask: bool, faults: list[Fault]
) -> tuple[float, float, float, float] | None:
    if values is None or values == []:
        if not has_mask:
            raise Refused(BAD_BOX, f"{where} has neither a bbox nor a segmentation")
        return None
    if not isinstance(values, list) or len(values) != 4 or not _are_numbers(values):
        raise Refused(BAD_BOX, f"{where} has bbox {values!r}; expected four numbers: x, y, width, height")
    x, y, width, height = map(float, values)
    if min(width, height) < 0 or (min(width, height) == 0 and not has_mask):
        raise Refused(BAD_BOX, f"{where} has bbox {values}: width and height must be above 0")
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        what = f"has bbox {values}, which is outside of its picture of {size[1]}x{size[0]}"
        if min(width, height) > 0:
            raise Refused(BAD_BOX, f"{where} {what}")
    beyond = max(-x, -y, x + width - size[1], y + height - size[0])
    if beyond > ROUNDING:
        faults.append(Fault(OUTSIDE, f"{where} reaches out by {beyond:.5g} pixels", error=False))
    if min(width, height) == 0:
        faults.append(Fault(FLAT, f"{where} has bbox {values}; it is not trained", error=False))
    return x, y, x + width, y + height


def _shape(values: Any, where: str, size: tuple[int, int], faults: list[Fault]) -> Shape | None:
    if not values or values == [[]]:
        return None
    if isinstance(values, Mapping):
        return _runs(values, where, size)
    if not isinstance(values, list) or not {list}.issuperset(map(type, values)):
        raise Refused(BAD_MASK, f"{where} has segmentation {_short(values)}; expected polygons or run lengths")
    parts = []
    for part in values:
        if len(part) % 2 or not _are_numbers(part):
            raise Refused(BAD_MASK, f"{where} has a polygon {_short(part)}; expected numbers x, y, x, y, ...")
        if len(part) >= 6:
            parts.append(np.array(part, np.float64))
    if not parts:
        raise Refused(BAD_MASK, f"{where} has a polygon of {len(values[0]) // 2} points; expected 3 or more")
    if len(parts) < len(values):
        text = f"{where}: {len(values) - len(parts)} of its {len(values)} polygons have fewer than 3 points"
        faults.append(Fault(PARTS, f"{text} and are left out", error=False))
    return tuple(parts)


def _runs(values: Mapping[str, Any], where: str, size: tuple[int, int]) -> Shape:
    counts, theirs = values.get("counts"), values.get("size")
    if theirs != list(size):
        shown = "x".join(map(str, theirs[::-1])) if isinstance(theirs, list) else repr(theirs)
        raise Refused(BAD_MASK, f"{where} has run lengths of a picture of {shown}, its own is {size[1]}x{size[0]}")
    if isinstance(counts, str):
        return counts.encode("ascii", "replace")
    if not isinstance(counts, list) or not all(type(n) is int for n in counts):
        raise Refused(BAD_MASK, f"{where} has run lengths {_short(counts)}; expected whole numbers or a text")
    return np.array(counts, np.int64)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def summary(faults: Sequence[Fault], error: bool) -> Iterator[str]:
    """A sentence for every kind, in the order in which they were found: the first, and how many more there are."""
    kinds: dict[str, list[Fault]] = {}
    for fault in faults:
        if fault.error == error:
            kinds.setdefault(fault.kind, []).append(fault)
    for kind, found in kinds.items():
        more = f" ({kind}: {len(found) - 1:,} more)" if len(found) > 1 else ""
        yield f"{found[0].text}{more}"


def check_faults(faults: Sequence[Fault], root: Path, strict: bool) -> None:
    """DataError where some of them are errors and a data set is opened as `strict`."""
    if strict and (errors := list(summary(faults, error=True))):
        more = f"; {len(errors) - 1} other kinds of errors too, fapn-zoo check-data {root} lists all"
        raise DataError(f"{errors[0]}{more * (len(errors) > 1)}")
