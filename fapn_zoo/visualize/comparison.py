"""Answers of several models on the same images: what is compared, where they differ, and how much of it is wrong.

Classes are compared pixel by pixel. Objects are matched with the true ones, or with those of the first model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hotcoco import mask
from torch import nn

from fapn_zoo.data.classes import class_difference, full_names, model_labels
from fapn_zoo.data.images import LoadedImage, list_images, load_image
from fapn_zoo.data.mask_encoding import RunLengths
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.sample import LABELS, Objects, check_holds
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.metrics import ConfusionMatrix
from fapn_zoo.metrics.boundary import near_boundary
from fapn_zoo.runtime.tables import aligned, percent
from fapn_zoo.tasks import TASKS, task_for
from fapn_zoo.tasks.coco import segment_masks
from fapn_zoo.tasks.protocol import Task, plain
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec

LEAST_IOU = 0.5  # of an object that is hit


@dataclass(eq=False)
class Item:
    """One image to compare on: anything `load_image` takes; its true class ids (H, W) or objects, or None; a name."""

    image: Any
    labels: np.ndarray | None
    name: str
    objects: Objects | None = None


class Counts(NamedTuple):
    """Pixels by true and given class, of one model: all of them, and those near boundaries."""

    everywhere: ConfusionMatrix
    near: ConfusionMatrix

    def merge(self, other: Counts) -> Counts:
        """Adds the pixels of other images; returns self."""
        self.everywhere.merge(other.everywhere)
        self.near.merge(other.near)
        return self

    def scores(self) -> dict[str, float | None]:
        """Fractions 0..1, None where undefined: "miou", "pixel_acc", and near boundaries "band_miou", "band_acc"."""
        everywhere, near = self.everywhere.compute(), self.near.compute()
        values = everywhere["miou"], everywhere["pixel_acc"], near["miou"], near["pixel_acc"]
        return dict(zip(("miou", "pixel_acc", "band_miou", "band_acc"), map(plain, values), strict=True))


@dataclass(eq=False)
class Comparison:
    """The results of all models on one image, in the order of `models`, and the true labels or None.

    Attributes:
        labels: (H, W) class ids.
        band: pixels around true boundaries that count as near.
        differ: (H, W) bool, where a model gives another class than the first one.
        agreement: the share of the other pixels.
        valid, near: (H, W) bool, the labelled pixels and those of them near a boundary; only with labels.
    """

    name: str
    models: list[str]
    results: list[Result]
    labels: np.ndarray | None
    num_classes: int
    band: int

    def __post_init__(self) -> None:
        first, *others = (result.labels for result in self.results)
        self.differ = np.any([other != first for other in others], axis=0)
        self.agreement = 1 - float(self.differ.mean())
        if self.labels is not None:
            self.valid = self.labels != self.results[0].ignore_index
            self.near = near_boundary(self.labels, self.band, self.results[0].ignore_index)

    def wrong(self, index: int) -> np.ndarray:
        """(H, W) bool: where a model's class is not the true one; never on unlabelled pixels."""
        return self.valid & (self.results[index].labels != self.labels)

    def count(self) -> list[Counts]:
        """The counts of every model."""
        found = []
        for result in self.results:
            counts = Counts(*(ConfusionMatrix(self.num_classes, result.ignore_index) for _ in range(2)))
            counts.everywhere.update(result.labels, self.labels)
            counts.near.update(result.labels[self.near], self.labels[self.near])
            found.append(counts)
        return found


