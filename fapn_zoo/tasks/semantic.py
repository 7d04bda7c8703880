"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fapn_zoo.data.classes import Classes
from fapn_zoo.data.images import LoadedImage
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import LABELS, Dataset, Sample
from fapn_zoo.metrics import BoundaryBands, BoundaryFScore, BoundaryIoU, ConfusionMatrix
from fapn_zoo.metrics.accumulator import UNIT, Tallies
from fapn_zoo.metrics.boundary import BAND_WIDTHS, F_TOLERANCES
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.postprocess import ClassMap
from fapn_zoo.tasks.protocol import COLUMNS, Measure, plain
from fapn_zoo.tasks.result import Result, blank_result, describe_regions
from fapn_zoo.zoo.spec import DataSpec


class SemanticTask:
    """See `Task`."""

    name = "semantic"
    needs = LABELS
    averages_views = True
    joins_windows = False
    scored = {"shares": False}
    columns = COLUMNS["semantic"]

    def result(self, answer: ClassMap, image: LoadedImage, data: DataSpec) -> Result:
        result = blank_result(image, data, self.name)
        result.labels = answer.labels.cpu().numpy().astype(result.labels.dtype)
        result.scores = answer.scores.cpu().numpy()
        regions = describe_regions(result.labels, result.scores).items()
        for value, region in sorted(regions, key=lambda item: (-item[1]["area"], item[0])):
            head = {"id": len(result.segments) + 1, "category_id": value, "name": result.names[value]}
            result.segments.append({**head, "isthing": value in data.things, **region})
        return result

    def targets(self, sample: Sample, labels: LabelMap) -> Targets:
        return Targets(
            torch.from_numpy(sample.labels.astype(np.int64, copy=False))[None], ignore_index=labels.ignore_index
        )

    def scorer(self, dataset: Dataset, classes: Classes, data: DataSpec, *, boundary: bool = False) -> SemanticScorer:
        return SemanticScorer(dataset.labels, classes, data, boundary)


class SemanticScorer:
    """Confusion matrix and, if asked for, the three boundary metrics of `fapn_zoo.metrics`; see `Scorer`."""

    rank_by = "miou"

    def __init__(self, labels: LabelMap, classes: Classes, data: DataSpec, boundary: bool) -> None:
        self.labels, self.classes, self.data, self.boundary = labels, classes, data, boundary
        self.names = classes.names
        self.measures = tuple(self._measures())

    def empty(self) -> Tallies:
        k, ignore = self.classes.columns, self.classes.ignore_index
        tally = Tallies(all=ConfusionMatrix(k, ignore))
        if self.boundary:
            tally |= {"bands": BoundaryBands(k, ignore_index=ignore), "iou": BoundaryIoU(k, ignore)}
            tally["f"] = BoundaryFScore(k, ignore_index=ignore)
        return tally

    def count(self, answer: ClassMap, sample: Sample, place: int) -> Tallies:
        """Raises ValueError, naming the sample, for sizes that differ and ids out of range."""
        tally = self.empty()
        try:
            found = self._ids(answer)
            truth = self.classes.of_truth(sample.labels, self.labels)
            tally["all"].update(found, truth)
            for name in ("bands", "iou", "f") if self.boundary else ():
                tally[name].update(found.cpu(), truth)
        except ValueError as error:
            raise ValueError(f"{sample.name}: {error}") from None
        return tally

    def _ids(self, answer: ClassMap) -> Tensor:
        small = answer.labels.to(torch.uint8 if len(self.data.labels) <= 256 else torch.int64)
        return self.classes.of_answer(small)

    def scores(self, tally: Tallies) -> dict[str, Any]:
        found = tally["all"].compute()
        rows = zip(self.names, found["iou"], found["acc"], found["truth"], strict=False)  # not: answers of no class
        table = [
            {"id": i, "name": name, "iou": plain(iou), "acc": plain(acc), "pixels": pixels}
            for i, (name, iou, acc, pixels) in enumerate(rows)
        ]
        report = {n: plain(found[n]) for n in ("miou", "pixel_acc", "mean_acc", "fwiou")} | {"classes": table}
        if not self.boundary:
            return report
        bands, edges, contours = (tally[name].compute() for name in ("bands", "iou", "f"))
        near = {f"band_{width}": (band["miou"], band["iou"]) for width, band in bands.items()}
        near["boundary_iou"] = edges["boundary_iou"], edges["iou"]
        near |= {f"boundary_f_{t}": (mean, contours["classes"][t]) for t, mean in contours["f"].items()}
        for i, row in enumerate(table):
            row |= {name: plain(values[i]) for name, (_, values) in near.items()}
        return report | {"boundary": {name: plain(mean) for name, (mean, _) in near.items()}}

    def image_score(self, tally: Tallies) -> float | None:
        return plain(tally["all"].compute()["miou"])

    def confusion(self, tally: Tallies) -> np.ndarray:
        """(K, K), or (K, K + 1) where answers may be no class of the data."""
        return tally["all"].counts[: len(self.names)].numpy().copy()

    def maps(self, answer: ClassMap, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        return self._ids(answer).cpu().numpy(), self.classes.of_truth(sample.labels, self.labels)

    def _measures(self) -> Iterator[Measure]:
        yield self._measure("miou", "iou", lambda tally: _overlaps(tally["all"].counts))
        if not self.boundary:
            return
        for width in BAND_WIDTHS:
            yield self._measure(f"band_{width}", "iou", lambda tally, w=width: _overlaps(tally["bands"].confusion(w)))
        yield self._measure("boundary_iou", "iou", lambda tally: [*tally["iou"].counts])
        for n, tolerance in enumerate(F_TOLERANCES):
            contours = lambda tally, n=n: [tally["f"].counts[n], tally["f"].counts[-2] * UNIT]  # noqa: E731
            yield self._measure(f"boundary_f_{tolerance}", "mean", contours)

    def _measure(self, name: str, kind: str, rows: Callable[[Tallies], list[Tensor]]) -> Measure:
        return Measure(name, kind, lambda tally: self._rows(rows(tally)))

    def _rows(self, rows: list[Tensor]) -> np.ndarray:
        """(R, K) of the data set's classes; a class that is never scored has zeros."""
        found = torch.stack(rows)[:, : len(self.names)].numpy().copy()
        if 0 <= self.classes.ignore_index < len(self.names):
            found[:, self.classes.ignore_index] = 0
        return found


def _overlaps(confusion: Tensor) -> list[Tensor]:
    return [confusion.diagonal(), confusion.sum(1), confusion.sum(0)]
