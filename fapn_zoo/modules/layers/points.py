"""Points of maps: reading a map at them, and choosing those where a decision is least certain (PointRend).

Kirillov et al., "PointRend: Image Segmentation as Rendering", CVPR 2020, sections 3.1 and 3.2; FACTS section 3. Points
are (N, P, 2) float32, (x, y) with 0 and 1 at the outer edges of a map, so the centre of the first of w columns is at
0.5 / w, and the same points fit maps of every stride.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fapn_zoo.modules.layers.random import drawn_bits, seeds_or_new, shifted


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps (N, C, h, w) at points (N, P, 2), bilinear: (N, C, P) of the maps' dtype.

    Outside a map is zero. So within half a pixel of its edge values fade, as in the official models.
    """
    grid = (2 * points - 1).unsqueeze(2)
    found = F.grid_sample(maps.float(), grid, mode="bilinear", align_corners=False)
    return found.squeeze(3).to(maps.dtype)


def sample_in_boxes(maps: Tensor, boxes: Sequence[Tensor], points: Tensor, stride: int) -> Tensor:
    """Values of maps (N, C, h, w) at points (M, P, 2) of boxes, of whose sides 0 and 1 are the ends: (M, C, P).

    `boxes` are those of every image, (M_n, 4) in pixels of the input, M of them in all; `stride` is that of the maps.
    """
    height, width = (stride * side for side in maps.shape[-2:])
    corner, end = torch.cat(list(boxes))[:, None].split(2, dim=2)
    places = (points * (end - corner) + corner) / points.new_tensor([width, height])
    # of every image one row of points, box after box
    rows = zip(maps.split(1), places.split([len(b) for b in boxes]), strict=True)
    found = [sample_points(image, p.reshape(1, -1, 2)).unflatten(2, p.shape[:2]) for image, p in rows]
    return torch.cat(found, dim=2)[0].transpose(0, 1)


def masks_at(masks: Tensor, rows: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
    """How far masks (M, H, W) bool cover points (B, P, 2) of boxes (B, 4) of their pixels, 0..1, bilinear: (B, P).

    Of each box's points mask `rows` (B,) is read; outside of it is zero. It computes what `sample_points` does, without
    a copy of the mask for every box.
    """
    x, y = (boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2]) - 0.5).unbind(dim=2)
    covered = torch.zeros_like(x)
    height, width = masks.shape[-2:]
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            i, j = (place.where(inside, 0).long() for place in (row, column))
            covered += (1 - (y - row).abs()) * (1 - (x - column).abs()) * (inside & masks[rows[:, None], i, j])
    return covered


def regular_points(side: int, like: Tensor) -> Tensor:
    """The middles of side x side cells, (side * side, 2) in reading order, on the device of `like`."""
    middles = (torch.arange(side, device=like.device) + 0.5) / side
    return torch.stack([middles.expand(side, side), middles[:, None].expand(side, side)], dim=2).flatten(0, 1)


def uncertainty(logits: Tensor) -> Tensor:
    """How uncertain logits (N, K, ...) are, (N, ...), 0 at most: the second largest less the largest.

    Of a single logit (K = 1), whose decision is at 0, it is its negative distance to that.
    """
    if logits.shape[1] == 1:
        return -logits[:, 0].abs()
    best, which = logits.max(dim=1, keepdim=True)
    return logits.scatter(1, which, -torch.inf).amax(dim=1) - best[:, 0]  # topk takes twice as long on a CPU


def most_uncertain_pixels(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of `scores` (N, h, w), all where there are fewer.

    Returns:
        Their places in the flattened map, (N, P) int64, in no order; and their centres as points (N, P, 2).
    """
    height, width = scores.shape[-2:]
    pixels = height * width
    # the sizes that torch.jit.trace sees are tensors, those of torch.export symbols
    count = pixels.clamp(max=count) if isinstance(pixels, Tensor) else torch.sym_min(count, pixels)
    index = scores.flatten(1).topk(count, sorted=False).indices
    rows, columns = ((torch.arange(side, device=scores.device) + 0.5) / side for side in (height, width))
    centres = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=2)
    return index, centres.flatten(0, 1)[index]


def even_points(seeds: Tensor, count: int) -> Tensor:
    """Points (N, count, 2) that are spread evenly at random, by seeds (N,) int64: equal on every device.

    They are numbers `2 * i` and `2 * i + 1` of `drawn_bits`, of which the upper 24 bits become a number below 1.
    """
    return (shifted(drawn_bits(seeds, 2 * count), 40).float() / 2**24).unflatten(1, (count, 2))


def training_points(
    logits: Tensor, count: int, seeds: Tensor | None = None, oversample: float = 3.0, importance: float = 0.75
) -> Tensor:
    """Random points (N, count, 2), most of them where `logits` (N, K, h, w) are uncertain (section 3.2).

    Of `oversample * count` points drawn evenly the most uncertain are taken, `importance * count` of them; the rest is
    drawn evenly once more. An image's own seed, of `seeds` (N,) int64, decides all that is drawn for it, so that no
    batch it may be in changes its points; None takes seeds from PyTorch's generator.
    """
    seeds = seeds_or_new(seeds, len(logits), logits.device)
    candidates, uncertain = int(count * oversample), int(count * importance)
    drawn = even_points(seeds, candidates + count - uncertain)
    pool, even = drawn.split((candidates, count - uncertain), dim=1)
    with torch.no_grad():
        chosen = uncertainty(sample_points(logits, pool)).topk(uncertain).indices
    return torch.cat([pool.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2)), even], dim=1)
