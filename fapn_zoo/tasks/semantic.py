"""What is scored: the protocol of a task, and the semantic one. The harness around it knows no class and no metric.

A task turns an answer of the model and a sample into a vector of int64 counts. Vectors add up over images, processes
and interrupted runs, so no order changes a digit; scores are made from their sum. A task whose vectors are no counts
has them put one after the other instead, in the order of the data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fapn_zoo.data.classes import Classes
from fapn_zoo.metrics import BoundaryBands, BoundaryFScore, BoundaryIoU, ConfusionMatrix
from fapn_zoo.metrics.accumulator import UNIT, Accumulator
from fapn_zoo.predict.run import label_maps
from fapn_zoo.predict.views import Views

BAND_WIDTHS = (3, 5, 8, 12)
F_TOLERANCES = (3, 5, 9, 12)


@dataclass(frozen=True)
class Measure:
    """One score per class that can be made from the rows of sums ``first``..``last`` of `Task.compact`.

    Attributes:
        kind: "iou" (rows: hits, truth, predicted) or "mean" (rows: sum, number).
    """

    name: str
    kind: str
    first: int
    last: int

    def of(self, sums: np.ndarray) -> np.ndarray:
        """Sums (..., R, K) -> scores (..., K), NaN where undefined."""
        rows = np.moveaxis(sums[..., self.first : self.last, :], -2, 0)
        above, below = (rows[0], rows[1] + rows[2] - rows[0]) if self.kind == "iou" else (rows[0], rows[1])
        return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


class Task(Protocol):
    """What the harness asks of a task.

    Attributes:
        length: of the vectors of counts; None where vectors of any length follow one another, of any integer type.
        names: of the classes, K of them.
        measures: what two models are compared by; empty where they cannot be.
        rank_by: what `image_score` is called in reports.
    """

    length: int | None
    names: tuple[str, ...]
    measures: tuple[Measure, ...]
    rank_by: str

    def answer(
        self,
        model: nn.Module,
        images: Sequence[list[Tensor]],
        sizes: Sequence[tuple[int, int]],
        views: Views,
        amp: str,
        batch_size: int,
    ) -> list[Any]:
        """The model's answers for one batch of prepared images, each for its size (H, W)."""
        ...

    def count(self, answer: Any, sample: Any) -> np.ndarray:
        """The vector of one image; ValueError for an answer or truth that cannot be counted."""
        ...

    def scores(self, counts: np.ndarray) -> dict[str, Any]:
        """The task's part of the report, from the sum of all vectors: plain JSON values."""
        ...

    def image_score(self, counts: np.ndarray) -> float | None:
        """One number 0..1 that ranks an image by its vector; None where nothing can be scored."""
        ...

    def compact(self, counts: np.ndarray) -> np.ndarray:
        """(R, K) int64: the part of an image's vector that `measures` need."""
        ...

    def maps(self, answer: Any, sample: Any) -> tuple[np.ndarray, np.ndarray]:
        """Class maps (H, W) of an answer and of its truth, in ids of the data, to be drawn."""
        ...


