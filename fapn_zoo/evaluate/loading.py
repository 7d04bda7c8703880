"""Which images are run together, and threads that read them while the model is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from fapn_zoo.data.images import load_image
from fapn_zoo.predict.views import Views
from fapn_zoo.zoo.spec import DataSpec

Item, Made = TypeVar("Item"), TypeVar("Made")


class Loaded(NamedTuple):
    """One batch: which images, their samples, and their pixels at every size of the views."""

    indices: tuple[int, ...]
    samples: list[Any]
    images: list[list[Tensor]]


def plan_batches(dataset: Any, total: int, batch_size: int, data: DataSpec, views: Views) -> list[tuple[int, ...]]:
    """Batches of the first ``total`` images, in the order of their first image.

    Images of equal padded sizes share a batch wherever they are in the data set. The plan depends on the sizes alone,
    not on processes or on what was done before, so every run computes the same batches. Windows are batched within an
    image, so there each image is a batch.
    """
    if batch_size == 1 or views.window is not None:
        return [(i,) for i in range(total)]
    full: list[tuple[int, ...]] = []
    open_: dict[Any, list[int]] = {}
    for i in range(total):
        size = dataset.size(i) if hasattr(dataset, "size") else dataset.sample(i).image.shape[:2]
        key = views.padded(data, tuple(size))
        group = open_.setdefault(key, [])
        group.append(i)
        if len(group) == batch_size:
            full.append(tuple(open_.pop(key)))
    return sorted([*full, *map(tuple, open_.values())])


def load_batch(dataset: Any, indices: tuple[int, ...], data: DataSpec, views: Views) -> Loaded:
    """Reads and resizes the images of a batch."""
    samples = [dataset.sample(i) for i in indices]
    pixels = [load_image(sample.image, len(data.mean)).pixels for sample in samples]
    return Loaded(indices, samples, [views.prepare(data, one) for one in pixels])


def ahead(make: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """``make`` of every item in order, by threads that stay a few items ahead; an error comes out in its place."""
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


def in_blocks(make: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """``make`` of every item in order, ``threads`` of them at a time while the caller waits.

    For a model that keeps all cores busy: threads beside it would hold up those of its operators, which wait for one
    another, by more than the reading takes.
    """
    items = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        while block := list(islice(items, threads)):
            yield from list(pool.map(make, block))
