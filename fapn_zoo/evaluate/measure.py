"""The loop of an evaluation: every image once, on one process or many, at once or in several runs.

What is run together is decided first; threads read the images while the model is busy.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from fapn_zoo.data.check_pictures import warn_of_turned
from fapn_zoo.data.classes import Classes, match_classes, model_labels
from fapn_zoo.data.fingerprint import Fingerprint
from fapn_zoo.data.images import with_channels
from fapn_zoo.data.reading_rules import Reading, reading_of
from fapn_zoo.data.sample import Dataset, check_holds
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.evaluate.state import Counted, State
from fapn_zoo.metrics.accumulator import Tally
from fapn_zoo.predict.predict import named
from fapn_zoo.predict.run import ModelNetwork, Shown, answers, device_and_type, inference
from fapn_zoo.predict.views import Views, views_for
from fapn_zoo.runtime.device import check_amp, device_name, resolve_amp
from fapn_zoo.runtime.processes import Processes, processes
from fapn_zoo.runtime.progress import bar
from fapn_zoo.runtime.provenance import versions, weights_fingerprint
from fapn_zoo.tasks import TASKS, averaging_tasks, task_for
from fapn_zoo.tasks.protocol import Scorer, Task
from fapn_zoo.zoo.spec import DataSpec

Given, Made = TypeVar("Given"), TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is evaluated: what `evaluate`, `compare` and the command line share.

    Raises ValueError naming a value that makes no sense.

    Attributes:
        split: which part of a source to open; only noted for an opened data set.
        task: a key of `fapn_zoo.tasks.TASKS` that the model answers: "semantic", "panoptic" (PQ), "instance" (AP of
            masks and boxes), "detection" (AP of boxes); None = the model's own.
        batch_size: how many images of equal (resized and padded) size, or how many windows, are run together.
        device: where to run; None = where the model is.
        amp: "bf16" or "fp16" autocast, or "no": full precision. Scores are to be the same on every processor, so there
            is no "auto" here as in `predict`.
        limit: the first so many images only.
        progress: show a progress bar (main process only).
        scales: also other sizes, and the mean of their scores: "official" (the list of the model's paper), factors of
            the test size, or short sides in pixels. `fapn_zoo.predict.run` says what is averaged.
        flip: also mirrored, at every size.
        window, stride: sliding windows, (height, width) in pixels of the resized image or one number; the stride is
            two thirds of the window if not given. The scores of all windows over a pixel are averaged.
        class_map: how to score where model and data have other classes: see `fapn_zoo.evaluate.match_classes`.
        boundary: also mIoU in bands around true boundaries, Boundary IoU and boundary F-score, or Boundary AP.
        white_level, exif: how pictures are read, for an opened data set without effect; None = as the data's
            `classes.json` says, and where that says nothing as the model was trained.
        threads: that read images, ahead of the model where it leaves a core free; None = one per core, up to 4.
    """

    split: str = "test"
    task: str | None = None
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
    white_level: float | None = None
    exif: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"task must be {' or '.join(TASKS)}, got {self.task!r}")
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"batch_size and limit must be at least 1, got {self.batch_size} and {self.limit}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        check_amp(self.amp)


class ImageScore(NamedTuple):
    """One image of a finished evaluation; `compact` is what models are compared by, where it was asked for."""

    index: int
    name: str
    score: float | None
    compact: np.ndarray | None


