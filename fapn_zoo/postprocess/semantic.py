"""Class scores per pixel, a band of rows at a time, and the class that is best.

Enlarging masks for 100 queries to the size of a photo takes gigabytes; every output row needs only two input rows, so
a consumer that reduces (argmax, count) can do with a band: no map of all K classes (or Q queries) is ever made at the
size of a photo. All resizes are bilinear with `align_corners=False`, and equal to resizing the whole map.

The order of operations is that of the official MaskFormer and detectron2 code: enlarge by the stride to the padded
input, turn masks into class scores, crop the padding away, resize to the original size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput
from fapn_zoo.postprocess.answers import ClassMap
from fapn_zoo.postprocess.best_class import best_of_logits, best_of_masks, usable
from fapn_zoo.runtime.device import autocast

BAND_FLOATS = 2**20  # 4 MiB: about what one band may take on a CPU, so that it is in the cache when it is reduced
ACCELERATOR_BANDS = 16  # times as much elsewhere, where starting an operation costs more than memory does

Bands = Iterable[tuple[int, int, Tensor]]  # (first row, last row, scores (K, rows, w)), from the top to the bottom
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


def logits_source(output: SemanticOutput, size: tuple[int, int]) -> Source:
    """The logits of one image (N = 1) at the size of the network input without padding."""
    maps, stride = output.logits[0], output.stride
    check_cover(maps, stride, size)
    best = partial(best_of_logits, maps, size, stride) if usable(maps) else None
    rows = partial(enlarged_rows, maps, size[1], stride)
    return Source(rows, len(maps), size, maps.device, best, are_logits=True)


def masks_source(output: MaskFormerOutput, size: tuple[int, int]) -> Source:
    """The class scores of one image (N = 1): sums over queries of class probability times mask probability.

    They are 0 or more and not normalised over classes.
    """
    maps, stride, weights = output.mask_logits[0], output.stride, class_probabilities(output)
    check_cover(maps, stride, size)

    enlarged = mask_rows(output, maps, size[1])

    def rows(first: int, last: int) -> Tensor:
        masks = enlarged(first, last).sigmoid_()
        with autocast(maps.device, "no"):
            return torch.einsum("qk,qhw->khw", weights, masks)

    whole = output.covers == (maps.shape[-2] * stride, maps.shape[-1] * stride)
    best = partial(best_of_masks, maps, weights, size, stride) if whole and usable(maps) else None
    return Source(rows, sum(weights.shape), size, maps.device, best)


def mask_rows(output: MaskFormerOutput, maps: Tensor, width: int) -> Rows:
    """Rows of some of the output's masks (Q, h, w) over the network input, without the columns from `width` on."""
    if output.covers == tuple(side * output.stride for side in maps.shape[-2:]):
        return partial(enlarged_rows, maps, width, output.stride)
    return partial(stretched_rows, maps, width, output.covers)


def class_probabilities(output: MaskFormerOutput, drop_no_object: bool = True) -> Tensor:
    """(Q, K) probabilities of one image; the softmax includes "no object", which is the last column if kept."""
    probabilities = output.class_logits[0].float().softmax(dim=-1)
    return probabilities[:, :-1] if drop_no_object else probabilities


def check_cover(maps: Tensor, stride: int, size: tuple[int, int]) -> None:
    """ValueError where maps (..., h, w) do not cover an image of this size."""
    covered = (maps.shape[-2] * stride, maps.shape[-1] * stride)
    if min(size) < 1 or covered[0] < size[0] or covered[1] < size[1]:
        raise ValueError(
            f"maps of {tuple(maps.shape[-2:])} at stride {stride} cover {covered} pixels, no image of {tuple(size)}"
        )


def class_map(source: Source, size: tuple[int, int], shares: bool = True) -> ClassMap:
    """The best class per pixel at this size, with its probability where `shares` are wanted."""
    if source.best is not None:
        return ClassMap(*source.best(size, shares=shares))
    return best_of_bands(bands(source, size), source.are_logits, shares)


def best_of_bands(scores: Bands, are_logits: bool, shares: bool = True) -> ClassMap:
    """The best class of every pixel of bands of scores; see `class_map`."""
    labels, found = [], []
    for _, _, band in scores:
        best, classes = band.max(dim=0)  # argmax(0) of torch takes three times as long on a CPU
        labels.append(classes)
        if shares and are_logits:
            found.append(torch.exp(best - band.logsumexp(dim=0)))
        elif shares:
            found.append(best / band.sum(dim=0).clamp_min(torch.finfo(band.dtype).tiny))
    return ClassMap(torch.cat(labels), torch.cat(found) if shares else None)