class SemanticTask:
    """Confusion matrix and, if asked for, the three boundary metrics of `fapn_zoo.metrics`."""

    rank_by = "miou"

    def __init__(self, labels: Any, classes: Classes, boundary: bool) -> None:
        self.labels, self.classes, self.boundary = labels, classes, boundary
        self.names = classes.names
        self._parts = self._new()
        self._ends = np.cumsum([part.counts.numel() for part in self._parts.values()])
        self.length = int(self._ends[-1])
        self.measures = self._measures()

    def _new(self) -> dict[str, Accumulator]:
        k, ignore = self.classes.columns, self.classes.ignore_index
        parts: dict[str, Accumulator] = {"all": ConfusionMatrix(k, ignore)}
        if self.boundary:
            parts |= {
                "bands": BoundaryBands(k, BAND_WIDTHS, ignore),
                "iou": BoundaryIoU(k, ignore),
                "f": BoundaryFScore(k, F_TOLERANCES, ignore),
            }
        return parts

    def _filled(self, counts: np.ndarray) -> dict[str, Any]:
        """The accumulators with these counts. They are shared: use them before the next call."""
        for part, values in zip(self._parts.values(), np.split(counts, self._ends[:-1]), strict=True):
            part.counts = torch.from_numpy(values.reshape(part.counts.shape))
        return self._parts

    def answer(
        self,
        model: nn.Module,
        images: Sequence[list[Tensor]],
        sizes: Sequence[tuple[int, int]],
        views: Views,
        amp: str,
        batch_size: int,
    ) -> list[Tensor]:
        """Class maps (H, W) of the model's ids."""
        return label_maps(model, images, sizes, views, amp, batch_size)

    def count(self, answer: Tensor, sample: Any) -> np.ndarray:
        """Raises ValueError, naming the sample, for sizes that differ and ids out of range."""
        counts = np.zeros(self.length, np.int64)
        try:
            found = self.classes.of_answer(answer)
            truth = self.classes.of_truth(sample.labels, self.labels)
            parts = self._filled(counts)
            parts["all"].update(found, truth)
            for name in ("bands", "iou", "f") if self.boundary else ():
                parts[name].update(found.cpu(), truth)
        except ValueError as error:
            raise ValueError(f"{sample.name}: {error}") from None
        return np.concatenate([part.counts.numpy().ravel() for part in parts.values()])

    def scores(self, counts: np.ndarray) -> dict[str, Any]:
        parts = self._filled(counts)
        found = parts["all"].compute()
        table = [
            {"id": i, "name": name, "iou": plain(iou), "acc": plain(acc), "pixels": pixels}
            for i, (name, iou, acc, pixels) in enumerate(
                zip(self.names, found["iou"], found["acc"], found["truth"], strict=False)  # not: answers of no class
            )
        ]
        report = {n: plain(found[n]) for n in ("miou", "pixel_acc", "mean_acc", "fwiou")} | {"classes": table}
        if not self.boundary:
            return report
        bands, edges, contours = (parts[name].compute() for name in ("bands", "iou", "f"))
        for i, row in enumerate(table):
            row |= {f"band_{width}": plain(band["iou"][i]) for width, band in bands.items()}
            row["boundary_iou"] = plain(edges["iou"][i])
            row |= {f"boundary_f_{t}": plain(values[i]) for t, values in contours["classes"].items()}
        report["boundary"] = {f"band_{width}": plain(band["miou"]) for width, band in bands.items()}
        report["boundary"]["boundary_iou"] = plain(edges["boundary_iou"])
        report["boundary"] |= {f"boundary_f_{t}": plain(value) for t, value in contours["f"].items()}
        return report

    def image_score(self, counts: np.ndarray) -> float | None:
        return plain(self._filled(counts)["all"].compute()["miou"])

    def confusion(self, counts: np.ndarray) -> np.ndarray:
        """(K, K) pixel counts of (true, predicted), or (K, K + 1) where answers may be no class of the data."""
        return self._filled(counts)["all"].counts[: len(self.names)].numpy().copy()

    def maps(self, answer: Tensor, sample: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.classes.of_answer(answer).cpu().numpy(), self.classes.of_truth(sample.labels, self.labels)

    def _measures(self) -> tuple[Measure, ...]:
        wanted = [("miou", "iou")]
        if self.boundary:
            wanted += [(f"band_{width}", "iou") for width in BAND_WIDTHS] + [("boundary_iou", "iou")]
            wanted += [(f"boundary_f_{tolerance}", "mean") for tolerance in F_TOLERANCES]
        ends = np.cumsum([{"iou": 3, "mean": 2}[kind] for _, kind in wanted]).tolist()
        return tuple(
            Measure(name, kind, first, last)
            for (name, kind), first, last in zip(wanted, [0, *ends[:-1]], ends, strict=True)
        )

    def compact(self, counts: np.ndarray) -> np.ndarray:
        parts = self._filled(counts)
        tables = [parts["all"].counts]
        if self.boundary:
            tables += [parts["bands"].confusion(width) for width in BAND_WIDTHS]
        rows = [row for t in tables for row in (t.diagonal(), t.sum(1), t.sum(0))]
        if self.boundary:
            contours = parts["f"].counts
            rows += [*parts["iou"].counts]
            rows += [row for sums in contours[:-2] for row in (sums, contours[-2] * UNIT)]
        found = torch.stack(rows)[:, : len(self.names)].numpy().copy()
        if 0 <= self.classes.ignore_index < len(self.names):
            found[:, self.classes.ignore_index] = 0  # a class that is never scored
        return found


def plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
