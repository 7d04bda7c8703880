"""The class names and colours of a data set, and the id that means "do not count this pixel". No torch here."""

from __future__ import annotations

import colorsys
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fapn_zoo.data.raw_values import Colour, Raw, RawValues
from fapn_zoo.runtime.files import load_json
from fapn_zoo.runtime.tables import some
from fapn_zoo.zoo.registry import nearest
from fapn_zoo.zoo.spec import as_tuples

MAX_ID = 65535  # label files hold 8 or 16 bits per pixel
KEYS = ("names", "palette", "ignore_index", "num_classes", "things", "category_ids", "white_level", "exif")
KEYS += ("first_pixel", "void_name", "void_colour", "values", "ignored_values", "masks")  # of a classes.json


def default_palette(n: int) -> tuple[Colour, ...]:
    """`n` different RGB colours (0..255), always the same ones; the first k of a longer palette equal a palette of k.

    The hue walks the colour circle by the golden ratio, so that neighbours in the list are far apart; saturation and
    brightness walk their own ranges by the two steps of the plane's evenest sequence. Black stays free for void.
    """
    if n < 0:
        raise ValueError(f"a palette needs n >= 0, not {n}")
    colours: dict[Colour, None] = {}  # a dict keeps the order and refuses repeats
    i = 0
    while len(colours) < n:
        hue = (0.03 + i * 0.6180339887498949) % 1.0
        saturation = 0.45 + 0.55 * ((0.9 + i * 0.7548776662466927) % 1.0)
        value = 0.50 + 0.50 * ((0.8 + i * 0.5698402909980532) % 1.0)
        colours[tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))] = None
        i += 1
    return tuple(colours)


@dataclass(frozen=True)
class LabelMap:
    """Names and colours of the classes; the index is the class id.

    Args:
        names: one name per class, no two equal.
        palette: one RGB triple (ints 0..255) per class; left empty, `default_palette` fills it.
        ignore_index: the pixel value that belongs to no class, 0..65535. It must lie outside the class ids, except
            for 0: label files often use 0 for "unlabelled", and then class 0 is named but never trained or scored.
        things: ids of the classes whose objects are counted, in any order, kept in increasing order; the other classes
            are stuff. Empty where a data set knows no objects.
        category_ids: the COCO id of every class, with which predictions are written; empty where it is the class id
            plus 1.
        values: what the data set stores for every class, such as ((7,), (8, 9)), (((128, 64, 128),),) or (("car",),):
            numbers or colours of pixels, categories of objects; several become one class. Empty where it is the id.
        ignored_values: stored values that are of no class: pixels become `ignore_index`, objects are left out.

    Raises:
        ValueError: lengths differ, a name or a thing repeats, a colour, the ignore index or a thing is out of range;
            or as `RawValues.of_lists`.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...] = ()
    ignore_index: int = 255
    things: tuple[int, ...] = ()
    category_ids: tuple[int, ...] = ()
    values: tuple[Any, ...] = ()
    ignored_values: tuple[Raw, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise ValueError(f"names must be a list of strings, not the single string {self.names!r}")
        names = tuple(self.names)
        bad = [n for n in names if not isinstance(n, str) or not n.strip()]
        if bad or not names:
            raise ValueError(f"class names must be non-empty strings, at least one; got {bad[:5] or 'none'}")
        if len(names) > MAX_ID:
            raise ValueError(f"{len(names)} classes; label files hold at most {MAX_ID}, and one value to ignore")
        bad = [n for n in names if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in n)]
        if bad:
            raise ValueError(f"class names must be one line of text; got {some(map(ascii, bad))}")
        if repeated := sorted(name for name, times in Counter(names).items() if times > 1):
            raise ValueError(f"class names must differ; repeated: {some(map(repr, repeated))}")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "palette", _checked_palette(self.palette, names))
        object.__setattr__(self, "things", _checked_things(self.things, names))
        object.__setattr__(self, "category_ids", _checked_categories(self.category_ids, names))
        value, count = self.ignore_index, len(names)
        if type(value) is not int or not 0 <= value <= MAX_ID:
            raise ValueError(f"ignore_index must be an integer in 0..{MAX_ID}, not {value!r}")
        if 0 < value < count:
            hint = f"with {count} classes take 0 (class 0 is then ignored) or a value in {count}..{MAX_ID}"
            raise ValueError(f"ignore_index {value} is also the id of class {names[value]!r}; {hint}")
        if self.ignored_values and not self.values:
            object.__setattr__(self, "values", tuple((i,) for i in range(count)))
        for key in ("values", "ignored_values"):
            object.__setattr__(self, key, as_tuples(getattr(self, key)))
        if self.raw is not None:
            object.__setattr__(self, "values", tuple(tuple(self.raw.of_class(i)) for i in range(count)))

    @cached_property
    def raw(self) -> RawValues | None:
        """How stored values become class ids; None where they are the class ids."""
        return RawValues.of_lists(self.values, self.ignored_values, self.names) if self.values else None

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @classmethod
    def default(cls, num_classes: int) -> LabelMap:
        """Classes named class_0, class_1, ...; the ignore index is 255, or 65535 where 255 is itself a class."""
        if type(num_classes) is not int or num_classes < 1:
            raise ValueError(f"num_classes must be an integer >= 1, not {num_classes!r}")
        if num_classes > MAX_ID:
            raise ValueError(f"num_classes is {num_classes}; label files hold at most {MAX_ID} classes")
        return cls(tuple(f"class_{i}" for i in range(num_classes)), (), _default_ignore(num_classes))

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> LabelMap:
        """Read a `classes.json`: `names`, and optionally the other attributes and `num_classes`.

        `white_level`, `exif`, `first_pixel` and `masks` may be there too; they are of the files, not of the classes.
        Other keys are refused.

        Raises:
            FileNotFoundError: no such file.
            ValueError: naming the file and what is wrong in it; `num_classes` must equal the number of names.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no class file {path}")
        data = load_json(path, strict=True)
        names = data.get("names") if isinstance(data, dict) else None
        if not isinstance(names, list):
            found = f"names is {names!r}; " if isinstance(data, dict) and "names" in data else ""
            form = '{"names": ["road", "car"]}'
            raise ValueError(f'{path}: {found}expected an object with a list "names", such as {form}')
        for key in data:
            if key not in KEYS:
                near = nearest(key.lower(), KEYS, 2)
                raise ValueError(f"{path}: unknown key {key!r}{near}; known keys: {', '.join(KEYS)}")
        count = data.get("num_classes")
        if count is not None and count != len(names):
            raise ValueError(f"{path}: num_classes is {count!r}, but names lists {len(names)}")
        given = {key: value for key, value in data.items() if value is not None}
        ignore = given.get("ignore_index", _default_ignore(len(names)))
        try:
            own = [given.get(key, ()) for key in ("things", "category_ids", "values", "ignored_values")]
            return cls(tuple(names), given.get("palette", ()), ignore, *own)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _default_ignore(num_classes: int) -> int:
    return 255 if num_classes <= 255 else MAX_ID


