"""Which images are run together, and threads that read them while the model is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from fapn_zoo.data.images import with_channels
from fapn_zoo.data.sample import Dataset
from fapn_zoo.predict.run import Shown
from fapn_zoo.predict.views import Views
from fapn_zoo.zoo.spec import DataSpec

Given, Made = TypeVar("Given"), TypeVar("Made")


def plan_batches(dataset: Dataset, total: int, batch_size: int, data: DataSpec, views: Views) -> list[tuple[int, ...]]:
    """Batches of the first `total` images, in the order of their first image.

    Images of equal padded sizes share a batch wherever they are in the data set. The plan depends on the sizes alone,
    not on processes or on what was done before, so every run computes the same batches. Windows are batched within an
    image, so there each image is a batch.
    """
    if batch_size == 1 or views.window is not None:
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
