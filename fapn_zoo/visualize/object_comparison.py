"""Objects that several models find in one image: matched with the true ones, or with those of the first model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from hotcoco import mask

from fapn_zoo.data.mask_encoding import RunLengths
from fapn_zoo.data.sample import Objects
from fapn_zoo.tasks.coco import segment_masks
from fapn_zoo.tasks.result import Result

LEAST_IOU = 0.5


class Found(NamedTuple):
    """M objects of one image, the best first."""

    classes: np.ndarray  # (M,) ids
    boxes: np.ndarray  # (M, 4) x1, y1, x2, y2 in pixels
    masks: list[dict[str, Any]] | None  # COCO's run lengths; None where there are boxes alone

    @classmethod
    def of_result(cls, result: Result) -> Found:
        """Segments of a panoptic result are objects too, also the amorphous ones."""
        classes, masks = np.array([s["category_id"] for s in result.segments], np.int64), segment_masks(result)
        if masks is None:
            return cls(classes, result.boxes.astype(np.float64), None)
        boxes = np.array([one.box for one in masks], np.float64).reshape(-1, 4)
        return cls(classes, boxes, [one.to_coco() for one in masks])

    @classmethod
    def of_truth(cls, objects: Objects, rows: Sequence[int], size: tuple[int, int], masks: bool) -> Found:
        found = [RunLengths.of(*objects.crop(m), size).to_coco() for m in rows] if masks else None
        return cls(objects.classes[list(rows)], objects.boxes[list(rows)].reshape(-1, 4), found)

    def overlaps(self, other: Found, crowd: bool = False) -> np.ndarray:
        """(M, M') intersection over union of masks, or of boxes where one side has no masks; 0 for unlike classes.

        `crowd`: the share of the own object that lies in the other one instead.
        """
        sides = [self.masks, other.masks]
        if None in sides:
            sides = [np.hstack([one.boxes[:, :2], one.boxes[:, 2:] - one.boxes[:, :2]]) for one in (self, other)]
        table = np.zeros((len(self.classes), len(other.classes)))
        if table.size:
            table[:] = mask.iou(*sides, [crowd] * len(other.classes))
        return np.where(self.classes[:, None] == other.classes, table, 0)

    def hits(self, true: Found) -> dict[int, int]:
        """True object -> the own one that hits it; own ones choose in their order."""
        pairs: dict[int, int] = {}
        for row, shares in enumerate(self.overlaps(true)):
            free = [column for column in np.argsort(-shares, kind="stable") if column not in pairs]
            if free and shares[free[0]] >= LEAST_IOU:
                pairs[int(free[0])] = row
        return pairs


class Hits(NamedTuple):
    """Objects that were hit, missed, and found where there is none; see `scores`."""

    hits: int
    missed: int
    false: int

    def merge(self, other: Hits) -> Hits:
        """Those of both."""
        return Hits(*map(sum, zip(self, other, strict=True)))

    @property
    def f1(self) -> float | None:
        """Hits against all objects of both sides, 0..1; None where there are none."""
        every = 2 * self.hits + self.missed + self.false
        return 2 * self.hits / every if every else None

    def scores(self) -> dict[str, float | int | None]:
        """ "f1" (0..1), "hits", "missed", "false"."""
        return {"f1": self.f1, **self._asdict()}


@dataclass(eq=False)
class ObjectComparison:
    """The objects of all models in one image, in the order of `models`, and the true ones or None.

    An object is hit by the best one of its class that overlaps it by `LEAST_IOU` of their union; each counts once.
    Found objects of which half lies in a crowd of their class are not counted.

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
        both = [(2 * len(other.hits(first)), len(first.classes) + len(other.classes)) for other in others]
        self.agreement = float(np.mean([hits / every if every else 1.0 for hits, every in both]))
        if self.truth is None:
            return
        size, masks = self.results[0].image.shape[:2], self.results[0].task != "detection" and self.truth.has_masks
        rows = np.arange(len(self.truth.classes))
        self.true = Found.of_truth(self.truth, rows[~self.truth.crowd], size, masks)
        crowds = Found.of_truth(self.truth, rows[self.truth.crowd], size, masks)
        self.hit, self.false = [], []
        for found in self.found:
            pairs = found.hits(self.true)
            self.hit.append(np.isin(np.arange(len(self.true.classes)), list(pairs)))
            wrong = ~np.isin(np.arange(len(found.classes)), list(pairs.values()))
            self.false.append(wrong & ~(found.overlaps(crowds, crowd=True) >= 0.5).any(axis=1))

    def count(self) -> list[Hits]:
        """The counts of every model."""
        counts = zip(self.hit, self.false, strict=True)
        return [Hits(int(hit.sum()), int((~hit).sum()), int(false.sum())) for hit, false in counts]
