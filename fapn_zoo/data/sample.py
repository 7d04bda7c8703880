"""One sample and one data set, as training and evaluation know them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.reading_rules import Reading


class DataError(ValueError):
    """A data set, or one file of it, that cannot be used; the message names the file and says why."""


class Crop(NamedTuple):
    """An object's mask cut to the rectangle it covers: `pixels` (h, w) bool, whose first one is at row y, column x."""

    pixels: np.ndarray
    y: int
    x: int


@dataclass(frozen=True, eq=False)
class Objects:
    """The M objects or segments of an image; M may be 0. They are known in one of three ways.

    `ids` is a map: things and stuff, a pixel belongs to one of them or to none. `crops` are masks that may overlap.
    Where both are None there are boxes alone, which `given_boxes` holds.

    Attributes:
        ids: (H, W) int32; object m has the value m + 1, 0 is none (void).
        classes: (M,) int64 class ids.
        crowd: (M,) bool: many objects of one class in one segment.
        crops: a mask per object, which may be empty.
        given_boxes: (M, 4) float64 x1, y1, x2, y2 in pixels as annotated, the right and lower edge outside; None where
            those around the masks are meant.
        given_areas: (M,) float64 in pixels as annotated, by which objects count as small or large; None where those of
            the masks, or without masks of the boxes, are meant.
    """

    ids: np.ndarray | None
    classes: np.ndarray
    crowd: np.ndarray
    crops: tuple[Crop, ...] | None = None
    given_boxes: np.ndarray | None = None
    given_areas: np.ndarray | None = None

    @property
    def has_masks(self) -> bool:
        return self.ids is not None or self.crops is not None

    @cached_property
    def areas(self) -> np.ndarray:
        """(M,) in pixels: int64 of masks, float64 where annotated or of boxes."""
        if self.given_areas is not None:
            return self.given_areas
        if self.ids is not None:
            return np.bincount(self.ids.ravel(), minlength=len(self.classes) + 1)[1:]
        if self.crops is not None:
            return np.array([np.count_nonzero(crop.pixels) for crop in self.crops], np.int64)
        return (self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1)

    @cached_property
    def boxes(self) -> np.ndarray:
        """(M, 4) float64 x1, y1, x2, y2: `given_boxes`, or those around the masks, which are 0 for empty masks."""
        if self.given_boxes is not None:
            return self.given_boxes
        crops = [self.crop(m) for m in range(len(self.classes))]
        corners = [(c.x, c.y, c.x + c.pixels.shape[1], c.y + c.pixels.shape[0]) for c in crops]
        return np.array(corners, np.float64).reshape(-1, 4)

    def crop(self, m: int) -> Crop:
        """The mask of object m without the rows and columns around it. ValueError where there are no masks."""
        if self.crops is not None:
            return _trimmed(self.crops[m])
        if self.ids is None:
            raise ValueError("these objects have boxes and no masks")
        rows, columns = self._places[m] or (slice(0, 0), slice(0, 0))
        return Crop(self.ids[rows, columns] == m + 1, rows.start, columns.start)

    @cached_property
    def _places(self) -> list[tuple[slice, slice] | None]:
        from scipy import ndimage

        return ndimage.find_objects(self.ids, len(self.classes))

    def only(self, kept: np.ndarray) -> Objects:
        """Those that are kept, (M,) bool; of a map the masks, and the boxes and areas that were known."""
        rows = np.flatnonzero(kept)
        crops = tuple(self.crop(m) for m in rows) if self.has_masks else None
        return Objects(None, self.classes[rows], self.crowd[rows], crops, self.boxes[rows], self.areas[rows])

    def map(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) int32 of an image of `size`: m + 1 where object m lies, 0 elsewhere, small ones on top of large ones.

        Where there are boxes alone an object fills its box.
        """
        if self.ids is not None:
            return self.ids
        ids = np.zeros(size, np.int32)
        boxes = np.rint(self.boxes.clip(0, [size[1], size[0]] * 2)).astype(int).tolist()
        for m in np.argsort(-self.areas, kind="stable").tolist():
            if self.crops is None:
                left, top, right, bottom = boxes[m]
                ids[top:bottom, left:right] = m + 1
            else:
                pixels, y, x = self.crop(m)
                ids[y : y + pixels.shape[0], x : x + pixels.shape[1]][pixels] = m + 1
        return ids

    def masks(self, rows: Sequence[int], size: tuple[int, int]) -> np.ndarray:
        """The masks of these objects, (len(rows), H, W) bool of an image of `size`."""
        full = np.zeros((len(rows), *size), bool)
        for image, m in zip(full, rows, strict=True):
            crop = self.crop(m)
            image[crop.y : crop.y + crop.pixels.shape[0], crop.x : crop.x + crop.pixels.shape[1]] = crop.pixels
        return full


def _trimmed(crop: Crop) -> Crop:
    """Without empty rows and columns around it; an empty mask becomes (0, 0) at (0, 0)."""
    rows, columns = (np.flatnonzero(crop.pixels.any(axis)) for axis in (1, 0))
    if not len(rows):
        return Crop(np.zeros((0, 0), bool), 0, 0)
    (top, bottom), (left, right) = ((found[0], found[-1] + 1) for found in (rows, columns))
    return Crop(crop.pixels[top:bottom, left:right], crop.y + int(top), crop.x + int(left))


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known of it.

    Attributes:
        image: (C, H, W), uint8 or float32, 0..255, RGB or bands, as `load_image` gives it.
        name: of the image's file, without its ending.
        labels: (H, W) class ids (uint8 or int32), the data set's ignore index where no class is; None if not asked for.
        objects: its objects or segments; None if not asked for.
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
        """Without what is not needed: "labels", "segments", "masks", "boxes". Where boxes are, masks are not kept."""
        labels, objects = (self.labels if "labels" in needs else None), (self.objects if OBJECTS & {*needs} else None)
        if objects is not None and objects.has_masks and not {"segments", "masks"} & {*needs}:
            known = {"given_boxes": objects.boxes, "given_areas": objects.areas.astype(np.float64)}
            objects = dataclasses.replace(objects, ids=None, crops=None, **known)
        return dataclasses.replace(self, labels=labels, objects=objects)


class Dataset(Protocol):
    """Samples in a fixed order.

    Attributes:
        name: for reports and errors.
        labels: names, colours and things of the classes.
        holds: what its samples have: "labels" (a class map), "segments" (objects of which each pixel has one at most),
            "masks" (of every object, they may overlap), "boxes".
        reading: how its pictures are read.

    One that is read as a stream has `blocks`: where the samples begin that may be shuffled together, and the end.
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
OBJECTS = frozenset({"segments", "masks", "boxes"})
SEGMENTS = LABELS | OBJECTS
MASKS = frozenset({"masks", "boxes"})
BOXES = frozenset({"boxes"})


def check_holds(dataset: Dataset, needs: Collection[str], what: str) -> None:
    """ValueError where a data set lacks what `what` needs of its samples."""
    missing = [word for word in ("labels", "segments", "masks", "boxes") if word in {*needs} - dataset.holds]
    if missing:
        missing = missing[: 1 + ("labels" in missing)]  # who has no segments is not told of masks
        held = ", ".join(word for word in ("labels", "segments", "masks", "boxes") if word in dataset.holds)
        raise ValueError(f"{dataset.name} has no {' and no '.join(missing)}, which {what} needs; it has {held}")
