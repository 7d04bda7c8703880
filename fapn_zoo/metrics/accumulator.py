"""What all metrics share: int64 counts that add up, travel as plain arrays, and say what they count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

# Shares 0..1 are summed as multiples of 2**-40: exact whatever the order, off by less than 5e-13 each; eight million of
# them fit into 63 bits.
UNIT = 1 << 40


Ids = Tensor | np.ndarray


class Tally(Protocol):
    """What has been counted of some images; scores are made of it."""

    def merge(self, other: Self) -> Self:
        """Adds what another tally of the same settings has counted; returns self. ValueError when the two differ."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All that has been counted, in arrays of fixed dtypes that share no memory with the tally."""

    def load(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """Replaces what is held by what `arrays` gave; returns self. ValueError names what does not fit."""


class Accumulator:
    """Counts in one int64 tensor, so the order of images and the number of processes change no digit of a score.

    Args:
        shape: of `counts`.
        settings: what is counted and how, as plain JSON values; only accumulators of equal settings can be added.
    """

    def __init__(self, shape: tuple[int, ...], **settings: Any) -> None:
        self.settings = settings
        self.counts = torch.zeros(shape, dtype=torch.int64)

    def merge(self, other: Self) -> Self:
        """Adds the counts of another accumulator; returns self. ValueError when the two do not count the same thing."""
        check_mergeable(self, other)
        self.counts += other.counts
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """A copy of the counts, {"counts": int64 of their shape}."""
        return {"counts": self.counts.numpy().copy()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """Replaces the counts by what `arrays` gave; returns self. ValueError: another name, dtype or shape."""
        check_arrays(arrays, self.arrays())
        self.counts = torch.tensor(arrays["counts"])
        return self


class Tallies(dict[str, Accumulator]):
    """Accumulators that count the same images, by name; together they are one tally."""

    def merge(self, other: Self) -> Self:
        """Adds each of the other's accumulators to that of its name; returns self. ValueError when they differ."""
        if other.keys() != self.keys():
            raise ValueError(f"cannot merge {', '.join(other)} into {', '.join(self)}")
        for name, part in self.items():
            part.merge(other[name])
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of all, each under the accumulator's name, a dot, and its own."""
        return {f"{name}.{key}": array for name, part in self.items() for key, array in part.arrays().items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """Replaces all counts by what `arrays` gave; returns self. ValueError names what does not fit."""
        check_arrays(arrays, self.arrays())
        for name, part in self.items():
            part.load({"counts": arrays[f"{name}.counts"]})
        return self


def as_array(values: Any) -> np.ndarray:
    """A tensor of any device, an array, or a list as an array; floats of two bytes become float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype.is_floating_point and values.element_size() < 4 else values).numpy()
    return np.asarray(values)


def check_mergeable(mine: Any, other: Any) -> None:
    """ValueError that shows what differs, unless both are of one class and have equal `settings`."""
    if type(other) is not type(mine):
        raise ValueError(f"cannot merge {type(other).__name__} into {type(mine).__name__}")
    names = [name for name, value in mine.settings.items() if other.settings[name] != value]
    if names:
        shown = [{name: one.settings[name] for name in names} for one in (other, mine)]
        raise ValueError(f"cannot merge {shown[0]} into {shown[1]}")


def check_arrays(arrays: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray], any_length: bool = False) -> None:
    """ValueError unless the names, dtypes and shapes, `any_length`: but for their first side, are those of `like`."""
    if arrays.keys() != like.keys():
        raise ValueError(f"cannot load arrays {', '.join(arrays) or 'none'}: expected {', '.join(like)}")
    for name, right in like.items():
        array = arrays[name]
        same = array.dtype == right.dtype and array.ndim == right.ndim
        if not same or array.shape[any_length:] != right.shape[any_length:]:
            shown = [f"{one.dtype} {one.shape}" for one in (right, array)]
            raise ValueError(f"cannot load {name}: expected {shown[0]}, got {shown[1]}")
