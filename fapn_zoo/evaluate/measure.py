"""The loop of an evaluation: every image once, on one process or many, at once or in several runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fapn_zoo.data.classes import Classes, match_classes
from fapn_zoo.evaluate.loading import Loaded, ahead, in_blocks, load_batch, plan_batches
from fapn_zoo.evaluate.state import Counted, State
from fapn_zoo.predict.predict import device_and_type, inference
from fapn_zoo.predict.views import Views, views_for
from fapn_zoo.runtime.device import device_name
from fapn_zoo.runtime.precision import check_amp, resolve_amp
from fapn_zoo.runtime.processes import Processes, processes
from fapn_zoo.runtime.progress import bar
from fapn_zoo.runtime.provenance import data_fingerprint, versions, weights_fingerprint
from fapn_zoo.tasks.protocol import TASKS
from fapn_zoo.tasks.semantic import Task


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `evaluate` and `compare` share; see `evaluate` for each."""

    split: str = "test"
    task: str = "semantic"
    batch_size: int = 1
    device: str | torch.device | None = None
    amp: str = "no"
    limit: int | None = None
    progress: bool = True
    scales: str | Sequence[float] | None = None
    flip: bool = False
    window: int | Sequence[int] | None = None
    stride: int | Sequence[int] | None = None
    class_map: Any = None
    boundary: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be {' or '.join(TASKS)}, got {self.task!r}")
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"batch_size and limit must be at least 1, got {self.batch_size} and {self.limit}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        check_amp(self.amp)


class ImageScore(NamedTuple):
    """One image of a finished evaluation; ``compact`` is what models are compared by, where it was asked for."""

    index: int
    name: str
    score: float | None
    compact: np.ndarray | None


@dataclass(frozen=True)
class Measured:
    """A finished evaluation, the same in every process.

    Attributes:
        source, dataset, views, classes, task: what was evaluated and how.
        counts: the sum of all images' counts, or all of them one after the other; see `Task`.
        images: in the order of the data set.
        group: this process among all.
    """

    source: str
    dataset: Any
    views: Views
    classes: Classes
    task: Task
    counts: np.ndarray
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
    kind = TASKS[options.task]
    dataset = kind.open(data, options.split) if isinstance(data, (str, os.PathLike)) else data
    source = dataset.name if data is dataset else str(data)
    total = min(len(dataset), options.limit or len(dataset))
    if not total:
        raise ValueError(f"{dataset.name} has no image to evaluate")
    classes = match_classes(model, dataset, options.class_map)
    views = views_for(model, options.scales, options.flip, options.window, options.stride)
    if options.device is not None:
        model.to(options.device)
    resolve_amp(options.amp, *device_and_type(model))  # refuses what would not work there
    task = kind.make(model, dataset, classes, views, options.boundary)
    if compact and not task.measures:
        raise ValueError(f"task {options.task!r} cannot be compared: its scores are no sums over images")
    group = processes()
    state = None
    if resume is not None:
        identity = _identity(model, dataset, source, total, options, views, classes)
        state = State(resume, identity, task.length, group.main)
        group.wait()  # before anyone writes a part
    tally = _Tally(task, compact)
    for entry in state.entries() if state is not None and group.main else ():
        tally.add(entry)
    batches = plan_batches(dataset, total, options.batch_size, model.data, views)
    left = [batch for batch in batches if state is None or not state.done.issuperset(batch)]
    mine = left[group.rank :: group.world]
    done, shown = total - sum(map(len, left)), options.progress and group.main
    with bar(shown, total=total, initial=done, unit="img", desc="evaluate", leave=False) as progress:
        for batch in _counted(model, dataset, task, mine, options, views, state):
            for entry in batch:
                tally.add(entry)
            progress.update(min(len(batch) * group.world, total - progress.n))
    counts, images = tally.everywhere(group)
    return Measured(source, dataset, views, classes, task, counts, images, group)


def _counted(
    model: nn.Module,
    dataset: Any,
    task: Task,
    batches: Sequence[tuple[int, ...]],
    options: Options,
    views: Views,
    state: State | None,
) -> Iterator[list[Counted]]:
    """Runs and counts this process's batches; what is done is kept in the state, also after an error or Ctrl-C."""
    cores = os.cpu_count() or 1
    threads = options.threads or min(4, cores)
    no_core_left = next(model.parameters()).device.type == "cpu" and torch.get_num_threads() >= cores
    read = in_blocks if no_core_left else ahead

    def load(indices: tuple[int, ...]) -> Loaded:
        return load_batch(dataset, indices, model.data, views)

    try:
        with inference(model):  # once, not for every image
            for indices, samples, images in read(load, batches, threads):
                sizes = [sample.image.shape[:2] for sample in samples]
                answers = task.answer(model, images, sizes, views, options.amp, options.batch_size)
                found = [
                    Counted(index, sample.name, task.count(answer, sample))
                    for index, sample, answer in zip(indices, samples, answers, strict=True)
                ]
                if state is not None:
                    found = [entry for entry in found if entry.index not in state.done]
                    state.add(found)
                    state.save_if_due()
                yield found
    finally:
        if state is not None:
            state.save()


@dataclass
class _Tally:
    """Sums the counts of images, or keeps them where they are no sums, and remembers a little of each."""

    task: Task
    compact: bool
    images: list[ImageScore] = field(default_factory=list)
    apart: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.task.length or 0, np.int64)

    def add(self, entry: Counted) -> None:
        if self.task.length is None:
            self.apart.append((entry.index, entry.counts))
        else:
            self.counts += entry.counts
        kept = self.task.compact(entry.counts) if self.compact else None
        self.images.append(ImageScore(entry.index, entry.name, self.task.image_score(entry.counts), kept))

    def everywhere(self, group: Processes) -> tuple[np.ndarray, list[ImageScore]]:
        """The sum (or sequence) and the images of all processes."""
        images = sorted(group.gather(self.images), key=lambda image: image.index)
        if self.task.length is not None:
            return group.sum(self.counts), images
        apart = sorted(group.gather(self.apart), key=lambda entry: entry[0])
        return np.concatenate([counts for _, counts in apart]), images


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
        "views": vars(views),
        "batch size": options.batch_size,
        "amp": options.amp,
        "device": device_name(device) if device.type == "cuda" else device.type,
        "versions": versions(),
    }
