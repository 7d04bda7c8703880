"""What is known of an image in the end, and the way its pixels went: the words that decoders and tasks share.

N images, K classes, Q queries, M segments. Maps are of the size of the original image (h, w).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor


class Masks(Protocol):
    """M masks of one image, on the CPU. Attribute: `size` (height, width) of the image."""

    size: tuple[int, int]

    def __len__(self) -> int:
        """M."""

    def crop(self, m: int) -> tuple[Tensor, tuple[int, int]]:
        """Mask m: (h, w) bool, and (y, x) of its upper left pixel in the image; outside of it the mask is empty."""


class Packed(NamedTuple):
    """A mask cut to the rectangle around it, `shape` with its upper left pixel at `place`, in few bytes."""

    bits: bytes
    shape: tuple[int, int]
    place: tuple[int, int]

    @classmethod
    def of(cls, mask: Tensor, top: int = 0) -> Self:
        """A mask (h, w) bool, on any device, of the image's rows from `top` on, as wide as the image."""
        rows, columns = (torch.nonzero(mask.any(dim))[:, 0].tolist() for dim in (1, 0))
        if not rows:
            return cls(zlib.compress(b""), (0, 0), (0, 0))
        crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].cpu().numpy()
        # a mask that is scattered over a photo fills its rectangle with few and long runs
        return cls(zlib.compress(np.packbits(crop), 1), crop.shape, (top + rows[0], columns[0]))


class HardMasks:
    """Masks of pixels of an image of `size` (height, width); see `Masks`."""

    def __init__(self, masks: Sequence[Packed], size: tuple[int, int]) -> None:
        self._masks, self.size = masks, size

    def __len__(self) -> int:
        return len(self._masks)

    def crop(self, m: int) -> tuple[Tensor, tuple[int, int]]:
        bits, (height, width), place = self._masks[m]
        flat = np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=height * width)
        return torch.from_numpy(flat.view(bool).reshape(height, width)), place


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


class Frame(NamedTuple):
    """One image's way through the network, sizes (height, width) in pixels."""

    inside: tuple[int, int]  # of the network input without its padding, which lies at the bottom and right
    original: tuple[int, int]  # of the answer, usually the image as it was given


@dataclass(frozen=True, eq=False)
class ClassMap:
    """A class for every pixel, `labels` (h, w) int64, and its probability, `scores` (h, w) float32 in 0..1.

    That is the softmax of a per-pixel head, or the class's share of all scores of a mask classifier (0 where all are
    0); None where nobody asked.
    """

    labels: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map, one instance, or one detection."""

    id: int  # its value in the segment map (from 1), or 1 + its row among masks or boxes
    category_id: int
    isthing: bool  # False for amorphous regions, of which there is at most one per class
    score: float  # confidence in 0..1
    area: int  # pixels; of a detection those of its box


@dataclass(frozen=True, eq=False)
class Panoptic:
    """Attributes: `ids` (h, w) int32, 0 where nothing was found; `scores` (h, w) float32; `segments`."""

    ids: Tensor
    scores: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True, eq=False)
class Instances:
    """Scored masks of M objects, the best first, which may overlap; M may be 0.

    Attributes:
        cropped: the masks, none of them as large as the image.
        segments: one per mask.
        boxes: (M, 4) float32 x1, y1, x2, y2, where they were found too; None where those of the masks are meant.
    """

    cropped: Masks
    segments: tuple[Segment, ...]
    boxes: Tensor | None = None

    @property
    def masks(self) -> Tensor:
        """(M, h, w) bool, made anew at every call."""
        return pasted(self.cropped)


@dataclass(frozen=True, eq=False)
class Detections:
    """Attributes: `boxes` (M, 4) float32 x1, y1, x2, y2, best score first; `segments`, one per box; M may be 0."""

    boxes: Tensor
    segments: tuple[Segment, ...]
