"""Detection: a scored box for every object of a countable class."""

from __future__ import annotations

from typing import Any

import numpy as np

from fapn_zoo.data.classes import Classes
from fapn_zoo.data.images import LoadedImage
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import BOXES, Dataset, Sample
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.postprocess import Detections
from fapn_zoo.tasks.objects import object_targets, thing_classes
from fapn_zoo.tasks.precision import PrecisionScorer
from fapn_zoo.tasks.protocol import COLUMNS
from fapn_zoo.tasks.result import Result, blank_result, segment_dict, widths
from fapn_zoo.zoo.spec import DataSpec


class DetectionTask:
    """See `Task`. True boxes are as annotated, or those around true masks."""

    name = "detection"
    needs = BOXES
    averages_views = False
    joins_windows = True
    scored = {"score_threshold": 0.0}
    columns = COLUMNS["detection"]

    def result(self, answer: Detections, image: LoadedImage, data: DataSpec) -> Result:
        result = blank_result(image, data, self.name, maps=False)
        result.boxes = answer.boxes.numpy()
        rows = zip(answer.segments, widths(result.boxes), strict=True)
        result.segments += [segment_dict(segment, result.names, bbox) for segment, bbox in rows]
        return result

    def targets(self, sample: Sample, labels: LabelMap) -> Targets:
        return object_targets(sample, labels, things_only=True, masks=False)

    def scorer(self, dataset: Dataset, classes: Classes, data: DataSpec, *, boundary: bool = False) -> DetectionScorer:
        return DetectionScorer(thing_classes(self, dataset, classes, data, boundary))


class DetectionScorer(PrecisionScorer):
    """Average precision of boxes."""

    rank_by = "box_ap"
    kinds = {"boxes": "box_"}

    def found(self, answer: Detections) -> dict[str, Any]:
        return {"boxes": answer.boxes.numpy()}

    def places(self, answer: Detections, m: int) -> tuple[slice, slice, slice]:
        x1, y1, x2, y2 = np.rint(answer.boxes[m].numpy()).astype(int).tolist()
        return slice(y1, y2), slice(x1, x2), slice(None)
