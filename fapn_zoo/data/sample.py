"""One sample and one data set, as training and evaluation know them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.reading_rules import Reading


class DataError(ValueError):
    """A data set, or one file of it, that cannot be used; the message names the file and says why."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The M segments of an image, things and stuff; a pixel belongs to one of them or to none. M may be 0.

    Attributes:
        ids: (H, W) int32; object m has the value m + 1, 0 is none (void).
        classes: (M,) int64 class ids.
        crowd: (M,) bool: many objects of one class in one segment.
    """

    ids: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray

    @cached_property
    def areas(self) -> np.ndarray:
        """(M,) int64, in pixels."""
        return np.bincount(self.ids.ravel(), minlength=len(self.classes) + 1)[1:]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known of it.

    Attributes:
        image: (C, H, W), uint8 or float32, 0..255, RGB or bands, as `load_image` gives it.
        name: of the image's file, without its ending.
        labels: (H, W) class ids (uint8 or int32), the data set's ignore index where no class is; None if not asked for.
        objects: its segments; None if not asked for.
    """

    image: Tensor
    name: str
    labels: np.ndarray | None = None
    objects: Objects | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return tuple(self.image.shape[1:])

    def only(self, needs: Collection[str]) -> Sample:
        """Without what is not needed: "labels", "segments"."""
        labels = self.labels if "labels" in needs else None
        return dataclasses.replace(self, labels=labels, objects=self.objects if "segments" in needs else None)


class Dataset(Protocol):
    """Samples in a fixed order.

    Attributes:
        name: for reports and errors.
        labels: names, colours and things of the classes.
        holds: what its samples have: "labels", "segments".
        reading: how its pictures are read.
    """

    name: str
    labels: LabelMap
    holds: frozenset[str]
    reading: Reading

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Reads sample `index` (0..len-1); `DataError` names a file that is bad."""

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of sample `index`, without decoding it."""

    def files(self, index: int) -> tuple[Path, ...]:
        """The files that sample `index` is read from; none where it is generated."""


LABELS = frozenset({"labels"})
SEGMENTS = frozenset({"labels", "segments"})


def check_holds(dataset: Dataset, needs: Collection[str], what: str) -> None:
    """ValueError where a data set lacks what `what` needs of its samples."""
    missing = sorted(set(needs) - dataset.holds)
    if missing:
        hint = "give a folder in COCO's panoptic format, or scenes:N"
        raise ValueError(f"{dataset.name} has no {' and no '.join(missing)}, which {what} needs; {hint}")
