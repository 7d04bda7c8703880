"""What tasks with objects share: which classes count, true segments, targets, and maps to draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import torch

from fapn_zoo.data.classes import Classes
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import Dataset, Sample, check_holds
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.tasks.protocol import Task
from fapn_zoo.zoo.spec import DataSpec


def object_targets(sample: Sample, labels: LabelMap, *, things_only: bool, masks: bool = True) -> Targets:
    """Class and box, and the mask where asked for, of what is no crowd, is seen, and has a trained class."""
    objects = sample.objects
    kept = ~objects.crowd & (objects.classes != labels.ignore_index)
    if things_only:
        kept &= np.isin(objects.classes, labels.things)
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    kept &= (sides > 0).all(axis=1)  # a crop may have cut an object off
    if masks:
        kept &= np.array([objects.crop(m).pixels.size > 0 for m in range(len(kept))], bool)
    rows = np.flatnonzero(kept)
    classes = torch.from_numpy(objects.classes[rows].astype(np.int64))
    boxes = torch.from_numpy(objects.boxes[rows].astype(np.float32))
    full = (torch.from_numpy(objects.masks(rows.tolist(), sample.size)),) if masks else ()
    return Targets(classes=(classes,), masks=full, boxes=(boxes,), ignore_index=labels.ignore_index)


class ObjectClasses:
    """Which classes of model and data are scored, and which of them are things.

    Args:
        task: whose truth is scored.
        dataset, classes, data, boundary: see `Task.scorer`.

    Attributes:
        scored: classes of the data that count; things: those of them that are things.
        of_model: class of the data by class of the model.
        spec: the model's `data`, its things those that count here.

    Raises:
        ValueError: `boundary`, a data set without what the task needs, or things of the model that the data calls stuff
            or the other way round.
    """

    def __init__(self, task: Task, dataset: Dataset, classes: Classes, data: DataSpec, boundary: bool) -> None:
        if boundary:
            raise ValueError(f"boundary works for task 'semantic' and 'instance' only, not {task.name!r}")
        check_holds(dataset, task.needs, f"task {task.name!r}")
        self.classes, self.names = classes, classes.names
        self.scored = frozenset(range(len(self.names))) - {classes.ignore_index}
        self.things = self.scored & frozenset(dataset.labels.things)
        self.of_model = list(range(len(data.labels))) if classes.answers is None else classes.answers.tolist()
        self.spec = dataclasses.replace(data, things=self._model_things(dataset.name, data))

    def _model_things(self, dataset: str, data: DataSpec) -> tuple[int, ...]:
        """The model's own things, or where it knows none those of the data."""
        theirs = tuple(i for i, category in enumerate(self.of_model) if category in self.things)
        own = tuple(data.things)
        if not own or self.classes.mapping is not None:
            return own or theirs
        apart = {"the model": set(own) - set(theirs), dataset: set(theirs) - set(own)}
        if any(apart.values()):
            only = {who: ", ".join(data.labels[i] for i in sorted(ids)) or "-" for who, ids in apart.items()}
            shown = "; ".join(f"only in {who}: {names}" for who, names in only.items())
            hint = "to evaluate all the same, give --map names"
            raise ValueError(f"model and {dataset} count objects of other classes; {shown}; {hint}")
        return own

    def truth(self, sample: Sample) -> dict[int, int]:
        """Class by id (1..M) of every true segment that is scored."""
        classes, table = sample.objects.classes, self.classes.truth
        found = enumerate((classes if table is None else table[classes]).tolist(), 1)
        return {i: category for i, category in found if category in self.scored}

    def drawn(self, sample: Sample, kept: Callable[[int], bool] = lambda category: True) -> np.ndarray:
        """The class map of the true segments whose class is kept, with the ignore index elsewhere."""
        found = {i: category for i, category in self.truth(sample).items() if kept(category)}
        rows = np.arange(1, len(sample.objects.classes) + 1)
        objects = sample.objects.only(np.isin(rows, list(found)))
        return painted(objects.map(sample.size), dict(enumerate(found.values(), 1)), self.classes.ignore_index)


def painted(ids: np.ndarray, category_of: Mapping[int, int], ignore_index: int) -> np.ndarray:
    """The class map of a segment map."""
    table = np.full(max(int(ids.max(initial=0)), *category_of, 0) + 1, ignore_index, np.int64)
    for segment, category in category_of.items():
        table[segment] = category
    return table[ids]


def thing_classes(task: Task, dataset: Dataset, classes: Classes, data: DataSpec, boundary: bool) -> ObjectClasses:
    """`ObjectClasses` of which some are things; ValueError where model or data have none."""
    found = ObjectClasses(task, dataset, classes, data, boundary)
    if not found.spec.things or not found.things:
        who = dataset.name if not found.things else "the model"
        raise ValueError(f"{who} has no class of countable objects, which task {task.name!r} needs")
    return found
