"""Predictions of several models on the same images: what is compared, where they differ, and how many pixels do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from fapn_zoo.data.classes import class_difference, full_names, model_labels
from fapn_zoo.data.images import LoadedImage, list_images, load_image
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.sample import LABELS, Objects, check_holds
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.metrics import ConfusionMatrix
from fapn_zoo.metrics.boundary import near_boundary
from fapn_zoo.runtime.tables import aligned, percent
from fapn_zoo.tasks import TASKS, task_for
from fapn_zoo.tasks.protocol import Task, plain
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec


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
