"""The best class of enlarged logits on a CPU, without ever making the enlarged logits: numba loops.

Enlarging 150 maps to the size of a photo and looking for the largest takes longer than many a network. Here a row of
the answer is finished before the next is begun, class by class: what is at work fits into the innermost cache, and the
loops along a row become vector instructions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

try:
    import numba
except ImportError:  # then callers take the long way
    numba = None


def usable(maps: Tensor) -> bool:
    """Whether `best_resized` can do these maps."""
    return numba is not None and maps.device.type == "cpu" and len(maps) > 0


def best_resized(maps: Tensor, image_size: tuple[int, int], out_size: tuple[int, int], factor: int) -> Tensor:
    """The class with the largest of the maps (K, h, w), which are enlarged by ``factor``, cropped and resized.

    Both steps are bilinear with ``align_corners=False``, as in `fapn_zoo._bands`. Sums are rounded in another order
    there, so classes closer than rounding may change places.

    Args:
        image_size: (H, W) of the crop. out_size: (h, w) of the answer.

    Returns:
        (h, w) int64; the first class where several are equal.
    """
    values = maps.detach().float().contiguous().numpy()
    best = np.empty(out_size, np.int64)
    if image_size == out_size:
        _compiled(_enlarge)(values, factor, best)
    else:
        axes = zip(maps.shape[1:], image_size, out_size, strict=True)
        (rows, down), (columns, across) = (_taps(small, factor, middle, out) for small, middle, out in axes)
        _compiled(_resize)(values, rows, down, columns, across, best)
    return torch.from_numpy(best)


@functools.cache
def _compiled(function: Callable) -> Callable:
    """Compiled at the first use, kept on disk where there is a place for it."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


def _taps(small: int, factor: int, middle: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Both steps along one axis at once.

    Returns:
        starts (out,) int32 and weights (3, out) float32: an element of the answer is the weighted sum of three
        neighbours of the small map. Weights of elements beyond its end are 0.
    """
    place = np.maximum((np.arange(out) + 0.5) * (middle / out) - 0.5, 0)
    upper = np.minimum(place.astype(np.int64), middle - 1)
    share = place - upper
    starts, weights = None, np.zeros((3, out))
    for position, weight in ((upper, 1 - share), (np.minimum(upper + 1, middle - 1), share)):
        inner = np.maximum((position + 0.5) / factor - 0.5, 0)
        left = np.minimum(inner.astype(np.int64), small - 1)
        starts = left if starts is None else starts
        right = np.minimum(left + 1, small - 1)
        np.add.at(weights, (left - starts, np.arange(out)), weight * (1 - inner + left))
        np.add.at(weights, (right - starts, np.arange(out)), weight * (inner - left))
    return starts.astype(np.int32), weights.astype(np.float32)


def _enlarge(maps, factor, best):
    """Columns go in phases, those of equal distance to the columns of the small map, so memory is read in order."""
    count, height, small = maps.shape
    row = np.empty(small + 2, np.float32)
    high = np.empty((factor, small), np.float32)
    label = np.empty((factor, small), np.int32)
    rows, width = best.shape
    for y in range(rows):
        place = max((y + 0.5) / factor - 0.5, 0.0)
        upper = min(int(place), height - 1)
        lower = min(upper + 1, height - 1)
        share = np.float32(place - upper)
        rest = np.float32(1) - share
        for k in range(count):
            for x in range(small):
                row[x + 1] = maps[k, upper, x] * rest + maps[k, lower, x] * share
            row[0], row[small + 1] = row[1], row[small]
            for phase in range(factor):
                place = (phase + 0.5) / factor - 0.5
                start = 0 if place < 0 else 1
                right = np.float32(place + 1 - start)
                left = np.float32(1) - right
                for x in range(small):
                    value = row[x + start] * left + row[x + start + 1] * right
                    larger = k == 0 or value > high[phase, x]
                    high[phase, x] = value if larger else high[phase, x]
                    label[phase, x] = k if larger else label[phase, x]
        for x in range(width):
            best[y, x] = label[x % factor, x // factor]


def _resize(maps, rows, down, columns, across, best):
    """Any resize, by the three weights of every row and column."""
    count, height, small = maps.shape
    row = np.zeros(small + 2, np.float32)
    out = best.shape[1]
    high = np.empty(out, np.float32)
    label = np.empty(out, np.int32)
    for y in range(len(rows)):
        first, second, third = rows[y], min(rows[y] + 1, height - 1), min(rows[y] + 2, height - 1)
        for k in range(count):
            for x in range(small):
                above = maps[k, first, x] * down[0, y] + maps[k, second, x] * down[1, y]
                row[x] = above + maps[k, third, x] * down[2, y]
            for x in range(out):
                i = columns[x]
                value = row[i] * across[0, x] + row[i + 1] * across[1, x] + row[i + 2] * across[2, x]
                larger = k == 0 or value > high[x]
                high[x] = value if larger else high[x]
                label[x] = k if larger else label[x]
        best[y] = label
