"""Class scores of large images in overlapping windows, holding the scores of one row of windows at a time.

Two layouts of windows: that of `predict` (``tile=``) lies on the grid of the coarsest features and cuts off the margins
where a window saw its own padding; that of `evaluate` (``window=``) is the field's: fixed steps, the last window moved
back to end with the image, and the plain mean of all windows over a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fapn_zoo.postprocess import choose
from fapn_zoo.predict.inputs import height_and_width

_PHASE = 32  # window corners lie on the grid of the coarsest features, so a window sees what the whole image would

RunScores = Callable[[list[Tensor]], tuple[Tensor, bool]]  # windows of equal size -> scores (N, K, h, w), are logits?


class _Span(NamedTuple):
    """One window along one axis: the network sees ``start``..``end``, its scores are used for ``first``..``last``."""

    start: int
    end: int
    first: int
    last: int


def tile_size(tile: int | tuple[int, int] | None, overlap: float, size_divisor: int) -> tuple[int, int] | None:
    """(height, width) of the windows, rounded up to the grid; None for no tiling. Checks both arguments."""
    if not 0 <= overlap <= 0.75:
        raise ValueError(f"overlap={overlap}; expected 0..0.75, the share of a window")
    if tile is None:
        return None
    step = math.lcm(_PHASE, size_divisor)
    return tuple(-(-side // step) * step for side in height_and_width(tile, "tile"))


def predict_tiles(
    run: RunScores, pixels: Tensor, window: tuple[int, int], overlap: float, batch_size: int, size_divisor: int
) -> tuple[Tensor, Tensor]:
    """Class map (H, W) int64 and its probability (H, W) float32 of an image (C, H, W).

    The scores of all windows over a pixel are averaged. A quarter of the overlap is cut off every side of a window
    that is not a side of the image: there the network saw its own padding instead of the picture.
    """
    step = math.lcm(_PHASE, size_divisor)
    rows, columns = (_spans(n, side, overlap, step) for n, side in zip(pixels.shape[1:], window, strict=True))
    labels, shares = [], []
    for scores, are_logits in _averages(run, pixels, rows, columns, batch_size):
        best, share = choose(scores, are_logits)
        labels.append(best.cpu())
        shares.append(share.cpu())
    return torch.cat(labels), torch.cat(shares)


def window_scores(
    run: RunScores, pixels: Tensor, window: tuple[int, int], stride: tuple[int, int], batch_size: int
) -> Iterator[Tensor]:
    """Yields the mean scores (K, h, W) of all windows over a pixel of an image (C, H, W), a few rows at a time.

    Windows of ``window`` pixels (or the image's, where that is smaller) start every ``stride`` pixels; the last one
    ends with the image.
    """
    axes = zip(pixels.shape[1:], window, stride, strict=True)
    rows, columns = (_plain_spans(n, side, step) for n, side, step in axes)
    return (scores for scores, _ in _averages(run, pixels, rows, columns, batch_size))


def _averages(
    run: RunScores, pixels: Tensor, rows: list[_Span], columns: list[_Span], batch_size: int
) -> Iterator[tuple[Tensor, bool]]:
    """Yields (averages (K, h, W), are logits?) from the top to the bottom."""
    height, width = pixels.shape[1:]
    sums = _RowSums(width)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        for column, scores, logits in _run_row(run, pixels[:, row.start : row.end], columns, batch_size):
            used = scores[:, row.first - row.start : row.last - row.start]
            used = used[:, :, column.first - column.start : column.last - column.start]
            sums.add(used, row.first, column.first)
            are_logits = logits
        yield sums.take_until(following.first if following else height), are_logits


class _RowSums:
    """Sums of scores over the image rows that later windows still add to, and how often each pixel was added."""

    def __init__(self, width: int):
        self.width = width
        self.top = 0  # image row of the first row held
        self.sums = self.counts = None

    def add(self, scores: Tensor, top: int, left: int) -> None:
        """Adds scores (K, h, w) whose corner is at image row ``top``, column ``left``."""
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
        """Averages (K, h, width) of the image rows before ``row``, which are let go of."""
        ready = row - self.top
        average = self.sums[:, :ready] / self.counts[:ready]
        self.sums, self.counts, self.top = self.sums[:, ready:].clone(), self.counts[ready:].clone(), row
        return average


def _spans(length: int, size: int, overlap: float, step: int) -> list[_Span]:
    """The windows along one axis; all start at multiples of ``step``, and the last has as much context as fits."""
    if length <= size:
        return [_Span(0, length, 0, length)]
    stride = max(int(size * (1 - overlap)) // step * step, step)
    final = -(-(length - size) // step) * step
    starts = [*range(0, final, stride), final]
    margin = (size - stride) // 4
    return [
        _Span(
            start,
            min(start + size, length),
            start + (margin if start else 0),
            min(start + size - margin, length) if start < final else length,
        )
        for start in starts
    ]


def _plain_spans(length: int, size: int, stride: int) -> list[_Span]:
    """The windows along one axis, all of one size unless the image is smaller, used whole."""
    size = min(size, length)
    starts = [*range(0, length - size, stride), length - size]
    return [_Span(start, start + size, start, start + size) for start in starts]


def _run_row(
    run: RunScores, strip: Tensor, columns: list[_Span], batch_size: int
) -> Iterator[tuple[_Span, Tensor, bool]]:
    """Yields (column, scores (K, h, w), are logits?) of one row of windows; equal ones share a batch."""
    while columns:
        width = columns[0].end - columns[0].start
        count = 1
        while count < min(batch_size, len(columns)) and columns[count].end - columns[count].start == width:
            count += 1
        scores, are_logits = run([strip[:, :, column.start : column.end] for column in columns[:count]])
        for column, image_scores in zip(columns[:count], scores, strict=True):
            yield column, image_scores, are_logits
        columns = columns[count:]
