"""Bilinear resizing of many-channel maps a band of rows at a time, equal to resizing them whole.

Enlarging masks for 100 queries to the size of a photo takes gigabytes; every output row needs only two input rows, so
a consumer that reduces (argmax, count) can do with a band. All resizes are bilinear with `align_corners=False`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BAND_FLOATS = 2**20  # 4 MiB: about what one band may take on a CPU, so that it is in the cache when it is reduced
ACCELERATOR_BANDS = 16  # times as much elsewhere, where starting an operation costs more than memory does

Rows = Callable[[int, int], Tensor]  # (first, last) -> (C, last - first, width)


class Source(NamedTuple):
    """A map of `size` (H, W) whose rows are computed when they are asked for, from the top to the bottom.

    `best` is a shorter way than through the rows, if there is one: ((h, w), shares=False) -> the channel (h, w) int64
    that is largest after resizing, and on demand its probability (h, w) float32.
    """

    rows: Rows
    channels: int  # that computing a row takes, for the budget
    size: tuple[int, int]
    device: torch.device
    best: Callable[..., tuple[Tensor, Tensor | None]] | None = None
    are_logits: bool = False  # whether the rows are scores before softmax


def band_height(source: Source, out_size: tuple[int, int]) -> int:
    """How many output rows at a time fit the budget."""
    height, width = source.size
    per_row = source.channels * (width * max(height / out_size[0], 1.0) + out_size[1])
    budget = BAND_FLOATS * (1 if source.device.type == "cpu" else ACCELERATOR_BANDS)
    return max(int(budget / max(per_row, 1)), 1)


def bands(
    source: Source, out_size: tuple[int, int], step: int | None = None, within: tuple[int, int] | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields (first, last, band) of the source resized to out_size, `step` rows at a time or what fits the budget.

    `within`: the first and last rows of the result that are asked for; None: all.
    """
    step = step or band_height(source, out_size)
    start, stop = within or (0, out_size[0])
    for first in range(start, stop, step):
        last = min(first + step, stop)
        yield first, last, _resized_rows(source.rows, source.size, out_size, first, last)


def _resized_rows(rows: Rows, image_size: tuple[int, int], out_size: tuple[int, int], first: int, last: int) -> Tensor:
    """Rows `first`..`last` of the bilinear resize (align_corners False) of a map that `rows` can compute."""
    if image_size == out_size:
        return rows(first, last)
    height = image_size[0]
    # torch's own rule, in its own precision, so that a band equals the rows of a whole-map resize
    target = torch.arange(first, last, dtype=torch.float32)
    source = ((target + 0.5) * torch.tensor(height / out_size[0], dtype=torch.float32) - 0.5).clamp_(min=0.0)
    upper = source.floor().to(torch.int64).clamp_(max=height - 1)
    lower = (upper + 1).clamp_(max=height - 1)
    start = int(upper[0])
    band = rows(start, int(lower[-1]) + 1)
    share = (source - upper).clamp_(max=1.0)[:, None].to(band.device)
    upper, lower = (upper - start).to(band.device), (lower - start).to(band.device)
    band = torch.lerp(band.index_select(1, upper), band.index_select(1, lower), share)
    if image_size[1] == out_size[1]:
        return band
    return F.interpolate(band[None], size=(last - first, out_size[1]), mode="bilinear", align_corners=False)[0]


def stretched_rows(maps: Tensor, width: int, size: tuple[int, int], first: int, last: int) -> Tensor:
    """Rows `first`..`last` and columns 0..`width` of `maps` (C, h, w) resized bilinearly to `size`."""
    if not len(maps):  # as below
        return maps.new_empty(0, last - first, width)
    return _resized_rows(lambda a, b: maps[:, a:b].float(), tuple(maps.shape[1:]), size, first, last)[..., :width]


def enlarged_rows(maps: Tensor, width: int, factor: int, first: int, last: int) -> Tensor:
    """Rows `first`..`last` and columns 0..`width` of `maps` (C, h, w) enlarged bilinearly by `factor`.

    One more row (and column) of the small map on each side makes the part equal to the same part of the whole.
    """
    top = max(first // factor - 1, 0)
    bottom = min(-(-last // factor) + 1, maps.shape[1])
    right = min(-(-width // factor) + 1, maps.shape[2])
    part = maps[:, top:bottom, :right].float()
    if not len(part):  # no query survived: torch refuses to resize nothing
        return part.new_empty(0, last - first, width)
    large = F.interpolate(part[None], scale_factor=float(factor), mode="bilinear", align_corners=False)[0]
    return large[:, first - top * factor : last - top * factor, :width]
