"""Large images in overlapping windows: class scores, holding those of one row of windows at a time, and objects.

The layouts of windows: that of `predict` (`tile=`) lies on the grid of the coarsest features and cuts off the margins
where a window saw its own padding; that of `evaluate` (`window=`) is the field's: fixed steps, the last window moved
back to end with the image, and the plain mean of all windows over a pixel; or, for models that want it, as few windows
as there must be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fapn_zoo.postprocess.joining import Window, join_windows

PHASE = 32  # window corners lie on the grid of the coarsest features, so a window sees what the whole image would

RunScores = Callable[[list[Tensor]], list[Tensor]]  # windows of equal size -> scores (K, h, w) of each


class Span(NamedTuple):
    """One window along one axis: the network sees `start`..`end`, its scores are used for `first`..`last`."""

    start: int
    end: int
    first: int
    last: int


def grid_spans(length: int, size: int, overlap: float, divisor: int) -> list[Span]:
    """Windows that start at multiples of the grid; the last one has as much context as fits.

    A quarter of the overlap is cut off every side that is not a side of the image: there the network saw its own
    padding instead of the picture.
    """
    if length <= size:
        return [Span(0, length, 0, length)]
    step = math.lcm(PHASE, divisor)
    stride = max(int(size * (1 - overlap)) // step * step, step)
    final = -(-(length - size) // step) * step
    starts = [*range(0, final, stride), final]
    margin = (size - stride) // 4
    spans = []
    for start in starts:
        last = min(start + size - margin, length) if start < final else length
        spans.append(Span(start, min(start + size, length), start + (margin if start else 0), last))
    return spans


def step_spans(length: int, size: int, stride: int) -> list[Span]:
    """Windows every `stride` pixels, all of one size unless the image is smaller, used whole."""
    size = min(size, length)
    starts = [*range(0, length - size, stride), length - size]
    return [Span(start, start + size, start, start + size) for start in starts]


def even_spans(length: int, size: int) -> list[Span]:
    """As few windows as cover the length, of one size, that overlap equally, used whole (EoMT's for classes)."""
    count = -(-length // size)
    overlap = (count * size - length) / max(count - 1, 1)
    starts = [int(i * (size - overlap)) for i in range(count)]
    return [Span(start, min(start + size, length), start, min(start + size, length)) for start in starts]


def window_scores(
    run: RunScores, pixels: Tensor, rows: list[Span], columns: list[Span], batch_size: int
) -> Iterator[Tensor]:
    """Yields the mean scores (K, h, W) of all windows over a pixel of an image (C, H, W), from top to bottom."""
    height, width = pixels.shape[1:]
    sums = _RowSums(width)
    ends = [*(row.first for row in rows[1:]), height]
    for row, end in zip(rows, ends, strict=True):
        for column, scores in _run_row(run, pixels, row, columns, batch_size):
            used = scores[:, row.first - row.start : row.last - row.start]
            used = used[:, :, column.first - column.start : column.last - column.start]
            sums.add(used, row.first, column.first)
        yield sums.take_until(end)


def window_objects(
    run: Callable[[list[Tensor]], list[Any]], pixels: Tensor, rows: list[Span], columns: list[Span], batch_size: int
) -> Any:
    """The objects of an image (C, H, W), from answers of `run` for windows of equal size; see `join_windows`."""
    found, windows = [], []
    for row in rows:
        for column, answer in _run_row(run, pixels, row, columns, batch_size):
            windows.append(Window(row.start, column.start, row.end, column.end))
            found.append(answer)
    return join_windows(windows, found, tuple(pixels.shape[1:]))


def _run_row(
    run: Callable[[list[Tensor]], list[Any]], pixels: Tensor, row: Span, columns: list[Span], batch_size: int
) -> Iterator[tuple[Span, Any]]:
    """Yields what `run` gives for every window of a row."""
    for _, alike in itertools.groupby(columns, lambda column: column.end - column.start):
        while batch := list(itertools.islice(alike, batch_size)):
            parts = [pixels[:, row.start : row.end, column.start : column.end] for column in batch]
            yield from zip(batch, run(parts), strict=True)


class _RowSums:
    """Sums of scores over the image rows that later windows still add to, and how often each pixel was added."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.top = 0  # image row of the first row held
        self.sums = self.counts = None

    def add(self, scores: Tensor, top: int, left: int) -> None:
        """Adds scores (K, h, w) whose corner is at image row `top`, column `left`."""
        if self.sums is None:
            self.sums = scores.new_zeros(scores.shape[0], 0, self.width)
            self.counts = scores.new_zeros(0, self.width)
        first, last = top - self.top, top - self.top + scores.shape[1]
        missing = last - self.sums.shape[1]
        if missing > 0:
            self.sums = torch.cat([self.sums, self.sums.new_zeros(len(self.sums), missing, self.width)], dim=1)
            self.counts = torch.cat([self.counts, self.counts.new_zeros(missing, self.width)])
        self.sums[:, first:last, left : left + scores.shape[2]] += scores
        self.counts[first:last, left : left + scores.shape[2]] += 1

    def take_until(self, row: int) -> Tensor:
        """Averages (K, h, width) of the image rows before `row`, which are let go of."""
        ready = row - self.top
        average = self.sums[:, :ready] / self.counts[:ready]
        self.sums, self.counts, self.top = self.sums[:, ready:].clone(), self.counts[ready:].clone(), row
        return average


class Downwards:
    """Rows of a map that is made from the top to the bottom, for a reader that never goes back."""

    def __init__(self, parts: Iterator[Tensor]) -> None:
        self.parts = parts
        self.held = next(parts)
        self.top, self.bottom = 0, self.held.shape[1]  # image rows that are held

    def __call__(self, first: int, last: int) -> Tensor:
        """Rows `first`..`last` (K, last - first, W); those above `first` are let go of."""
        while self.bottom < last:
            part = next(self.parts)
            self.held = torch.cat([self.held[:, max(first - self.top, 0) :], part], dim=1)
            self.bottom += part.shape[1]
            self.top = self.bottom - self.held.shape[1]
        return self.held[:, first - self.top : last - self.top]
