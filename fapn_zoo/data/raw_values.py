"""What a data set stores, and the class that each stored value is: numbers, RGB colours, or names. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fapn_zoo.runtime.tables import some

Colour = tuple[int, int, int]
Raw = int | str | Colour
UNKNOWN, IGNORED = -1, -2  # in tables of class ids
DEEPEST = 1 << 16  # values below it are looked up in a table
FEW = 16  # colours: more were drawn by no labelling tool


@dataclass(frozen=True)
class RawValues:
    """How stored values become class ids.

    Attributes:
        classes: stored value -> class id; several values may be of one class. An RGB colour is a triple of 0..255.
        ignored: stored values that are of no class: pixels become the ignore index, objects are left out.
    """

    classes: Mapping[Raw, int]
    ignored: frozenset[Raw] = frozenset()

    @classmethod
    def of_lists(cls, values: Sequence[Any], ignored: Sequence[Any], names: Sequence[str]) -> RawValues:
        """From a list of stored values per class, as `classes.json` has them: [[7], [8, 9]], [[[0, 0, 128]], ...].

        A class of one number or name may stand without its brackets. `names` are those of the classes.

        Raises:
            ValueError: not a list per class, a class without a value, a value twice, values of different kinds, or one
                that is no value.
        """
        if not isinstance(values, (list, tuple)) or len(values) != len(names):
            raise ValueError(f"values must be a list with the stored values of each of the {len(names)} classes")
        classes: dict[Raw, int] = {}
        for i, own in enumerate(values):
            listed = [_raw(value) for value in (own if isinstance(own, (list, tuple)) else [own])]
            if not listed:
                raise ValueError(f"class {names[i]!r} has no value")
            for value in listed:
                if value in classes:
                    hint = "; a colour is written [[r, g, b]]" if type(value) is int and len(listed) == 3 else ""
                    both = f"{names[classes[value]]!r} and {names[i]!r}"
                    raise ValueError(f"value {shown(value)} stands at class {both}{hint}")
                classes[value] = i
        if not isinstance(ignored, (list, tuple)):
            raise ValueError(f"ignored_values must be a list of stored values, not {ignored!r}")
        found = cls(classes, frozenset(map(_raw, ignored)))
        if len(kinds := {type(value).__name__ for value in (*classes, *found.ignored)}) > 1:
            raise ValueError(f"stored values must be of one kind, not {', '.join(sorted(kinds))}")
        if both := [value for value in classes if value in found.ignored]:
            raise ValueError(f"value {shown(both[0])} is of class {names[classes[both[0]]]!r} and ignored")
        return found

    @property
    def colours(self) -> bool:
        """Whether the values are RGB colours."""
        return isinstance(next(iter(self.classes)), tuple)

    def of_class(self, i: int) -> list[Raw]:
        """The stored values of a class."""
        return [value for value, k in self.classes.items() if k == i]

    def class_of(self, *words: Raw) -> int | None:
        """The class of an object that is known by these numbers or names; None where it is left out.

        ValueError where none of them is of a class or ignored.
        """
        for value in words:
            if value in self.ignored:
                return None
            if value in self.classes:
                return self.classes[value]
        allowed = some(map(shown, self.classes), 20)
        raise ValueError(f'{some(map(shown, words))} is in no "values" and no "ignored_values"; known: {allowed}')

    def ids(self, stored: np.ndarray, ignore_index: int, where: str = "") -> np.ndarray:
        """Class ids (H, W), uint8 or int32, of stored pixels: (H, W) integers, or (H, W, 3) uint8 of RGB.

        ValueError, which begins with `where`, for values of no class that are not ignored, with their shares.
        """
        codes = packed(stored) if self.colours else stored
        ids = self._look_up(codes)
        if (ids == UNKNOWN).any():
            raise ValueError(f"{where}{self._strange(codes, ids)}")
        ids[ids == IGNORED] = ignore_index
        return ids.astype(np.uint8 if max(*self.classes.values(), ignore_index) < 256 else np.int32)

    def _look_up(self, codes: np.ndarray) -> np.ndarray:
        """int32 class ids of integers, with `UNKNOWN` and `IGNORED`."""
        high = int(codes.max(initial=0))
        if codes.min(initial=0) >= 0 and high < min(DEEPEST, codes.size):
            return self._search(np.arange(high + 1))[codes]
        return self._search(codes)

    def _search(self, codes: np.ndarray) -> np.ndarray:
        keys, found = self._table
        places = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
        return np.where(keys[places] == codes, found[places], np.int32(UNKNOWN))

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        known = {_code(v): i for v, i in self.classes.items()} | {_code(v): IGNORED for v in self.ignored}
        keys = np.array(sorted(known), np.int64)
        return keys, np.array([known[key] for key in keys.tolist()], np.int32)

    def _strange(self, codes: np.ndarray, ids: np.ndarray) -> str:
        values, number = np.unique(codes[ids == UNKNOWN], return_counts=True)
        found = some(shares(dict(zip(values.tolist(), number.tolist(), strict=True)), ids.size, self.colours), 8)
        if self.colours and len(values) > FEW:
            return f"{len(values)} colours of no class, such as {found}: was the mask resized, or saved as JPEG?"
        first = [list(unpacked(v)) if self.colours else v for v in values.tolist()[:3]]
        fix = f'add them in classes.json to the "values" of a class, or to "ignored_values": {first}'
        return f"stored values of no class: {found}; {fix}"


def packed(colours: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> int32 (...): 65536 red + 256 green + blue."""
    red, green, blue = (colours[..., c].astype(np.int32) for c in range(3))
    return (red << 16) | (green << 8) | blue


def unpacked(code: int) -> Colour:
    """The colour of a packed one."""
    return code >> 16, code >> 8 & 255, code & 255


def shares(counts: Mapping[int, int], total: int, colours: bool = False) -> list[str]:
    """Words for values, or packed colours, and their pixels: "7 (12.50%)", the most frequent first."""
    found = sorted(counts.items(), key=lambda pair: -pair[1])
    return [f"{shown(unpacked(v)) if colours else v} ({n / max(total, 1):.2%})" for v, n in found]


def shown(value: Raw) -> str:
    """A stored value in a sentence."""
    return f"rgb{value}".replace(" ", "") if isinstance(value, tuple) else repr(value)


def _code(value: Raw) -> int:
    return value if isinstance(value, int) else int(packed(np.array(value, np.uint8)))


def _raw(value: Any) -> Raw:
    """A stored value as JSON has it; ValueError for anything else."""
    if type(value) in (int, str):
        return value
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return tuple(value)
    raise ValueError(f"{value!r} is no stored value: expected a whole number, a name, or a colour [r, g, b] of 0..255")