@dataclass(frozen=True)
class Job:
    """What is evaluated and how, the same for every image: the first `total` of the data set opened from `source`."""

    model: nn.Module
    source: str
    dataset: Dataset
    total: int
    classes: Classes
    views: Views
    task: Task
    scorer: Scorer
    options: Options
    notes: tuple[str, ...] = ()  # for the report

    def answers(self, shown: Iterable[Shown]) -> Iterator[tuple[Any, Any]]:
        """The way of `predict`."""
        network = ModelNetwork(self.model, self.options.amp)
        options = {"batch_size": self.options.batch_size, **self.task.scored}
        return answers(network, self.scorer.data, self.task, self.views, shown, **options)

    def counted(self, batches: Sequence[tuple[int, ...]], state: State | None) -> Iterator[Counted]:
        """Runs and counts these batches; what is done is kept in the state, also after an error or Ctrl-C."""
        cores = os.cpu_count() or 1
        no_core_left = device_and_type(self.model)[0].type == "cpu" and torch.get_num_threads() >= cores
        read = in_blocks if no_core_left else ahead
        load = partial(load_batch, self.dataset, data=self.model.data, views=self.views)
        shown = (one for batch in read(load, batches, self.options.threads or min(4, cores)) for one in batch)
        try:
            with inference(self.model):  # once, not for every image
                for (index, sample), answer in self.answers(shown):
                    if state is not None and index in state.done:
                        continue  # of a batch that was cut off: it is run whole, so that rounding stays the same
                    entry = Counted(index, sample.name, self.scorer.count(answer, sample, index))
                    if state is not None:
                        state.add(entry)
                    yield entry
        finally:
            if state is not None:
                state.save()

    def identity(self) -> dict[str, Any]:
        """Everything that the counts of an image may depend on."""
        device, options = next(self.model.parameters()).device, self.options
        return {
            "model": self.model.spec.name,
            "weights": weights_fingerprint(self.model),
            "preprocessing": self.model.data.to_dict(),
            "data": self.source if self.source == self.dataset.name else Path(self.source).name,
            "reading": reading_of(self.dataset).options,
            "split": options.split,
            "images": self.total,
            "files": str(Fingerprint.of(self.dataset)),
            "classes": list(self.classes.names),
            "class map": self.classes.mapping,
            "task": self.task.name,
            "boundary": options.boundary,
            "views": {name: value for name, value in vars(self.views).items() if name != "overlap"},  # of `predict`
            "batch size": options.batch_size,
            "amp": options.amp,
            "device": device_name(device) if device.type == "cuda" else device.type,
            "versions": versions(),
        }


class Stopped(Exception):
    """An evaluation was broken off because `should_stop` said so."""


class Measured(NamedTuple):
    """A finished evaluation, the same in every process: the tally of all images, and these in the data set's order."""

    job: Job
    tally: Tally
    images: list[ImageScore]
    group: Processes


