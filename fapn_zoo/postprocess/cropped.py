"""Masks of objects that are kept where they are: a hundred full masks of a photo would fill the memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fapn_zoo.postprocess.bands import enlarged_rows, resized_rows


class Masks(Protocol):
    """M masks of one image, on the CPU. Attribute: `size` (height, width) of the image."""

    size: tuple[int, int]

    def __len__(self) -> int:
        """M."""

    def crop(self, m: int) -> tuple[Tensor, tuple[int, int]]:
        """Mask m: (h, w) bool, and (y, x) of its upper left pixel in the image; outside of it the mask is empty."""


class HardMasks:
    """Masks of pixels, each cut to the rectangle around it; see `Masks`.

    Args:
        masks: (M, H, W) bool, on any device.
    """

    def __init__(self, masks: Tensor) -> None:
        self.size = tuple(masks.shape[1:])
        self._crops = [_cut(mask) for mask in masks]

    def __len__(self) -> int:
        return len(self._crops)

    def crop(self, m: int) -> tuple[Tensor, tuple[int, int]]:
        return self._crops[m]


class SoftMasks:
    """Probabilities in the cells of boxes, which become pixels when they are asked for; see `Masks`.

    A pixel belongs to a mask where the probability at its middle, bilinear between the middles of cells and 0 beyond
    them, is at least 0.5: what the official Mask R-CNN pastes.

    Args:
        logits: (M, S, S), before the sigmoid, of the cells of every box.
        boxes: (M, 4) x1, y1, x2, y2 in pixels, not empty.
        size: (height, width) of the image.
    """

    def __init__(self, logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> None:
        self.size = size
        self._cells, self._boxes = logits.float().sigmoid().cpu(), boxes.cpu().tolist()

    def __len__(self) -> int:
        return len(self._cells)

    def crop(self, m: int) -> tuple[Tensor, tuple[int, int]]:
        (x1, y1, x2, y2), (height, width), cells = self._boxes[m], self.size, self._cells[m]
        top, down = _weights(y1, y2, cells.shape[0], height)
        left, across = _weights(x1, x2, cells.shape[1], width)
        return down @ cells @ across.T >= 0.5, (top, left)


class EnlargedMasks:
    """Probabilities of whole images on a coarse grid, which become pixels when they are asked for; see `Masks`.

    They are enlarged bilinearly by the stride, cropped to the image without its padding, and resized to the answer: a
    pixel belongs to a mask where the result exceeds the threshold. Only rows that can are computed.

    Args:
        masks: (M, h, w) float32 in 0..1.
        stride: pixels of the network input per cell.
        inside: (height, width) of the network input without its padding.
        size: (height, width) of the answer.
        threshold: 0 or more.
    """

    def __init__(
        self, masks: Tensor, stride: int, inside: tuple[int, int], size: tuple[int, int], threshold: float
    ) -> None:
        self.size, self._inside, self._stride, self._threshold = size, inside, stride, threshold
        self._masks = masks.cpu()

    def __len__(self) -> int:
        return len(self._masks)

    def only(self, rows: Sequence[int]) -> EnlargedMasks:
        """The masks of these rows."""
        return EnlargedMasks(self._masks[list(rows)], self._stride, self._inside, self.size, self._threshold)

    def crop(self, m: int) -> tuple[Tensor, tuple[int, int]]:
        mask = self._masks[m : m + 1]
        touched = torch.nonzero((mask[0] > self._threshold).any(dim=1))[:, 0]
        if not len(touched):
            return torch.zeros(0, 0, dtype=torch.bool), (0, 0)
        # a cell has a share in the pixels up to one cell from its middle, a pixel likewise
        scale, stride = self.size[0] / self._inside[0], self._stride
        first = int(((int(touched[0]) - 0.5) * stride - 1) * scale) - 1
        last = int(((int(touched[-1]) + 1.5) * stride + 1) * scale) + 2
        first, last = max(first, 0), min(last, self.size[0])
        rows = partial(enlarged_rows, mask, self._inside[1], stride)
        crop, (y, x) = _cut(resized_rows(rows, self._inside, self.size, first, last)[0] > self._threshold)
        return crop, (y + first, x) if len(crop) else (0, 0)


def _cut(mask: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """A copy of the rectangle around a mask on the CPU, which does not hold the memory of all, and where it is."""
    rows, columns = (torch.nonzero(mask.any(dim))[:, 0] for dim in (1, 0))
    if not len(rows):
        return mask[:0, :0].cpu(), (0, 0)
    (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    return mask[top : bottom + 1, left : right + 1].to("cpu", copy=True), (top, left)


def _weights(first: float, last: float, cells: int, side: int) -> tuple[int, Tensor]:
    """The first pixel that an interval of an image's side touches, and for it and the next ones the share (n, cells)
    that every cell of the interval has in the value at the pixel's middle."""
    start, end = max(int(first), 0), min(-int(-last // 1), side)
    middles = torch.arange(start, end, dtype=torch.float64) + 0.5
    places = (middles - first) / (last - first) * cells - 0.5
    shares = 1 - (places[:, None] - torch.arange(cells)).abs()
    return start, shares.clamp_(min=0).float()


def pasted(masks: Masks) -> Tensor:
    """All masks at once, (M, H, W) bool."""
    full = torch.zeros(len(masks), *masks.size, dtype=torch.bool)
    for m, image in enumerate(full):
        crop, (y, x) = masks.crop(m)
        image[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    return full
