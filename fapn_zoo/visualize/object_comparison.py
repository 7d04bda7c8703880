"""Objects that several models find in one image: matched with the true ones, or with those of the first model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import from_numpy
from torchvision.ops import box_iou

from fapn_zoo.data.sample import Crop, Objects
from fapn_zoo.postprocess.answers import Segment
from fapn_zoo.tasks.objects import place_of
from fapn_zoo.tasks.result import Result, segment_dict

LEAST_IOU = 0.5


@dataclass(frozen=True, eq=False)
class Found:
    """The M objects of one answer, the best first.

    Attributes:
        classes: (M,) ids. boxes: (M, 4) x1, y1, x2, y2 in pixels.
        crops: a mask of each; None where there are boxes alone.
    """

    classes: np.ndarray
    boxes: np.ndarray
    crops: list[Crop] | None

    @classmethod
    def of_result(cls, result: Result) -> Found:
        """Segments of a panoptic result are objects too, also the amorphous ones."""
        segments = result.segments
        classes = np.array([s["category_id"] for s in segments], np.int64)
        if result.task == "detection":
            return cls(classes, result.boxes.astype(np.float64), None)
        if result.cropped is not None:
            masks = (result.cropped.crop(m) for m in range(len(segments)))
            crops = [Crop(mask.numpy(), *place) for mask, place in masks]
        else:
            crops = []
            for s in segments:
                x, y, width, height = s["bbox"]
                crops.append(Crop(result.segment_map[y : y + height, x : x + width] == s["id"], y, x))
        return cls(classes, _around(crops), crops)

    @classmethod
    def of_truth(cls, objects: Objects, rows: Sequence[int], masks: bool) -> Found:
        crops = [objects.crop(m) for m in rows] if masks else None
        return cls(objects.classes[list(rows)], objects.boxes[list(rows)].reshape(-1, 4), crops)

    def overlaps(self, other: Found) -> np.ndarray:
        """(M, M') intersection over union of masks, or of boxes where one side has no masks; 0 for unlike classes."""
        found = box_iou(from_numpy(self.boxes), from_numpy(other.boxes)).numpy()
        found[self.classes[:, None] != other.classes[None]] = 0
        if self.crops is None or other.crops is None:
            return found
        for i, j in np.argwhere(found > 0):
            found[i, j] = _mask_iou(self.crops[i], other.crops[j])
        return found


def _around(crops: Sequence[Crop]) -> np.ndarray:
    corners = [(c.x, c.y, c.x + c.pixels.shape[1], c.y + c.pixels.shape[0]) for c in crops]
    return np.array(corners, np.float64).reshape(-1, 4)


def _mask_iou(one: Crop, other: Crop) -> float:
    top, left = max(one.y, other.y), max(one.x, other.x)
    parts = [crop.pixels[top - crop.y :, left - crop.x :] for crop in (one, other)]
    height, width = (min(part.shape[axis] for part in parts) for axis in (0, 1))
    both = np.count_nonzero(parts[0][:height, :width] & parts[1][:height, :width])
    return both / max(np.count_nonzero(one.pixels) + np.count_nonzero(other.pixels) - both, 1)


@dataclass
class Hits:
    """Objects that were hit, missed, and found where there is none; see `scores`."""

    hits: int = 0
    missed: int = 0
    false: int = 0

    def merge(self, other: Hits) -> Hits:
        """Adds the objects of other images; returns self."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    @property
    def f1(self) -> float | None:
        """Hits against all objects of both sides, 0..1; None where there are none."""
        every = 2 * self.hits + self.missed + self.false
        return 2 * self.hits / every if every else None

    def scores(self) -> dict[str, float | int | None]:
        """ "f1" (0..1), "hits", "missed", "false"."""
        return {"f1": self.f1, **vars(self)}


@dataclass(eq=False)
class ObjectComparison:
    """The objects of all models in one image, in the order of `models`, and the true ones or None.

    An object is hit by the best one of its class that overlaps it by `LEAST_IOU` of their union; each counts once.
    Found objects of which half overlaps a crowd of their class are not counted.

    Attributes:
        agreement: F1 of the others' objects against those of the first model, the mean.
        hit, false: of every model, which true objects are hit, and which found ones are wrong; with truth only.
    """

    name: str
    models: list[str]
    results: list[Result]
    truth: Objects | None

    def __post_init__(self) -> None:
        self.found = [Found.of_result(result) for result in self.results]
        first, *others = self.found
        both = [(2 * len(_matched(first, other)), len(first.classes) + len(other.classes)) for other in others]
        self.agreement = float(np.mean([hits / every if every else 1.0 for hits, every in both]))
        if self.truth is None:
            return
        masks = self.results[0].task != "detection" and self.truth.has_masks
        rows = np.arange(len(self.truth.classes))
        self.rows = rows[~self.truth.crowd]
        self.true = Found.of_truth(self.truth, self.rows, masks)
        crowds = Found.of_truth(self.truth, rows[self.truth.crowd], masks)
        pairs = [_matched(self.true, found) for found in self.found]
        self.hit = [np.isin(np.arange(len(self.rows)), list(pair)) for pair in pairs]
        self.false = []
        for pair, found in zip(pairs, self.found, strict=True):
            wrong = ~np.isin(np.arange(len(found.classes)), list(pair.values()))
            self.false.append(wrong & ~_inside(found, crowds))

    def count(self) -> list[Hits]:
        """The counts of every model."""
        counts = zip(self.hit, self.false, strict=True)
        return [Hits(int(hit.sum()), int((~hit).sum()), int(false.sum())) for hit, false in counts]

    def true_result(self) -> Result:
        """The truth as a result, to be drawn as those of the models."""
        first = self.results[0]
        segments, ids = [], np.zeros(first.image.shape[:2], np.int32)
        labels = np.full(ids.shape, first.ignore_index, np.int64)
        for m in sorted(self.rows, key=lambda m: -self.truth.areas[m]):  # small ones on top
            down, across, pixels = place_of(self.truth, m, ids.shape)
            bbox = [across.start, down.start, across.stop - across.start, down.stop - down.start]
            segment = Segment(len(segments) + 1, int(self.truth.classes[m]), True, 1.0, int(self.truth.areas[m]))
            segments.append((m, segment_dict(segment, first.names, bbox)))
            if first.task != "detection":
                ids[down, across][pixels], labels[down, across][pixels] = segment.id, segment.category_id
        changes = {"segments": [segment for _, segment in segments], "cropped": None}
        if first.task == "detection":
            return dataclasses.replace(
                first, boxes=self.truth.boxes[[m for m, _ in segments]].reshape(-1, 4), **changes
            )
        return dataclasses.replace(first, segment_map=ids, labels=labels, boxes=None, **changes)


def _matched(true: Found, found: Found) -> dict[int, int]:
    """True object -> the found one that hits it; found ones choose in their order."""
    overlaps, pairs = found.overlaps(true), {}
    for row, own in enumerate(overlaps):
        free = [column for column in np.argsort(-own, kind="stable") if column not in pairs]
        if free and own[free[0]] >= LEAST_IOU:
            pairs[int(free[0])] = row
    return pairs


def _inside(found: Found, crowds: Found) -> np.ndarray:
    """(M,) bool: half of the box lies in the box of a crowd of its class."""
    low = np.maximum(found.boxes[:, None, :2], crowds.boxes[None, :, :2])
    high = np.minimum(found.boxes[:, None, 2:], crowds.boxes[None, :, 2:])
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    shares = (high - low).clip(min=0).prod(axis=2) / areas[:, None].clip(min=1e-9)
    shares[found.classes[:, None] != crowds.classes[None]] = 0
    return (shares >= 0.5).any(axis=1)