def check_models(models: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """The class names of all models; ValueError where they are not the same."""
    if len(models) < 2:
        raise ValueError("name two models or more to compare")
    first, *others = models
    names = full_names(models[first].data.labels, models[first].num_classes)
    for other in others:
        theirs = full_names(models[other].data.labels, models[other].num_classes)
        named = bool(models[first].data.labels and models[other].data.labels)
        if found := class_difference(first, names, other, theirs, named):
            raise ValueError(f"{found}: they cannot be compared")
    return names


def image_items(model: nn.Module, images: Sequence[str | Path]) -> Iterator[Item]:
    """Image files, URLs and folders of images, read as the model reads them.

    Raises FileNotFoundError or ImageError for what is missing or cannot be read, naming the file.
    """
    paths = [path for image in images for path in (list_images(image) if Path(image).is_dir() else [image])]
    read = (load_image(path, **Reading.of_model(model.data).options) for path in paths)
    return (Item(image, None, image.name) for image in read)


def data_items(
    model: nn.Module, source: str | Path, split: str = "test", limit: int | None = None, needs: Collection[str] = LABELS
) -> Iterator[Item]:
    """The images and the truth of a data set, see `fapn_zoo.data.sources.open_dataset`; the first `limit` of them.

    `needs` are those of the task, see `comparison_task`.

    Raises:
        ValueError: the data set's classes are not the model's. FileNotFoundError, DataError: as opening it does.
    """
    own = Reading.of_model(model.data)
    reading = Reading(None, None, own.in_chans, otherwise=own)
    dataset = open_dataset(source, split, needs, reading=reading, table=model_labels(model))
    check_holds(dataset, needs, "the comparison")
    names, named = full_names(model.data.labels, model.num_classes), bool(model.data.labels)
    if found := class_difference("the model", names, dataset.name, dataset.labels.names, named):
        raise ValueError(found)
    count = len(dataset) if limit is None else min(len(dataset), limit)
    return (_sample(dataset, index, model.data, needs) for index in range(count))


def _sample(dataset: Any, index: int, data: DataSpec, needs: Collection[str]) -> Item:
    """A sample whose unlabelled pixels have the model's value for them, and whose objects are of the task."""
    sample = dataset.sample(index)
    image = LoadedImage(sample.image, sample.name)
    if {*needs} != LABELS:
        objects = sample.objects
        if "segments" not in needs and (things := data.things or dataset.labels.things):
            objects = objects.only(np.isin(objects.classes, things))
        return Item(image, None, sample.name, objects)
    labels = sample.labels
    if dataset.labels.ignore_index != data.ignore_index:
        labels = np.where(labels == dataset.labels.ignore_index, data.ignore_index, labels.astype(np.int32))
    return Item(image, labels, sample.name)


def comparison_task(models: Mapping[str, nn.Module], name: str | None = None) -> Task:
    """The task of this name, or the first model's own. ValueError, naming the model, where one does not answer it."""
    name = name or next(iter(models.values())).spec.task
    for model in models.values():
        task_for(model.spec, name)
    return TASKS[name]


def render(report: Mapping[str, Any]) -> str:
    """The report of `side_by_side` as text: a line per image, one for all, and where models agree least; percent."""
    letters = [chr(ord("A") + i) for i in range(len(report["models"]))]
    lines = [f"{letter} = {name}" for letter, name in zip(letters, report["models"], strict=True)]
    rows = [*report["images"], report["total"] | {"name": "all"}]
    scored = any("scores" in row for row in rows)
    of_objects = report["task"] != "semantic"
    head = ["image", "agree"]
    for letter in letters if scored else ():
        names = ["F1", "hit", "missed", "wrong"] if of_objects else ["mIoU", "acc", "mIoU near", "acc near"]
        head += [f"{letter} {names[0]}", *names[1:]]
    table = [head]
    for row in rows:
        found = [row["scores"][name] for name in report["models"]] if "scores" in row else []
        values = [row["agree"], *(value for one in found for value in one.values())]
        table.append([row["name"], *(str(value) if isinstance(value, int) else percent(value) for value in values)])
    lines += aligned(table)
    if len(report["images"]) > 5:
        apart = sorted(report["images"], key=lambda row: row["agree"])[:5]
        lines.append(f"least agreement: {', '.join(row['file'] for row in apart)}")
    if scored and not of_objects and all(one["miou"] is None for one in rows[-1]["scores"].values()):
        lines.append("nothing is scored: no pixel of the labels has a class")
    if scored and of_objects:
        lines.append("hit: an object of the same class overlaps the true one by half of their union")
    elif scored:
        lines.append(f"near: at most {report['band']} rows and columns from another true class")
    return "\n".join(lines)


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
