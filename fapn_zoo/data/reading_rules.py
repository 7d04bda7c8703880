"""By what rules the files of pictures become pixels: the same for training, evaluation and prediction. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fapn_zoo.runtime.files import read_json
from fapn_zoo.zoo.spec import DataSpec, check_reading

LEVELS = (255, 1023, 4095, 16383, 65535)  # white of 8, 10, 12, 14 and 16 bits


@dataclass(frozen=True)
class Reading:
    """How pictures are read.

    Attributes:
        white_level: the stored value that becomes 255, for integers deeper than 8 bits and for floating point; None
            where nobody has said: then 65535 of 16 bits, and 1 of floating point. Files that state their own white keep
            it: 8 bits, the maxval of a PPM, the bits of a JPEG 2000 or TIFF that are not 16 or 32.
        exif: "apply": pictures and labels are turned as their own EXIF orientation says; "ignore": neither is. None
            where nobody has said: then they are turned.
        in_chans: channels of the pixels.
        otherwise: what counts where neither this nor the data says anything; the rules of a model that is evaluated.

    Raises:
        ValueError: a value out of its range.
    """

    white_level: float | None = None
    exif: str | None = None
    in_chans: int = 3
    otherwise: Reading | None = None

    def __post_init__(self) -> None:
        check_reading(self.white_level, "apply" if self.exif is None else self.exif)
        if type(self.in_chans) is not int or self.in_chans < 1:
            raise ValueError(f"in_chans={self.in_chans!r}; expected a whole number of 1 or more")

    @property
    def turns(self) -> bool:
        """Whether pictures and labels are turned as their EXIF orientation says."""
        return self.exif != "ignore"

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `load_image`."""
        return {"in_chans": self.in_chans, "white_level": self.white_level, "exif": self.exif or "apply"}

    def of_folder(self, root: Path) -> Reading:
        """These rules for a data folder: what they leave open is filled by its `classes.json`, then by `otherwise`.

        Raises:
            ValueError: `classes.json` says something else than these rules, or something that makes no sense.
        """
        file, last = root / "classes.json", self.otherwise or Reading()
        said = read_json(file) if file.is_file() else {}
        found = {}
        for name in ("white_level", "exif"):
            mine, theirs = getattr(self, name), said.get(name)
            if mine is not None and theirs is not None and mine != theirs:
                raise ValueError(
                    f"{name} is {mine}, but {file} says {theirs}; leave one of them out, or make them equal"
                )
            first = theirs if mine is None else mine
            found[name] = getattr(last, name) if first is None else first
        try:
            return Reading(**found, in_chans=self.in_chans)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def plain(self) -> Reading:
        """These rules for data without a folder."""
        last = self.otherwise or self
        return Reading(self.white_level or last.white_level, self.exif or last.exif, self.in_chans)

    @classmethod
    def of_model(cls, data: DataSpec, white_level: float | None = None, exif: str | None = None) -> Reading:
        """The rules that a model was trained with; what is given wins."""
        return cls(data.white_level if white_level is None else white_level, exif or data.exif, len(data.mean))

    def replace(self, **changes: Any) -> Reading:
        return dataclasses.replace(self, **changes)


def read_rules(root: Path, reading: Reading | None) -> Reading:
    """`Reading.of_folder` of these rules, or of none."""
    return (reading or Reading()).of_folder(root)


def reading_of(dataset: Any) -> Reading:
    """The rules of a data set; the usual ones for a class of the user's own that knows none."""
    return getattr(dataset, "reading", None) or Reading()


def joined_reading(parts: Sequence[Reading]) -> Reading:
    """What several data sets have in common, each of which is read by its own rules; None where they differ."""
    levels = {part.white_level for part in parts} - {None}  # where nobody has said, pictures have mostly 8 bits
    turns = {part.exif or "apply" for part in parts}
    level, exif = (values.pop() if len(values) == 1 else None for values in (levels, turns))
    return Reading(level, exif, parts[0].in_chans)


def proposed_level(high: float, real: bool = False) -> str:
    """The white level to propose where this is the highest value: that of the fewest bits that hold it.

    Of floating point (`real`) it is 1, 255, or the value itself, rounded up.
    """
    if real:
        return f"{next((level for level in (1, 255) if level >= high), math.ceil(high))}"
    return f"{next((level for level in LEVELS if level >= high), high):.10g}"
