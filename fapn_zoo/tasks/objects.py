"""Panoptic and instance evaluation: what mask classification models find, one image at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fapn_zoo import postprocess
from fapn_zoo.data.classes import Classes
from fapn_zoo.metrics import AveragePrecision, PanopticQuality
from fapn_zoo.metrics.accumulator import UNIT
from fapn_zoo.metrics.detection import SCORES
from fapn_zoo.predict.predict import check_task, one_output, raw_output
from fapn_zoo.predict.views import Views, head_stride
from fapn_zoo.tasks.result import full_names
from fapn_zoo.tasks.semantic import Measure, plain

MAX_INSTANCES = 100  # of an image, as in the official evaluation
SHOWN_SCORE = 0.5  # of an instance in a picture

AVERAGES = tuple("ar" if name == "ar100" else name for name in SCORES)  # as the report calls them


class _ObjectTask:
    """What both tasks share: their checks, which classes are things, and the way to the model.

    Args:
        task: "panoptic" or "instance".
        model, dataset, classes, views, boundary: see `fapn_zoo.evaluate.measure`.

    Raises:
        ValueError: for a model without masks, more than one view of an image, boundary scores, a data set without
            segments or things, or things of the model that the data calls stuff or the other way round.
    """

    def __init__(
        self, task: str, model: nn.Module, dataset: Any, classes: Classes, views: Views, boundary: bool
    ) -> None:
        check_task(model, task)
        if not views.single or boundary:
            what = "boundary works" if views.single else "scales, flip and window work"
            raise ValueError(f"{what} for task 'semantic' only, not {task!r}")
        if not hasattr(dataset, "things"):
            raise ValueError(
                f"{dataset.name} has no segments, which task {task!r} needs; "
                "give a folder in COCO's panoptic format, or scenes:N"
            )
        self.labels, self.classes, self.names = dataset.labels, classes, classes.names
        self.scored = frozenset(range(len(self.names))) - {classes.ignore_index}
        self.data_things = self.scored & frozenset(dataset.things)
        same = range(model.num_classes)
        self.category = list(same) if classes.answers is None else classes.answers.tolist()  # by class of the model
        self.things = self._things(model, dataset)

    def _things(self, model: nn.Module, dataset: Any) -> tuple[int, ...]:
        """Classes of the model whose objects are counted: its own things, or where it knows none those of the data."""
        theirs = tuple(i for i, category in enumerate(self.category) if category in self.data_things)
        own = tuple(model.data.things)
        if not own or self.classes.mapping is not None:
            return own or theirs
        names = full_names(model.data.labels, model.num_classes)
        apart = {"the model": set(own) - set(theirs), dataset.name: set(theirs) - set(own)}
        if any(apart.values()):
            shown = [f"only in {who}: {', '.join(names[i] for i in sorted(ids)) or '-'}" for who, ids in apart.items()]
            raise ValueError(
                f"model and {dataset.name} count objects of other classes; {'; '.join(shown)}; "
                "to evaluate all the same, give --map names"
            )
        return own

    def _truth(self, sample: Any) -> dict[int, int]:
        """Class by id of every true segment that is scored."""
        table = self.classes.truth
        found = {s["id"]: s["category_id"] if table is None else int(table[s["category_id"]]) for s in sample.segments}
        return {i: category for i, category in found.items() if category in self.scored}

    def _run(
        self,
        model: nn.Module,
        images: Sequence[list[Tensor]],
        sizes: Sequence[tuple[int, int]],
        amp: str,
        pick: Callable[..., list[Any]],
        **options: Any,
    ) -> list[Any]:
        """What ``pick``, a function of `fapn_zoo.postprocess`, makes of every image: the way of `predict`.

        To be called inside `inference`.
        """
        shown = [parts[0] for parts in images]
        options |= {"things": self.things, "stride": head_stride(model)}
        output = raw_output(model, shown, amp)
        sides = zip(shown, sizes, strict=True)
        return [
            pick(one_output(output, n), tuple(pixels.shape[1:]), size, **options)[0]
            for n, (pixels, size) in enumerate(sides)
        ]

    def _drawn(self, sample: Any, kept: Callable[[int], bool]) -> np.ndarray:
        """The class map of the true segments whose class is kept, with the ignore index elsewhere."""
        found = {i: category for i, category in self._truth(sample).items() if kept(category)}
        return _painted(sample.ids, found, self.classes.ignore_index)


class PanopticTask(_ObjectTask):
    """Panoptic quality. Where an answer is no class of the data its pixels are void: nothing is hit there."""

    rank_by = "pq"

    def __init__(self, model: nn.Module, dataset: Any, classes: Classes, views: Views, boundary: bool) -> None:
        super().__init__("panoptic", model, dataset, classes, views, boundary)
        self.table = [{"id": i, "isthing": int(i in self.data_things)} for i in range(len(self.names))]
        self.length = 4 * len(self.names)
        self.measures = (Measure("pq", "mean", 0, 2), Measure("rq", "mean", 2, 4))

    def answer(
        self,
        model: nn.Module,
        images: Sequence[list[Tensor]],
        sizes: Sequence[tuple[int, int]],
        views: Views,
        amp: str,
        batch_size: int,
    ) -> list[postprocess.Panoptic]:
        return self._run(model, images, sizes, amp, postprocess.panoptic)

    def _found(self, answer: postprocess.Panoptic) -> tuple[np.ndarray, dict[int, int]]:
        """Segment map and class by id; segments that are one stuff of the data are joined."""
        new, category_of, stuff = np.zeros(len(answer.segments) + 1, np.int32), {}, {}
        for segment in answer.segments:
            category = self.category[segment.category_id]
            if category not in self.scored:
                continue
            target = segment.id if category in self.data_things else stuff.setdefault(category, segment.id)
            new[segment.id], category_of[target] = target, category
        return new[answer.ids.cpu().numpy()], category_of

    def count(self, answer: postprocess.Panoptic, sample: Any) -> np.ndarray:
        """Raises ValueError, naming the sample, for sizes that differ."""
        metric = PanopticQuality(self.table)
        ids, found = self._found(answer)
        truth = self._truth(sample)
        kept = sample.ids
        void = [s["id"] for s in sample.segments if s["id"] not in truth]
        if void:
            kept = np.where(np.isin(kept, void), 0, kept)
        crowds = {s["id"] for s in sample.segments if s["iscrowd"]}
        listed = [{"id": i, "category_id": category} for i, category in found.items()]
        true = [{"id": i, "category_id": category, "iscrowd": int(i in crowds)} for i, category in truth.items()]
        metric.update(ids, listed, kept, true, sample.name)
        return metric.counts.numpy().ravel()

    def _metric(self, counts: np.ndarray) -> PanopticQuality:
        metric = PanopticQuality(self.table)
        metric.counts = torch.from_numpy(counts.reshape(-1, 4))
        return metric

    def scores(self, counts: np.ndarray) -> dict[str, Any]:
        found = self._metric(counts).compute()
        report = {}
        for group, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
            report |= {f"{name}{suffix}": plain(float(found[group][name])) for name in ("pq", "sq", "rq")}
        report["classes"] = [
            {"id": i, "name": name, "isthing": i in self.data_things}
            | {key: plain(found["per_class"][i][key]) for key in ("pq", "sq", "rq")}
            | {key: found["per_class"][i][key] for key in ("tp", "fp", "fn")}
            for i, name in enumerate(self.names)
        ]
        return report

    def image_score(self, counts: np.ndarray) -> float | None:
        return plain(self._metric(counts).compute()["all"]["pq"])

    def compact(self, counts: np.ndarray) -> np.ndarray:
        """Numerator and denominator of PQ and of RQ: PQ = 2 sum(IoU) / (2 TP + FP + FN), RQ with TP for the sum."""
        hit, wrong, missed, iou = counts.reshape(-1, 4).T
        below = (2 * hit + wrong + missed) * UNIT
        return np.stack([2 * iou, below, 2 * hit * UNIT, below])

    def maps(self, answer: postprocess.Panoptic, sample: Any) -> tuple[np.ndarray, np.ndarray]:
        ids, found = self._found(answer)
        drawn = _painted(ids, found, self.classes.ignore_index)
        return drawn, self._drawn(sample, lambda category: True)


class InstanceTask(_ObjectTask):
    """Average precision of masks and of the boxes around them, over the classes that are things.

    Every image's vector is a line of JSON: its truth and its detections, masks as run lengths. Lines do not add up but
    follow one another in the order of the data set. The 100 best masks of an image are scored, however low they are.
    """

    rank_by = "ap"
    length = None
    measures = ()

    def __init__(self, model: nn.Module, dataset: Any, classes: Classes, views: Views, boundary: bool) -> None:
        super().__init__("instance", model, dataset, classes, views, boundary)
        AveragePrecision(1)  # says now if it cannot be done
        if not self.things or not self.data_things:
            who = dataset.name if not self.data_things else "the model"
            raise ValueError(f"{who} has no class of countable objects, which task 'instance' needs")

    def answer(
        self,
        model: nn.Module,
        images: Sequence[list[Tensor]],
        sizes: Sequence[tuple[int, int]],
        views: Views,
        amp: str,
        batch_size: int,
    ) -> list[postprocess.Instances]:
        options = {"score_threshold": 0.0, "max_instances": MAX_INSTANCES}
        return self._run(model, images, sizes, amp, postprocess.instances, **options)

    def _found(self, answer: postprocess.Instances) -> list[int]:
        """Class of the data by detection; -1 where it is none that is scored."""
        found = [self.category[segment.category_id] for segment in answer.segments]
        return [category if category in self.data_things else -1 for category in found]

    def count(self, answer: postprocess.Instances, sample: Any) -> np.ndarray:
        """Raises ValueError, naming the sample, for sizes that differ."""
        found = self._found(answer)
        rows = [i for i, category in enumerate(found) if category >= 0]
        predictions = {
            "masks": answer.masks.cpu().numpy()[rows],
            "classes": [found[i] for i in rows],
            "scores": [answer.segments[i].score for i in rows],
        }
        truth = {i: category for i, category in self._truth(sample).items() if category in self.data_things}
        crowds = {s["id"] for s in sample.segments if s["iscrowd"]}
        targets = {
            "masks": sample.ids == np.array([*truth], np.int32).reshape(-1, 1, 1),
            "classes": [*truth.values()],
            "crowd": [i in crowds for i in truth],
        }
        metric = AveragePrecision(len(self.names))
        metric.update(predictions, targets, sample.name)
        line = json.dumps(metric.images[sample.name], separators=(",", ":")) + "\n"
        return np.frombuffer(line.encode("ascii"), np.uint8)

    def scores(self, counts: np.ndarray) -> dict[str, Any]:
        metric = AveragePrecision(len(self.names))
        metric.images = dict(enumerate(map(json.loads, counts.tobytes().splitlines())))
        found = metric.compute()
        report: dict[str, Any] = {"evaluator": f"faster-coco-eval {metadata.version('faster-coco-eval')}"}
        rows = {i: {"id": i, "name": self.names[i]} for i in sorted(self.data_things)}
        for kind, prefix in (("masks", ""), ("boxes", "box_")):
            for ours, theirs in zip(AVERAGES, SCORES, strict=True):
                report[prefix + ours] = plain(found[kind][theirs])
                for i, row in rows.items():
                    row[prefix + ours] = plain(found[kind]["per_class"][i][theirs])
        for i, row in rows.items():
            row["truth"] = found["masks"]["per_class"][i]["truth"]
        return report | {"classes": list(rows.values())}

    def image_score(self, counts: np.ndarray) -> float | None:
        image = json.loads(counts.tobytes())
        present = {k: n for n, k in enumerate(sorted({*image["truth"]["classes"], *image["found"]["classes"]}))}
        metric = AveragePrecision(max(len(present), 1), "masks")
        for side in ("truth", "found"):
            image[side]["classes"] = [present[k] for k in image[side]["classes"]]
        metric.images = {0: image}
        return plain(metric.compute()["masks"]["ap"])

    def compact(self, counts: np.ndarray) -> np.ndarray:
        """Never asked for: there are no measures."""
        raise NotImplementedError

    def maps(self, answer: postprocess.Instances, sample: Any) -> tuple[np.ndarray, np.ndarray]:
        found = np.full(sample.ids.shape, self.classes.ignore_index, np.int64)
        rows = zip(answer.masks.cpu().numpy(), answer.segments, self._found(answer), strict=True)
        for mask, segment, category in reversed(list(rows)):  # the best on top
            if category >= 0 and segment.score >= SHOWN_SCORE:
                found[mask] = category
        return found, self._drawn(sample, self.data_things.__contains__)


def _painted(ids: np.ndarray, category_of: Mapping[int, int], ignore_index: int) -> np.ndarray:
    """Class map of a segment map."""
    table = np.full(max(int(ids.max(initial=0)), *category_of, 0) + 1, ignore_index, np.int64)
    for segment, category in category_of.items():
        table[segment] = category
    return table[ids]
