"""Masks of objects that are kept where they are: a hundred full masks of a photo would fill the memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Masks(Protocol):
    """M masks of one image, on the CPU. Attribute: `size` (height, width) of the image."""

    size: tuple[int, int]

    def __len__(self) -> int:
        """M."""

    def crop(self, m: int) -> tuple[Tensor, tuple[int, int]]:
        """Mask m: (h, w) bool, and (y, x) of its upper left pixel in the image; outside of it the mask is empty."""


class HardMasks:
    """Masks of pixels, kept as the runs of their rows; see `Masks`.

    Args:
        bands: of M masks some rows at a time, from the top to the bottom: (M, rows, W) bool, on any device. A tensor
            (M, H, W) is one band.
        size: (height, width) of the image; may be left out beside a tensor.

    Attributes:
        areas: (M,) int64 in pixels.
    """

    def __init__(self, bands: Tensor | Iterable[Tensor], size: tuple[int, int] | None = None) -> None:
        self.size = tuple(bands.shape[1:]) if size is None else size
        found, top, count = [], 0, 0
        for band in (bands,) if isinstance(bands, Tensor) else bands:
            turns = (F.pad(band, (1, 0)) != F.pad(band, (0, 1))).nonzero().to("cpu", torch.int32)
            turns[:, 1] += top
            found.append(torch.cat([turns[::2], turns[1::2, 2:]], dim=1))  # mask, row, first column, last + 1
            top, count = top + band.shape[1], len(band)
        runs = torch.cat(found) if found else torch.zeros(0, 4, dtype=torch.int32)
        runs = runs[runs[:, 0].argsort(stable=True)]
        self._runs = list(runs[:, 1:].split(torch.bincount(runs[:, 0], minlength=count).tolist()))
        self.areas = torch.tensor([int((run[:, 2] - run[:, 1]).sum()) for run in self._runs], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._runs)

    def only(self, rows: Sequence[int]) -> HardMasks:
        """Some of the masks, in this order."""
        chosen = copy.copy(self)
        chosen._runs, chosen.areas = [self._runs[m].clone() for m in rows], self.areas[list(rows)]
        return chosen

    def crop(self, m: int) -> tuple[Tensor, tuple[int, int]]:
        run = self._runs[m]
        if not len(run):
            return torch.zeros(0, 0, dtype=torch.bool), (0, 0)
        top, bottom, left, right = (int(side) for side in (run[0, 0], run[-1, 0], run[:, 1].min(), run[:, 2].max()))
        change = torch.zeros(bottom + 1 - top, right + 1 - left, dtype=torch.int8)
        rows, starts, ends = (column.long() for column in (run - run.new_tensor([top, left, left])).T)
        change[rows, starts], change[rows, ends] = 1, -1
        return change.cumsum(dim=1, dtype=torch.int8)[:, :-1].bool(), (top, left)


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


class JoinedMasks:
    """Masks that are made of pieces of other ones, each moved to its place; see `Masks`.

    Args:
        pieces: of every mask its pieces: masks, which of them, and how many pixels it is moved down and right.
        size: (height, width) of the image, in which all pieces lie.
    """

    def __init__(self, pieces: Sequence[Sequence[tuple[Masks, int, int, int]]], size: tuple[int, int]) -> None:
        self._pieces, self.size = pieces, size

    def __len__(self) -> int:
        return len(self._pieces)

    def crop(self, m: int) -> tuple[Tensor, tuple[int, int]]:
        found = []
        for masks, row, down, right in self._pieces[m]:
            pixels, (y, x) = masks.crop(row)
            if pixels.numel():
                found.append((pixels, y + down, x + right))
        if len(found) < 2:
            pixels, y, x = found[0] if found else (torch.zeros(0, 0, dtype=torch.bool), 0, 0)
            return pixels, (y, x)
        top, left = (min(piece[side] for piece in found) for side in (1, 2))
        bottom, end = (max(piece[side] + piece[0].shape[side - 1] for piece in found) for side in (1, 2))
        whole = torch.zeros(bottom - top, end - left, dtype=torch.bool)
        for pixels, y, x in found:
            whole[y - top : y - top + pixels.shape[0], x - left : x - left + pixels.shape[1]] |= pixels
        return whole, (top, left)


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