def _checked_palette(palette: Sequence, names: tuple[str, ...]) -> tuple[Colour, ...]:
    if not isinstance(palette, (list, tuple)):
        raise ValueError(f"the palette must be a list of RGB triples, not {palette!r}")
    if len(palette) == 0:
        return default_palette(len(names))
    if len(palette) != len(names):
        raise ValueError(f"the palette has {len(palette)} colours for {len(names)} class names")
    for name, colour in zip(names, palette, strict=True):
        fits = isinstance(colour, (list, tuple)) and len(colour) == 3
        if not fits or not all(type(v) is int and 0 <= v <= 255 for v in colour):
            raise ValueError(f"colour of class {name!r} must be three integers in 0..255, not {colour!r}")
    return tuple(tuple(colour) for colour in palette)


def _checked_categories(ids: Sequence, names: tuple[str, ...]) -> tuple[int, ...]:
    fits = isinstance(ids, (list, tuple)) and all(type(i) is int for i in ids)
    if not fits or (ids and (len(ids) != len(names) or len(set(ids)) < len(ids))):
        raise ValueError(f"category_ids must be a different integer for each of the {len(names)} classes, not {ids!r}")
    return tuple(ids)


def _checked_things(things: Sequence, names: tuple[str, ...]) -> tuple[int, ...]:
    if not isinstance(things, (list, tuple)):
        raise ValueError(f"things must be a list of class ids, not {things!r}")
    bad = [i for i in things if type(i) is not int or not 0 <= i < len(names)]
    bad = bad or [i for i, times in Counter(things).items() for _ in range(times) if times > 1]
    if bad:
        raise ValueError(f"things must be different class ids in 0..{len(names) - 1}; got {some(map(repr, bad))}")
    return tuple(sorted(things))
