"""Class scores per pixel, a band of rows at a time, and the class that is best.

The order of operations is that of the official MaskFormer and detectron2 code: enlarge by the stride to the padded
input, turn masks into class scores, crop the padding away, resize to the original size. No map of all K classes (or Q
queries) is ever made at the size of a photo.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput
from fapn_zoo.postprocess.answers import ClassMap
from fapn_zoo.postprocess.bands import Rows, Source, bands, enlarged_rows, stretched_rows
from fapn_zoo.postprocess.best_class import best_of_logits, best_of_masks, usable
from fapn_zoo.runtime.device import autocast

Bands = Iterable[tuple[int, int, Tensor]]  # (first row, last row, scores (K, rows, w)), from the top to the bottom


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
