"""Which anchors and proposals a stage is trained on: those near true objects, and others, drawn at random.

Rules are those of Faster R-CNN (Ren et al. 2015, section 3.1.2) with the numbers of FACTS section 3. B boxes and M true
ones of an image, as (B, 4) and (M, 4); M may be 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from fapn_zoo.modules.layers.random import drawn_bits

# An anchor that overlaps no object so much is background; one that overlaps an object so much belongs to it.
BACKGROUND, OBJECT = 0.3, 0.7
PAIRS = 2**21  # overlaps that are computed at once: 8 MiB, and a few times that on the way


def kinds_of_anchors(anchors: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which anchors (B,) bool belong to an object and which to background, and the object nearest to each (B,) int64.

    An object has the anchors that overlap it most, however little. Anchors across the edge of an image are as good as
    others.
    """
    overlap, objects = nearest_objects(anchors, truth)
    positive = (overlap >= OBJECT) | nearest_boxes(anchors, truth)
    return positive, (overlap < BACKGROUND) & ~positive, objects


def nearest_objects(boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Of every box the largest overlap with an object (B,) in 0..1, and which object that is, (B,) int64."""
    if not len(truth):
        return boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    overlaps, objects = zip(*(table.max(0) for table in _tables(boxes, truth)), strict=True)
    return torch.cat(overlaps), torch.cat(objects)


def nearest_boxes(boxes: Tensor, truth: Tensor) -> Tensor:
    """Which boxes (B,) bool overlap one of the objects as much as no other box does, and at all."""
    if not len(truth):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    most = torch.stack([table.amax(1) for table in _tables(boxes, truth)]).amax(0)
    most = most.masked_fill(most <= 0, torch.inf)[:, None]
    return torch.cat([(table == most).any(0) for table in _tables(boxes, truth)])


def _tables(boxes: Tensor, truth: Tensor) -> Iterator[Tensor]:
    """The overlaps (M, b) of the objects with b boxes after another; 0 where neither of the two has an area."""
    for part in boxes.split(max(1, PAIRS // len(truth))):
        yield box_iou(truth, part).nan_to_num(0.0)


def draw(positive: Tensor, negative: Tensor, bits: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Rows of `count` boxes, positive ones and negative ones; fewer where there are no more.

    At most `share` of them are positive; negative ones take the place of those that lack. `bits` (B,) int64 are the
    boxes' random numbers, of which the largest are taken: they belong to a box, not to its place among the others, so
    that rounding, which may swap two boxes, changes no other's lot.
    """
    ours = _largest(bits, positive, int(count * share))
    return ours, _largest(bits, negative, count - len(ours))


def _largest(bits: Tensor, candidates: Tensor, count: int) -> Tensor:
    rows = torch.nonzero(candidates)[:, 0]
    return rows[bits[rows].topk(min(count, len(rows))).indices]


class Regions(NamedTuple):
    """What the second stage is trained on in one image, R boxes; the first P of them lie on objects."""

    boxes: Tensor  # (R, 4)
    objects: Tensor  # (P,) int64: which object each of the first P lies on


def draw_regions(proposals: Tensor, numbers: Tensor, anchors: int, truth: Tensor, seed: Tensor, count: int) -> Regions:
    """`count` regions of one image, at most a quarter on objects, which they overlap by at least a half.

    True boxes (M, 4) are drawn from as well as proposals (P, 4), whose `numbers` (P,) are those of the `anchors` that
    they were made of.
    """
    boxes = torch.cat([proposals, truth])
    numbers = torch.cat([numbers, anchors + torch.arange(len(truth), device=numbers.device)])
    overlap, objects = nearest_objects(boxes, truth)
    positive = overlap >= 0.5
    bits = drawn_bits(~seed[None], anchors + len(truth))[0]  # others than those of the anchors
    ours, others = draw(positive, ~positive, bits[numbers], count, 0.25)
    return Regions(boxes[torch.cat([ours, others])], objects[ours])
