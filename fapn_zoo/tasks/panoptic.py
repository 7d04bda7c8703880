"""Panoptic segmentation: every pixel in one segment, objects of countable classes apart."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from fapn_zoo.data.classes import Classes
from fapn_zoo.data.images import LoadedImage
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import SEGMENTS, Dataset, Sample
from fapn_zoo.metrics import PanopticQuality
from fapn_zoo.metrics.accumulator import UNIT
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.postprocess import Panoptic
from fapn_zoo.tasks.objects import ObjectClasses, object_targets, painted
from fapn_zoo.tasks.protocol import COLUMNS, Measure, plain
from fapn_zoo.tasks.result import Result, blank_result, describe_regions, paint_labels, segment_dict
from fapn_zoo.zoo.spec import DataSpec


class PanopticTask:
    """See `Task`."""

    name = "panoptic"
    needs = SEGMENTS
    averages_views = False
    joins_windows = False
    scored: dict[str, Any] = {}
    columns = COLUMNS["panoptic"]

    def result(self, answer: Panoptic, image: LoadedImage, data: DataSpec) -> Result:
        result = blank_result(image, data, self.name)
        result.segment_map = answer.ids.cpu().numpy()
        result.scores = answer.scores.cpu().numpy()
        regions = describe_regions(result.segment_map)
        result.segments += [segment_dict(s, result.names, regions[s.id]["bbox"]) for s in answer.segments]
        paint_labels(result)
        return result

    def targets(self, sample: Sample, labels: LabelMap) -> Targets:
        targets = object_targets(sample, labels, things_only=False)
        if sample.labels is not None:  # beside the objects, of which crowds are none
            targets.labels = torch.from_numpy(sample.labels.astype(np.int64))[None]
        return targets

    def scorer(self, dataset: Dataset, classes: Classes, data: DataSpec, *, boundary: bool = False) -> PanopticScorer:
        return PanopticScorer(ObjectClasses(self, dataset, classes, data, boundary))


class PanopticScorer:
    """Panoptic quality; see `Scorer`. Where an answer is no class of the data its pixels are void: nothing is hit."""

    rank_by = "pq"

    def __init__(self, classes: ObjectClasses) -> None:
        self.classes, self.names, self.data = classes, classes.names, classes.spec
        self.table = [{"id": i, "isthing": int(i in classes.things)} for i in range(len(self.names))]
        self.measures = tuple(Measure(name, "mean", partial(self._rows, name)) for name in ("pq", "rq"))

    def empty(self) -> PanopticQuality:
        return PanopticQuality(self.table)

    def _found(self, answer: Panoptic) -> tuple[np.ndarray, dict[int, int]]:
        """Segment map and class by id; segments that are one stuff of the data are joined."""
        new, category_of, stuff = np.zeros(len(answer.segments) + 1, np.int32), {}, {}
        for segment in answer.segments:
            category = self.classes.of_model[segment.category_id]
            if category not in self.classes.scored:
                continue
            target = segment.id if category in self.classes.things else stuff.setdefault(category, segment.id)
            new[segment.id], category_of[target] = target, category
        return new[answer.ids.cpu().numpy()], category_of

    def count(self, answer: Panoptic, sample: Sample, place: int) -> PanopticQuality:
        """Raises ValueError, naming the sample, for sizes that differ."""
        tally, objects = self.empty(), sample.objects
        ids, found = self._found(answer)
        truth = self.classes.truth(sample)
        void = [i for i in range(1, len(objects.classes) + 1) if i not in truth]
        kept = np.where(np.isin(objects.ids, void), 0, objects.ids) if void else objects.ids
        listed = [{"id": i, "category_id": category} for i, category in found.items()]
        true = [{"id": i, "category_id": c, "iscrowd": int(objects.crowd[i - 1])} for i, c in truth.items()]
        tally.update(ids, listed, kept, true, sample.name)
        return tally

    def scores(self, tally: PanopticQuality) -> dict[str, Any]:
        found = tally.compute()
        report = {}
        for group, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
            report |= {f"{name}{suffix}": plain(float(found[group][name])) for name in ("pq", "sq", "rq")}
        report["classes"] = [
            {"id": i, "name": name, "isthing": i in self.classes.things}
            | {key: plain(found["per_class"][i][key]) for key in ("pq", "sq", "rq")}
            | {key: found["per_class"][i][key] for key in ("tp", "fp", "fn")}
            for i, name in enumerate(self.names)
        ]
        return report

    def image_score(self, tally: PanopticQuality) -> float | None:
        return plain(tally.compute()["all"]["pq"])

    def _rows(self, name: str, tally: PanopticQuality) -> np.ndarray:
        """Numerator and denominator: PQ = 2 sum(IoU) / (2 TP + FP + FN), RQ with TP for the sum."""
        hit, wrong, missed, iou = tally.counts.numpy().T
        return np.stack([2 * (iou if name == "pq" else hit * UNIT), (2 * hit + wrong + missed) * UNIT])

    def confusion(self, tally: PanopticQuality) -> None:
        return None

    def maps(self, answer: Panoptic, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        ids, found = self._found(answer)
        return painted(ids, found, self.classes.classes.ignore_index), self.classes.drawn(sample)
