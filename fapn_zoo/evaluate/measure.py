"""The loop of an evaluation: every image once, on one process or many, at once or in several runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fapn_zoo.data.classes import Classes, match_classes
from fapn_zoo.data.images import load_image
from fapn_zoo.data.sample import Dataset, check_holds
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.evaluate.loading import ahead, in_blocks, load_batch, plan_batches
from fapn_zoo.evaluate.options import Options
from fapn_zoo.evaluate.state import Counted, State
from fapn_zoo.metrics.accumulator import Tally
from fapn_zoo.predict.predict import named
from fapn_zoo.predict.run import ModelNetwork, Shown, answers, device_and_type, inference
from fapn_zoo.predict.views import Views, views_for
from fapn_zoo.runtime.device import device_name
from fapn_zoo.runtime.precision import check_amp, resolve_amp
from fapn_zoo.runtime.processes import Processes, processes
from fapn_zoo.runtime.progress import bar
from fapn_zoo.runtime.provenance import data_fingerprint, versions, weights_fingerprint
from fapn_zoo.tasks import TASKS, averaging_tasks, task_for
from fapn_zoo.tasks.protocol import Scorer, Task


class ImageScore(NamedTuple):
    """One image of a finished evaluation; `compact` is what models are compared by, where it was asked for."""

    index: int
    name: str
    score: float | None
    compact: np.ndarray | None


@dataclass(frozen=True)
class Measured:
    """A finished evaluation, the same in every process.

    Attributes:
        source, dataset, views, classes, task, scorer: what was evaluated and how.
        tally: of all images.
        images: in the order of the data set.
        group: this process among all.
    """

    source: str
    dataset: Dataset
    views: Views
    classes: Classes
    task: Task
    scorer: Scorer
    tally: Tally
    images: list[ImageScore]
    group: Processes


def measure(
    model: nn.Module, data: Any, options: Options, resume: str | os.PathLike | None = None, compact: bool = False
) -> Measured:
    """Counts all images of a data set.

    Args:
        model, data: see `evaluate`.
        resume: a state folder; see `State`.
        compact: keep for every image what models are compared by.

    Raises:
        ValueError, FileNotFoundError: see `evaluate`.
    """
    task = TASKS[options.task]
    dataset = open_dataset(data, options.split, task.needs) if isinstance(data, (str, os.PathLike)) else data
    source = dataset.name if data is dataset else str(data)
    total = min(len(dataset), options.limit or len(dataset))
    if not total:
        raise ValueError(f"{dataset.name} has no image to evaluate")
    classes = match_classes(model, dataset, options.class_map)
    views = views_for(model.spec, options.scales, options.flip, options.window, options.stride)
    if options.device is not None:
        model.to(options.device)
    resolve_amp(options.amp, *device_and_type(model))  # refuses what would not work there
    scorer = _scorer(model, dataset, task, classes, views, options.boundary)
    if compact and not scorer.measures:
        raise ValueError(f"task {task.name!r} cannot be compared: its scores are no sums over images")
    group = processes()
    state = None
    if resume is not None:
        identity = _identity(model, dataset, source, total, options, views, classes)
        state = State(resume, identity, scorer.empty, group.main)
        group.wait()  # before anyone writes a part
    found = Found(scorer, compact)
    for entry in state.entries() if state is not None and group.main else ():
        found.add(entry)
    batches = plan_batches(dataset, total, options.batch_size, model.data, views)
    left = [batch for batch in batches if state is None or not state.done.issuperset(batch)]
    run = Loop(model, dataset, task, scorer, views, options, state)
    counts = {"total": total, "initial": total - sum(map(len, left))}
    with bar(options.progress and group.main, **counts, unit="img", desc="evaluate", leave=False) as shown:
        for entry in run.counted(left[group.rank :: group.world]):
            found.add(entry)
            shown.update(min(group.world, total - shown.n))
    return Measured(source, dataset, views, classes, task, scorer, *found.everywhere(group), group)


def _scorer(model: nn.Module, dataset: Dataset, task: Task, classes: Classes, views: Views, boundary: bool) -> Scorer:
    task_for(model.spec, task.name)  # refuses what the model does not answer
    if not views.single and not task.averages_views:
        raise ValueError(f"scales, flip and window work for {averaging_tasks()} only, not {task.name!r}")
    check_holds(dataset, task.needs, f"task {task.name!r}")
    return task.scorer(dataset, classes, named(model), boundary=boundary)


@dataclass(frozen=True)
class Loop:
    """What stays the same from batch to batch."""

    model: nn.Module
    dataset: Dataset
    task: Task
    scorer: Scorer
    views: Views
    options: Options
    state: State | None

    def counted(self, batches: Sequence[tuple[int, ...]]) -> Iterator[Counted]:
        """Runs and counts these batches; what is done is kept in the state, also after an error or Ctrl-C."""
        state = self.state
        try:
            with inference(self.model):  # once, not for every image
                for (index, sample), answer in self.answers(self._shown(batches)):
                    if state is not None and index in state.done:
                        continue  # of a batch that was cut off: it is run whole, so that rounding stays the same
                    entry = Counted(index, sample.name, self.scorer.count(answer, sample, index))
                    if state is not None:
                        state.add(entry)
                        state.save_if_due()
                    yield entry
        finally:
            if state is not None:
                state.save()

    def answers(self, shown: Iterator[Shown]) -> Iterator[tuple[Any, Any]]:
        """The way of `predict`."""
        network = ModelNetwork(self.model, self.options.amp)
        options = {"batch_size": self.options.batch_size, **self.task.scored}
        return answers(network, self.scorer.data, self.task, self.views, shown, **options)

    def _shown(self, batches: Sequence[tuple[int, ...]]) -> Iterator[Shown]:
        cores = os.cpu_count() or 1
        threads = self.options.threads or min(4, cores)
        no_core_left = device_and_type(self.model)[0].type == "cpu" and torch.get_num_threads() >= cores
        read = in_blocks if no_core_left else ahead
        load = partial(load_batch, self.dataset, data=self.model.data, views=self.views)
        for batch in read(load, batches, threads):
            yield from batch


@dataclass
class Found:
    """The tally of all images so far, and a little of each."""

    scorer: Scorer
    compact: bool
    images: list[ImageScore] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tally = self.scorer.empty()

    def add(self, entry: Counted) -> None:
        kept = None
        if self.compact:
            kept = np.concatenate([measure.rows(entry.tally) for measure in self.scorer.measures])
        self.images.append(ImageScore(entry.index, entry.name, self.scorer.image_score(entry.tally), kept))
        self.tally.merge(entry.tally)

    def everywhere(self, group: Processes) -> tuple[Tally, list[ImageScore]]:
        """The tally and the images of all processes."""
        total = self.scorer.empty()
        for tally in group.gather([self.tally]):
            total.merge(tally)
        return total, sorted(group.gather(self.images), key=lambda image: image.index)


def class_maps(model: nn.Module, images: Sequence[np.ndarray], amp: str = "no") -> Tensor:
    """What `predict` answers in the same precision for images of equal size, without its scores and segments.

    Args:
        images: (H, W, 3) uint8 RGB each.
        amp: as in `evaluate`.

    Returns:
        Class ids (N, H, W) int64 on the model's device.
    """
    check_amp(amp)
    data, views = model.data, Views()
    pixels = [load_image(image, len(data.mean)).pixels for image in images]
    shown = [Shown(None, tuple(one.shape[1:]), views.prepare(data, one)) for one in pixels]
    options = {"batch_size": len(images), "shares": False}
    found = answers(ModelNetwork(model, amp), data, TASKS["semantic"], views, shown, **options)
    return torch.stack([answer.labels for _, answer in found])


def _identity(
    model: nn.Module, dataset: Any, source: str, total: int, options: Options, views: Views, classes: Classes
) -> dict[str, Any]:
    """Everything that the counts of an image may depend on."""
    device = next(model.parameters()).device
    return {
        "model": model.spec.name,
        "weights": weights_fingerprint(model),
        "preprocessing": model.data.to_dict(),
        "data": source if source == dataset.name else str(Path(source).name),
        "split": options.split,
        "images": total,
        "files": data_fingerprint(dataset),
        "classes": list(classes.names),
        "class map": classes.mapping,
        "task": options.task,
        "boundary": options.boundary,
        "views": {name: value for name, value in vars(views).items() if name != "overlap"},  # that of `predict`
        "batch size": options.batch_size,
        "amp": options.amp,
        "device": device_name(device) if device.type == "cuda" else device.type,
        "versions": versions(),
    }
