"""What instance segmentation and detection share: average precision over the classes that are things."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from fapn_zoo.data.mask_encoding import RunLengths
from fapn_zoo.data.sample import Sample
from fapn_zoo.metrics import AveragePrecision
from fapn_zoo.metrics.detection import SCORES
from fapn_zoo.postprocess.answers import Detections, Instances
from fapn_zoo.tasks.objects import ObjectClasses
from fapn_zoo.tasks.protocol import Measure, plain

SHOWN_SCORE = 0.5  # of an object in a picture
Answer = Instances | Detections


class PrecisionScorer(ABC):
    """See `Scorer`. Subclasses say what of an answer is scored.

    Attributes:
        kinds: what `AveragePrecision` scores -> what its scores begin with in a report; the first ranks images.
    """

    kinds: Mapping[str, str]
    rank_by: str
    measures: tuple[Measure, ...] = ()  # average precision is no sum over images

    def __init__(self, classes: ObjectClasses) -> None:
        self.classes, self.names, self.data = classes, classes.names, classes.spec

    @abstractmethod
    def found(self, answer: Answer) -> dict[str, Any]:
        """Its "masks" (`RunLengths`) and "boxes" (M, 4), as far as it has and `kinds` wants them."""

    @abstractmethod
    def places(self, answer: Answer, m: int) -> tuple[slice, slice, np.ndarray | slice]:
        """Rows and columns of the image that hold object m, and which pixels in there are its."""

    def empty(self) -> AveragePrecision:
        return AveragePrecision(len(self.names), list(self.kinds))

    def _classes(self, answer: Answer) -> list[int]:
        """Class of the data by object; -1 where it is none that is scored."""
        found = [self.classes.of_model[segment.category_id] for segment in answer.segments]
        return [category if category in self.classes.things else -1 for category in found]

    def count(self, answer: Answer, sample: Sample, place: int) -> AveragePrecision:
        """Raises ValueError, naming the sample, for sizes that differ."""
        found = self._classes(answer)
        rows = [i for i, category in enumerate(found) if category >= 0]
        predictions = {kind: [values[i] for i in rows] for kind, values in self.found(answer).items()}
        predictions |= {"classes": [found[i] for i in rows], "scores": [answer.segments[i].score for i in rows]}
        truth = {i: c for i, c in self.classes.truth(sample).items() if c in self.classes.things}
        objects, kept = sample.objects, [i - 1 for i in truth]
        targets = {"classes": [*truth.values()], "crowd": objects.crowd[kept], "boxes": objects.boxes[kept]}
        targets["areas"] = objects.areas[kept]
        if "masks" in self.kinds:
            size = sample.size if objects.ids is None else objects.ids.shape
            targets["masks"] = [RunLengths.of(*objects.crop(m), size) for m in kept]
        tally = self.empty()
        try:
            tally.update(predictions, targets, place)
        except ValueError as error:
            raise ValueError(str(error).replace(f"image {place}:", f"{sample.name}:", 1)) from None
        return tally

    def scores(self, tally: AveragePrecision) -> dict[str, Any]:
        found = tally.compute()
        report: dict[str, Any] = {"evaluator": f"hotcoco {metadata.version('hotcoco')}"}
        rows = {i: {"id": i, "name": self.names[i]} for i in sorted(self.classes.things)}
        for kind, prefix in self.kinds.items():
            for name in SCORES:
                ours = prefix + ("ar" if name == "ar100" else name)  # as the report calls it
                report[ours] = plain(found[kind][name])
                for i, row in rows.items():
                    row[ours] = plain(found[kind]["per_class"][i][name])
        for i, row in rows.items():
            row["truth"] = found[next(iter(self.kinds))]["per_class"][i]["truth"]
        return report | {"classes": list(rows.values())}

    def image_score(self, tally: AveragePrecision) -> float | None:
        (image,) = tally.images.values()
        present = {k: n for n, k in enumerate(sorted({*image["truth"]["classes"], *image["found"]["classes"]}))}
        kind = next(iter(self.kinds))
        apart = AveragePrecision(max(len(present), 1), kind)  # of a few classes: an image at a time takes long
        sides = {s: image[s] | {"classes": [present[k] for k in image[s]["classes"]]} for s in ("truth", "found")}
        apart.images = {0: image | sides}
        return plain(apart.compute()[kind]["ap"])

    def confusion(self, tally: AveragePrecision) -> None:
        return None

    def maps(self, answer: Answer, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        found = np.full(sample.size, self.classes.classes.ignore_index, np.int64)
        rows = enumerate(zip(answer.segments, self._classes(answer), strict=True))
        for m, (segment, category) in reversed(list(rows)):  # the best on top
            if category >= 0 and segment.score >= SHOWN_SCORE:
                down, across, pixels = self.places(answer, m)
                found[down, across][pixels] = category
        return found, self.classes.drawn(sample, self.classes.things.__contains__)
