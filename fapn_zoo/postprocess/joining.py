"""Objects that were found in overlapping windows of an image -> objects of the image, each of them once.

A detection is cut where it ends near a border of its window that is none of the image. In this order, class by class:

1. Of detections that are not cut and stand in several windows (intersection over union of at least `SAME`) the one with
   the highest score remains. Two of one window are never compared: their head has done so.
2. A cut detection is dropped where its window would see the same of one that remains: a neighbour saw the object whole.
3. What is left was seen whole by no window, because the object is larger than the overlap. Two pieces that are equal
   where their windows overlap, and from two windows, become one object: boxes and masks are united, the score is the
   mean of theirs, weighted by area. A piece without a counterpart remains as it is.

An object that ends at no window's border is thus what a run on the whole image finds, as far as the network sees the
same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_area

from fapn_zoo.postprocess.answers import Detections, Instances, JoinedMasks, Segment

SAME = 0.5  # least intersection over union
NEAR = 2.0  # pixels from a window's border within which a box ends there, or ...
NEAR_SHARE = 0.05  # ... this share of its side: what a head is wrong by grows with the object


class Window(NamedTuple):
    """Where a window lies in the image, in pixels."""

    top: int
    left: int
    bottom: int
    right: int


class _Found(NamedTuple):
    """All detections of all windows, D of them: boxes in pixels of the image, and of each its window."""

    boxes: Tensor  # (D, 4) float64
    scores: Tensor  # (D,)
    classes: Tensor  # (D,)
    window: Tensor  # (D,): its number
    view: Tensor  # (D, 4): its x1, y1, x2, y2
    cut: Tensor  # (D, 4): whether the left, upper, right, lower side is


def join_windows(
    windows: Sequence[Window], answers: Sequence[Detections | Instances], size: tuple[int, int]
) -> Detections | Instances:
    """The answer for an image of `size` (height, width) from those for its windows, the best score first."""
    boxes = [_boxes(answer) + torch.tensor([w.left, w.top] * 2) for w, answer in zip(windows, answers, strict=True)]
    segments = [segment for answer in answers for segment in answer.segments]
    places = [(answer, row) for answer in range(len(answers)) for row in range(len(answers[answer].segments))]
    found = _found(windows, boxes, segments, size)
    groups = _groups(found)
    united = torch.stack([_union(found.boxes[group]) for group in groups]) if groups else torch.zeros(0, 4)
    pieces = [[places[m] for m in group] for group in groups]
    areas = box_area(united).round().long().tolist()
    masks = None
    if isinstance(answers[0], Instances):
        moved = [[(answers[n].cropped, row, windows[n].top, windows[n].left) for n, row in piece] for piece in pieces]
        masks = JoinedMasks(moved, size)
        areas = [segments[g[0]].area if len(g) == 1 else int(masks.crop(m)[0].sum()) for m, g in enumerate(groups)]
    scores = [_score([segments[m] for m in group]) for group in groups]
    order = sorted(range(len(groups)), key=lambda m: -scores[m])
    listed = tuple(
        dataclasses.replace(segments[groups[m][0]], id=i, score=scores[m], area=areas[m])
        for i, m in enumerate(order, 1)
    )
    united = united[order].float()
    if masks is None:
        return Detections(united, listed)
    given = all(answer.boxes is not None for answer in answers)
    return Instances(JoinedMasks([moved[m] for m in order], size), listed, united if given else None)


def _boxes(answer: Detections | Instances) -> Tensor:
    """(M, 4) float64: as they were found, or around the masks."""
    if answer.boxes is not None:
        return answer.boxes.double()
    crops = (answer.cropped.crop(m) for m in range(len(answer.cropped)))
    corners = [(x, y, x + crop.shape[1], y + crop.shape[0]) for crop, (y, x) in crops]
    return torch.tensor(corners, dtype=torch.float64).reshape(-1, 4)


def _found(
    windows: Sequence[Window], boxes: Sequence[Tensor], segments: Sequence[Segment], size: tuple[int, int]
) -> _Found:
    window = torch.repeat_interleave(torch.arange(len(windows)), torch.tensor([len(part) for part in boxes]))
    views = torch.tensor([[w.left, w.top, w.right, w.bottom] for w in windows], dtype=torch.float64)
    inner = views != torch.tensor([0, 0, size[1], size[0]])
    every, view = torch.cat(list(boxes)), views[window]
    sides = (every[:, 2:] - every[:, :2]).repeat(1, 2)
    cut = inner[window] & ((every - view).abs() <= (NEAR_SHARE * sides).clamp_min(NEAR))
    scores = torch.tensor([segment.score for segment in segments], dtype=torch.float64)
    return _Found(every, scores, torch.tensor([s.category_id for s in segments]), window, view, cut)


def _groups(found: _Found) -> list[list[int]]:
    """Which detections are one object of the image: rows of `found`, those of one object together."""
    whole, groups = ~found.cut.any(dim=1), []
    for category in found.classes.unique().tolist():
        of_class = found.classes == category
        kept = _best(found, (of_class & whole).nonzero()[:, 0])
        left = _unseen(found, (of_class & ~whole).nonzero()[:, 0], kept)
        groups += [[m] for m in kept.tolist()] + _joined(found, left)
    return groups


def _best(found: _Found, rows: Tensor) -> Tensor:
    """Step 1: those of these rows that remain."""
    rows = rows[found.scores[rows].argsort(descending=True, stable=True)]
    boxes, window = found.boxes[rows], found.window[rows]
    kept = torch.ones(len(rows), dtype=torch.bool)
    for m in range(len(rows)):
        if kept[m]:
            kept[m + 1 :] &= (window[m + 1 :] == window[m]) | (_iou(boxes[m], boxes[m + 1 :]) < SAME)
    return rows[kept]


def _unseen(found: _Found, rows: Tensor, kept: Tensor) -> list[int]:
    """Step 2: those of these cut rows that no kept one explains."""

    def explained(m: int) -> bool:
        others = kept[found.window[kept] != found.window[m]]
        return bool((_iou(_clipped(found.boxes[others], found.view[m]), found.boxes[m]) >= SAME).any())

    return [m for m in rows.tolist() if not explained(m)]


def _joined(found: _Found, rows: list[int]) -> list[list[int]]:
    """Step 3: pieces that agree, the most alike first; of one window an object has one piece at most."""
    outwards = torch.tensor([-1, -1, 1, 1], dtype=torch.float64)  # a pixel, since windows may only touch
    wide = found.view[rows] + outwards
    grown = torch.where(found.cut[rows], wide, found.boxes[rows])
    pairs = []
    for a in range(len(rows)):
        zone = _clipped(wide[a], wide[a + 1 :])
        alike = _iou(_clipped(grown[a], zone), _clipped(grown[a + 1 :], zone))
        pairs += [(-float(alike[b]), a, a + 1 + int(b)) for b in (alike >= SAME).nonzero()[:, 0]]
    group_of = [[m] for m in rows]
    for _, a, b in sorted(pairs):
        first, second = group_of[a], group_of[b]
        if first is not second and not set(found.window[first].tolist()) & set(found.window[second].tolist()):
            first += second
            group_of = [first if group is second else group for group in group_of]
    return list({id(group): group for group in group_of}.values())


def _clipped(boxes: Tensor, views: Tensor) -> Tensor:
    """Boxes (..., 4) inside of views (..., 4); empty where they do not meet."""
    low, high = torch.maximum(boxes[..., :2], views[..., :2]), torch.minimum(boxes[..., 2:], views[..., 2:])
    return torch.cat([low, torch.maximum(low, high)], dim=-1)


def _iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), pair by pair; 0 of two empty ones."""
    areas = [(box[..., 2:] - box[..., :2]).prod(dim=-1) for box in (one, other, _clipped(one, other))]
    return areas[2] / (areas[0] + areas[1] - areas[2]).clamp_min(1e-9)


def _union(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)])


def _score(pieces: Sequence[Segment]) -> float:
    """The mean, weighted by area."""
    weights = [max(piece.area, 1) for piece in pieces]
    return sum(w * piece.score for w, piece in zip(weights, pieces, strict=True)) / sum(weights)
