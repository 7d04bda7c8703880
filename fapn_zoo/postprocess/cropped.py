"""Masks of objects that are kept where they are: a hundred full masks of a photo would fill the memory."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


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
        self._crops = [self._cut(mask) for mask in masks]

    @staticmethod
    def _cut(mask: Tensor) -> tuple[Tensor, tuple[int, int]]:
        rows, columns = (torch.nonzero(mask.any(dim))[:, 0] for dim in (1, 0))
        if not len(rows):
            return mask[:0, :0].cpu(), (0, 0)
        (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
        # a copy, which does not hold the memory of all
        return mask[top : bottom + 1, left : right + 1].to("cpu", copy=True), (top, left)

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
