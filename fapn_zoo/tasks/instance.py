"""Instance segmentation: a scored mask for every object of a countable class; masks may overlap."""

from __future__ import annotations

from typing import Any

import numpy as np

from fapn_zoo.data.classes import Classes
from fapn_zoo.data.images import LoadedImage
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import MASKS, Dataset, Sample
from fapn_zoo.metrics import AveragePrecision
from fapn_zoo.metrics.detection import BOUNDARIES, require_boundaries
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.postprocess import Instances
from fapn_zoo.tasks.coco import run_lengths
from fapn_zoo.tasks.objects import ObjectClasses, object_targets, thing_classes
from fapn_zoo.tasks.precision import PrecisionScorer
from fapn_zoo.tasks.protocol import COLUMNS, plain
from fapn_zoo.tasks.result import Result, blank_result, paint_labels, segment_dict, widths
from fapn_zoo.zoo.spec import DataSpec

MAX_INSTANCES = 100  # of an image, as in the official evaluation


class InstanceTask:
    """See `Task`."""

    name = "instance"
    needs = MASKS
    averages_views = False
    joins_windows = True
    scored = {"score_threshold": 0.0, "max_instances": MAX_INSTANCES}
    columns = COLUMNS["instance"]

    def result(self, answer: Instances, image: LoadedImage, data: DataSpec) -> Result:
        result = blank_result(image, data, self.name)
        result.cropped = answer.cropped
        result.segment_map = np.zeros(result.labels.shape, np.int32)
        bboxes = []
        for m, segment in reversed(list(enumerate(answer.segments))):
            crop, (y, x) = answer.cropped.crop(m)
            mask, (height, width) = crop.numpy(), crop.shape
            inside = slice(y, y + height), slice(x, x + width)
            result.segment_map[inside][mask] = segment.id
            result.scores[inside][mask] = segment.score
            bboxes.insert(0, [x, y, width, height])
        if answer.boxes is not None:
            result.boxes = answer.boxes.numpy()
            bboxes = widths(result.boxes)
        rows = zip(answer.segments, bboxes, strict=True)
        result.segments += [segment_dict(segment, result.names, bbox) for segment, bbox in rows]
        paint_labels(result)
        return result

    def targets(self, sample: Sample, labels: LabelMap) -> Targets:
        return object_targets(sample, labels, things_only=True)

    def scorer(self, dataset: Dataset, classes: Classes, data: DataSpec, *, boundary: bool = False) -> InstanceScorer:
        return InstanceScorer(thing_classes(self, dataset, classes, data, False), boundary)


class InstanceScorer(PrecisionScorer):
    """Average precision of masks and of boxes: those found with the masks, else those around them.

    Also Boundary AP where asked for; ValueError where its evaluator is not installed.
    """

    rank_by = "ap"
    kinds = {"masks": "", "boxes": "box_"}

    def __init__(self, classes: ObjectClasses, boundary: bool = False) -> None:
        if boundary:
            require_boundaries()
        super().__init__(classes)
        self.boundary = boundary

    def scores(self, tally: AveragePrecision) -> dict[str, Any]:
        report = super().scores(tally)
        if not self.boundary:
            return report
        found = tally.compute([BOUNDARIES])[BOUNDARIES]
        for row in report["classes"]:
            row["boundary_ap"] = plain(found["per_class"][row["id"]]["ap"])
        means = {name: plain(found[name.removeprefix("boundary_")]) for name in InstanceTask.columns.near}
        return report | {"boundary": means}

    def found(self, answer: Instances) -> dict[str, Any]:
        boxes = {} if answer.boxes is None else {"boxes": answer.boxes.numpy()}
        return {"masks": run_lengths(answer.cropped)} | boxes

    def places(self, answer: Instances, m: int) -> tuple[slice, slice, np.ndarray]:
        crop, (y, x) = answer.cropped.crop(m)
        return slice(y, y + crop.shape[0]), slice(x, x + crop.shape[1]), crop.numpy()