def measure(
    model: nn.Module,
    data: Any,
    options: Options,
    resume: str | os.PathLike | None = None,
    compact: bool = False,
    first: nn.Module | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Measured:
    """Counts all images of a data set; arguments and errors as for `evaluate`.

    `compact` keeps for every image what models are compared by; `first` is the model that has the classes of a folder
    that names none, if that is not `model`.
    """
    job = _job(model, data, options, model if first is None else first)
    scorer = job.scorer
    if compact and not scorer.measures:
        raise ValueError(f"task {job.task.name!r} cannot be compared: its scores are no sums over images")
    group, state = processes(), None
    if resume is not None:
        state = State(resume, job.identity(), scorer.empty, group.main)
        group.wait()  # before anyone writes a part
    tally, images = scorer.empty(), []

    def add(entry: Counted) -> None:
        kept = np.concatenate([measure.rows(entry.tally) for measure in scorer.measures]) if compact else None
        images.append(ImageScore(entry.index, entry.name, scorer.image_score(entry.tally), kept))
        tally.merge(entry.tally)

    for entry in state.entries() if state is not None and group.main else ():
        add(entry)
    batches = plan_batches(job.dataset, job.total, options.batch_size, model.data, job.views)
    left = [batch for batch in batches if state is None or not state.done.issuperset(batch)]
    counts = {"total": job.total, "initial": job.total - sum(map(len, left))}
    stop = group.flag(should_stop) if should_stop is not None else None
    stopped = stop is not None and stop()
    mine = left[group.rank :: group.world] if not stopped else []
    shown = bar(options.progress and group.main, **counts, unit="img", desc="evaluate", leave=False)
    with shown, contextlib.closing(job.counted(mine, state)) as entries:
        for entry in entries:
            add(entry)
            shown.update(min(group.world, job.total - shown.n))
            if stopped := stop is not None and stop():
                break
    if stop is not None and any(group.gather([stopped])):
        raise Stopped
    whole = scorer.empty()
    for part in group.gather([tally]):
        whole.merge(part)
    return Measured(job, whole, sorted(group.gather(images), key=lambda image: image.index), group)


def _job(model: nn.Module, data: Any, options: Options, first: nn.Module) -> Job:
    task = task_for(model.spec, options.task or first.spec.task)  # refuses what the model does not answer
    dataset, source = data, getattr(data, "name", str(data))
    table = model_labels(first) if options.class_map is None else None
    if isinstance(data, (str, os.PathLike)):
        own = Reading.of_model(model.data)
        reading = Reading(options.white_level, options.exif, own.in_chans, otherwise=own)
        dataset, source = open_dataset(data, options.split, task.needs, reading=reading, table=table), str(data)
        warn_of_turned(dataset)
    total = min(len(dataset), options.limit or len(dataset))
    if not total:
        raise ValueError(f"{dataset.name} has no image to evaluate")
    classes = match_classes(model, dataset, options.class_map)
    views = views_for(model.spec, options.scales, options.flip, options.window, options.stride)
    if options.device is not None:
        model.to(options.device)
    resolve_amp(options.amp, *device_and_type(model))  # refuses what would not work there
    if not views.single and not task.averages_views:
        raise ValueError(f"scales, flip and window work for {averaging_tasks()} only, not {task.name!r}")
    check_holds(dataset, task.needs, f"task {task.name!r}")
    scorer = task.scorer(dataset, classes, named(model), boundary=options.boundary)
    notes = (
        ("the data names no classes: taken from the model",) if table is not None and dataset.labels is table else ()
    )
    return Job(model, source, dataset, total, classes, views, task, scorer, options, notes)


def plan_batches(dataset: Dataset, total: int, batch_size: int, data: DataSpec, views: Views) -> list[tuple[int, ...]]:
    """Batches of the first `total` images, in the order of their first image.

    Images of equal padded sizes share a batch wherever they are in the data set. The plan depends on the sizes alone,
    not on processes or on what was done before, so every run computes the same batches. Windows are batched within an
    image, so there each image is a batch; so it is of a stream, whose sizes nobody knows before.
    """
    if batch_size == 1 or views.window is not None or getattr(dataset, "blocks", ()):
        return [(i,) for i in range(total)]
    full: list[tuple[int, ...]] = []
    open_: dict[Any, list[int]] = {}
    for i in range(total):
        key = views.padded(data, tuple(dataset.size(i)))
        group = open_.setdefault(key, [])
        group.append(i)
        if len(group) == batch_size:
            full.append(tuple(open_.pop(key)))
    return sorted([*full, *map(tuple, open_.values())])


def load_batch(dataset: Dataset, indices: tuple[int, ...], data: DataSpec, views: Views) -> list[Shown]:
    """Reads and resizes the images of a batch; an item is (place in the data set, sample)."""
    found = []
    for i in indices:
        sample = dataset.sample(i)
        pixels = with_channels(sample.image, len(data.mean), sample.name)
        found.append(Shown((i, sample), sample.size, views.prepare(data, pixels), sample.name))
    return found


def ahead(make: Callable[[Given], Made], items: Iterable[Given], threads: int) -> Iterator[Made]:
    """`make` of every item in order, by threads that stay a few items ahead; an error comes out in its place."""
    items = iter(items)
    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
    try:
        waiting.extend(pool.submit(make, item) for item in islice(items, threads + 1))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, item) for item in islice(items, 1))
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_blocks(make: Callable[[Given], Made], items: Iterable[Given], threads: int) -> Iterator[Made]:
    """`make` of every item in order, `threads` of them at a time while the caller waits.

    For a model that keeps all cores busy: threads beside it would hold up those of its operators, which wait for one
    another, by more than the reading takes.
    """
    items = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        while block := list(islice(items, threads)):
            yield from list(pool.map(make, block))
