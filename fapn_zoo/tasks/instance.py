"""Instance segmentation: a scored mask for every object of a countable class; masks may overlap."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np

from fapn_zoo.data.classes import Classes
from fapn_zoo.data.images import LoadedImage
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import SEGMENTS, Dataset, Sample
from fapn_zoo.metrics import AveragePrecision
from fapn_zoo.metrics.detection import SCORES
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.postprocess import Instances
from fapn_zoo.tasks.objects import ObjectClasses, object_targets
from fapn_zoo.tasks.protocol import Columns, Measure, plain
from fapn_zoo.tasks.result import Result, blank_result, describe_regions, paint_labels, segment_dict
from fapn_zoo.zoo.spec import DataSpec

MAX_INSTANCES = 100  # of an image, as in the official evaluation
SHOWN_SCORE = 0.5  # of an instance in a picture


class InstanceTask:
    """See `Task`."""

    name = "instance"
    needs = SEGMENTS
    averages_views = False
    scored = {"score_threshold": 0.0, "max_instances": MAX_INSTANCES}
    columns = Columns(
        means={
            "ap": "AP",
            "ap50": "AP50",
            "ap75": "AP75",
            "aps": "AP small",
            "apm": "AP medium",
            "apl": "AP large",
            "ar1": "AR, 1 per image",
            "ar10": "AR, 10 per image",
            "ar": "AR",
            "box_ap": "box AP",
            "box_ap50": "box AP50",
            "box_ap75": "box AP75",
            "box_ar": "box AR",
        },
        by_class={"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ar": "AR", "box_ap": "box AP"},
        table=("ap", "ap50", "ap75", "aps", "apm", "apl", "ar", "box_ap"),
        truth=("truth",),
    )

    def result(self, answer: Instances, image: LoadedImage, data: DataSpec) -> Result:
        result = blank_result(image, data, self.name)
        result.masks = answer.masks.cpu().numpy()
        result.segment_map = np.zeros(result.labels.shape, np.int32)
        for segment, mask in reversed(list(zip(answer.segments, result.masks, strict=True))):
            result.segment_map[mask] = segment.id
            result.scores[mask] = segment.score
        for segment, mask in zip(answer.segments, result.masks, strict=True):
            result.segments.append(segment_dict(segment, result.names, describe_regions(mask)[1]["bbox"]))
        paint_labels(result)
        return result

    def targets(self, sample: Sample, labels: LabelMap) -> Targets:
        return object_targets(sample, labels, things_only=True)

    def scorer(self, dataset: Dataset, classes: Classes, data: DataSpec, *, boundary: bool = False) -> InstanceScorer:
        found = ObjectClasses(self.name, dataset, classes, data, boundary)
        if not found.spec.things or not found.things:
            who = dataset.name if not found.things else "the model"
            raise ValueError(f"{who} has no class of countable objects, which task {self.name!r} needs")
        return InstanceScorer(found)


class InstanceScorer:
    """Average precision of masks and of the boxes around them, over the classes that are things; see `Scorer`."""

    rank_by = "ap"
    measures: tuple[Measure, ...] = ()  # average precision is no sum over images

    def __init__(self, classes: ObjectClasses) -> None:
        self.classes, self.names, self.data = classes, classes.names, classes.spec
        self.empty()  # says now if it cannot be done

    def empty(self) -> AveragePrecision:
        return AveragePrecision(len(self.names))

    def _found(self, answer: Instances) -> list[int]:
        """Class of the data by detection; -1 where it is none that is scored."""
        found = [self.classes.of_model[segment.category_id] for segment in answer.segments]
        return [category if category in self.classes.things else -1 for category in found]

    def count(self, answer: Instances, sample: Sample, place: int) -> AveragePrecision:
        """Raises ValueError, naming the sample, for sizes that differ."""
        found = self._found(answer)
        rows = [i for i, category in enumerate(found) if category >= 0]
        predictions = {
            "masks": answer.masks.cpu().numpy()[rows],
            "classes": [found[i] for i in rows],
            "scores": [answer.segments[i].score for i in rows],
        }
        truth = {i: c for i, c in self.classes.truth(sample).items() if c in self.classes.things}
        targets = {
            "masks": sample.objects.ids == np.array([*truth], np.int32).reshape(-1, 1, 1),
            "classes": [*truth.values()],
            "crowd": [bool(sample.objects.crowd[i - 1]) for i in truth],
        }
        tally = self.empty()
        try:
            tally.update(predictions, targets, place)
        except ValueError as error:
            raise ValueError(str(error).replace(f"image {place}:", f"{sample.name}:", 1)) from None
        return tally

    def scores(self, tally: AveragePrecision) -> dict[str, Any]:
        found = tally.compute()
        report: dict[str, Any] = {"evaluator": f"faster-coco-eval {metadata.version('faster-coco-eval')}"}
        rows = {i: {"id": i, "name": self.names[i]} for i in sorted(self.classes.things)}
        for kind, prefix in (("masks", ""), ("boxes", "box_")):
            for name in SCORES:
                ours = prefix + ("ar" if name == "ar100" else name)  # as the report calls it
                report[ours] = plain(found[kind][name])
                for i, row in rows.items():
                    row[ours] = plain(found[kind]["per_class"][i][name])
        for i, row in rows.items():
            row["truth"] = found["masks"]["per_class"][i]["truth"]
        return report | {"classes": list(rows.values())}

    def image_score(self, tally: AveragePrecision) -> float | None:
        (image,) = tally.images.values()
        present = {k: n for n, k in enumerate(sorted({*image["truth"]["classes"], *image["found"]["classes"]}))}
        apart = AveragePrecision(max(len(present), 1), "masks")  # of a few classes: an image at a time takes long
        sides = {s: image[s] | {"classes": [present[k] for k in image[s]["classes"]]} for s in ("truth", "found")}
        apart.images = {0: image | sides}
        return plain(apart.compute()["masks"]["ap"])

    def confusion(self, tally: AveragePrecision) -> None:
        return None

    def maps(self, answer: Instances, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        found = np.full(sample.objects.ids.shape, self.classes.classes.ignore_index, np.int64)
        rows = zip(answer.masks.cpu().numpy(), answer.segments, self._found(answer), strict=True)
        for mask, segment, category in reversed(list(rows)):  # the best on top
            if category >= 0 and segment.score >= SHOWN_SCORE:
                found[mask] = category
        return found, self.classes.drawn(sample, self.classes.things.__contains__)
