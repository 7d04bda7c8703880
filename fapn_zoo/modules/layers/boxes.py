"""Boxes (..., 4) as x1, y1, x2, y2 in pixels, right and lower edge outside: anchors, coding, clipping, pooling.

What they are made with is FACTS section 3 (RPN + box head). Suppression, overlap and clipping are torchvision's
`batched_nms`, `box_iou` and `clip_boxes_to_image`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from fapn_zoo.runtime.compilers import numba_works
from fapn_zoo.runtime.workers import run_workers

LARGEST_LOG = math.log(1000 / 16)  # of a side over that of its reference: what is learned early must not overflow
PIXELS = 2**24  # of masks that are numbers at one time: 64 MiB
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4  # a box of this side is pooled from the level of stride 2^4


def anchors(size: Sequence[int], stride: int, side: float, ratios: Sequence[float], like: Tensor) -> Tensor:
    """The anchors of a map: (h * w * A, 4) float32, places in reading order, at each the A ratios in order.

    Args:
        size: (h, w) of the map.
        stride: input pixels per pixel of the map; centres lie at its multiples, so the first one at (0, 0).
        side: square root of the area of every anchor.
        ratios: heights over widths.
        like: gives the device.
    """
    shapes = [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for ratio in ratios]
    cells = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in shapes], device=like.device)
    y, x = (torch.arange(n, device=like.device, dtype=torch.float32) * stride for n in size)
    centres = torch.stack([t.flatten() for t in torch.meshgrid(x, y, indexing="xy")] * 2, dim=1)
    return (centres[:, None] + cells).reshape(-1, 4)


def encode(boxes: Tensor, references: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """The deltas (..., 4) that `decode` makes the boxes of: shifts of the centre in sides, logarithms of the sides."""
    (x, y, w, h), (cx, cy, rw, rh) = _centred(boxes), _centred(references)
    parts = (x - cx) / rw, (y - cy) / rh, (w / rw).log(), (h / rh).log()
    return torch.stack([part * weight for part, weight in zip(parts, weights, strict=True)], dim=-1)


def decode(deltas: Tensor, references: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes (..., 4) float32 from deltas (..., 4) relative to references that broadcast with them.

    Sides grow at most by 1000 / 16.
    """
    dx, dy, dw, dh = (d / weight for d, weight in zip(deltas.float().unbind(-1), weights, strict=True))
    x, y, w, h = _centred(references)
    x, y, w, h = dx * w + x, dy * h + y, dw.clamp(max=LARGEST_LOG).exp() * w, dh.clamp(max=LARGEST_LOG).exp() * h
    return torch.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], dim=-1)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    w, h = x2 - x1, y2 - y1
    return x1 + 0.5 * w, y1 + 0.5 * h, w, h


def not_empty(boxes: Tensor) -> Tensor:
    """(...) bool: which boxes have an area."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def all_finite(*tensors: Tensor) -> bool:
    """Whether no number is NaN or infinite. A choice among boxes would drop such a one without a word."""
    return bool(sum(tensor.sum(dtype=torch.float32) for tensor in tensors).isfinite())


def levels_of(boxes: Tensor, levels: int) -> Tensor:
    """The map (0 for stride 4, to `levels` - 1) that each box (M, 4) is pooled from, by its area (FPN, equation 1)."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = torch.floor(CANONICAL_LEVEL + torch.log2(area.sqrt() / CANONICAL_SIDE + 1e-8))
    return level.clamp(2, levels + 1).long() - 2


def pool_boxes(pyramid: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
    """Features inside boxes, by RoIAlign (Mask R-CNN, section 3) with pixel centres and as many samples as pixels.

    On a CPU without gradients by `roi_kernels`, elsewhere by torchvision's operator; they differ by rounding.

    Args:
        pyramid: maps (N, C, H / s, W / s) of strides s = 4, 8, 16, ...
        boxes: of every image (M_n, 4) in input pixels, float32. They may leave the image.
        side: of the pooled maps.

    Returns:
        (sum of M_n, C, side, side), images one after the other.
    """
    joined = torch.cat(list(boxes))
    if joined.is_meta or not len(joined):
        return pyramid[0].new_empty(len(joined), pyramid[0].shape[1], side, side)
    images = torch.cat([torch.full((len(b),), n, device=b.device) for n, b in enumerate(boxes)])
    level_of = levels_of(joined, len(pyramid))
    rows = [torch.nonzero(level_of == level)[:, 0] for level in range(len(pyramid))]
    # in half precision a box of a large image would be off by pixels
    used = [(x.float(), 1 / (4 * 2**level), rows[level]) for level, x in enumerate(pyramid) if len(rows[level])]
    pool = _by_kernels if _kernels_work(pyramid) else _by_torchvision
    return pool(used, images, joined, side).to(pyramid[0].dtype)


def masks_in_boxes(masks: Tensor, boxes: Tensor, rows: Tensor, side: int) -> Tensor:
    """Masks (M, H, W) bool inside boxes (P, 4) of their pixels, of which each shows mask `rows` (P,).

    Returns:
        (P, side, side) float32: 1 where the mask covers at least half of a cell, by RoIAlign as in `pool_boxes`.
    """
    found = torch.zeros(len(boxes), side, side, device=boxes.device)
    used, place = rows.unique(return_inverse=True)
    at_once = max(1, PIXELS // max(1, masks[0].numel() if len(masks) else 1))
    for first in range(0, len(used), at_once):
        maps = masks[used[first : first + at_once], None].float()
        here = torch.nonzero((place >= first) & (place < first + at_once))[:, 0]
        regions = torch.cat([(place[here, None] - first).float(), boxes[here]], dim=1)
        found[here] = roi_align(maps, regions, side, sampling_ratio=0, aligned=True)[:, 0].ge(0.5).float()
    return found


Level = tuple[Tensor, float, Tensor]  # a map (N, C, h, w), its pixels per input pixel, and which boxes it serves


def _by_torchvision(levels: Sequence[Level], images: Tensor, boxes: Tensor, side: int) -> Tensor:
    regions = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
    rule = {"sampling_ratio": 0, "aligned": True}
    parts = [roi_align(features, regions[rows], side, scale, **rule) for features, scale, rows in levels]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts)[torch.cat([rows for *_, rows in levels]).argsort()]


def _kernels_work(pyramid: Sequence[Tensor]) -> bool:
    recorded = torch.is_grad_enabled() and any(features.requires_grad for features in pyramid)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return pyramid[0].device.type == "cpu" and not recorded and not traced and numba_works()


def _by_kernels(levels: Sequence[Level], images: Tensor, boxes: Tensor, side: int) -> Tensor:
    from fapn_zoo.modules.layers import roi_kernels as kernels

    out = torch.empty(len(boxes), levels[0][0].shape[1], side, side)
    threads = torch.get_num_threads()
    shared = images.numpy(), boxes.detach().float().contiguous().numpy()
    for features, scale, rows in levels:
        maps = features.detach().permute(0, 2, 3, 1).contiguous().numpy()

        def work(worker: int, maps: np.ndarray = maps, scale: float = scale, rows: Tensor = rows) -> None:
            kernels.pool(maps, *shared, np.float32(scale), rows[worker::threads].contiguous().numpy(), out.numpy())

        run_workers(work, threads)
    return out
