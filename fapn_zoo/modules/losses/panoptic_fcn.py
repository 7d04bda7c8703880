"""The loss of Panoptic FCN: positions of things and stuff, and masks of kernels (Li et al., CVPR 2021, section 3.5).

One image: M segments, T classes of things, S of stuff, maps (H, W) of the features and (h, w) of a level. Where the
paper is silent the official code decides; FACTS section 4 has the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes

from fapn_zoo.modules.heads.outputs import PanopticFCNOutput, Targets
from fapn_zoo.modules.losses.loss import Loss, Totals, counted, focal, refuse

# of the five levels: square root of the area of boxes, in pixels; an object may belong to two of them
RANGES = ((0.0, 64.0), (32.0, 128.0), (64.0, 256.0), (128.0, 512.0), (256.0, torch.inf))
OVERLAP = 0.7  # of boxes whose centres count as almost right
ON_MASK = 0.1  # share of a place of a level that is mask, from which on its kernel may be of the object
POSITION_WEIGHT, MASK_WEIGHT = 1.0, 3.0  # of the terms
REGION = 0.5  # share of a place that is of a class of stuff, below which it counts as 0


class _Truth(NamedTuple):
    """The segments of one image."""

    masks: Tensor  # (M, H, W) shares of the features' pixels
    boxes: Tensor  # (M, 4) in pixels of the network input
    rows: Tensor  # (M,) place of the class among the things, -1 of stuff
    stuff: Tensor  # (S + 1, H, W) shares of the classes of stuff, the first of all things together


class PanopticFCNLoss(Loss):
    """Focal losses of both position maps, dice losses of the masks of objects and of stuff.

    The target of a centre is a Gaussian about the middle of the mask, that of a region the share of a class. Of each
    object the `positions` places of a level whose score for its class is highest give a mask; their losses are weighted
    by these scores. Of stuff a kernel is averaged over its region.

    Objects are known before the forward pass, and so is by how many the losses of centres and masks are divided; one
    counts for every level whose range its box is in. How many regions levels have is not: the loss of stuff masks is a
    mean over images of means over their regions, which with one image is the official mean. Crowds and pixels without a
    segment are of no class.

    Args:
        num_classes: K. things: ids of the countable ones, empty: all.
        positions: see above.
    """

    def __init__(self, num_classes: int, things: Sequence[int] = (), positions: int = 7) -> None:
        super().__init__()
        things = sorted(things) or range(num_classes)
        rows = torch.full((num_classes,), -1)
        rows[list(things)] = torch.arange(len(things))
        channels = torch.cumsum(rows < 0, 0) * (rows < 0)  # of things 0, of stuff from 1 on
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("channels", channels, persistent=False)
        self.positions = positions

    @classmethod
    def of(cls, model: torch.nn.Module, **options: Any) -> Self:
        """Raises ValueError for options: this loss balances objects and regions, not pixels."""
        refuse(options, "objects")
        return cls(model.num_classes, model.data.things, model.head.positions)

    def count(self, targets: Targets) -> Totals:
        """`images`; `seen`, those with a segment; `objects`, of how many levels all objects are."""
        found = list(zip(targets.object_classes(), _boxes(targets), strict=True))
        objects = sum(int(_in_ranges(boxes[self.rows.to(c.device)[c] >= 0]).sum()) for c, boxes in found)
        return counted(images=len(targets), seen=sum(len(c) > 0 for c, _ in found), objects=objects)

    def forward(self, output: PanopticFCNOutput, targets: Targets, totals: Totals | None = None) -> Totals:
        """`loss` and its unweighted terms: `centres`, `regions` of positions, `things`, `stuff` of masks."""
        counts = {name: max(count.item(), 1.0) for name, count in (totals or self.count(targets)).items()}
        terms = dict.fromkeys(("centres", "regions", "things", "stuff"), 0)
        boxes = _boxes(targets)
        for n, (classes, masks) in enumerate(targets.segments()):
            truth = self._truth(output, classes, masks, boxes[n])
            for name, value in self._image(output.image(n), truth).items():
                terms[name] = terms[name] + value
        divisors = {"centres": "objects", "regions": "images", "things": "objects", "stuff": "seen"}
        terms = {name: terms[name] / counts[divisors[name]] for name in terms}
        position, mask = terms["centres"] + terms["regions"], terms["things"] + terms["stuff"]
        unused = (maps.sum() * 0.0 for maps in (*output.thing_kernels, *output.stuff_kernels, output.stuff_base))
        loss = POSITION_WEIGHT * position + MASK_WEIGHT * mask + sum(unused)  # the graph is always the same
        return {"loss": loss} | terms

    def _truth(self, output: PanopticFCNOutput, classes: Tensor, masks: Tensor, boxes: Tensor) -> _Truth:
        shares = coarse_masks(masks, output.features.shape[-2:], output.stride)
        channels = F.one_hot(self.channels[classes], output.regions[0].shape[1]).to(shares.dtype)
        stuff = (channels.T @ shares.flatten(1)).view(-1, *shares.shape[1:]).clamp_(max=1)
        return _Truth(shares, boxes, self.rows[classes], stuff)

    def _image(self, output: PanopticFCNOutput, truth: _Truth) -> dict[str, Tensor]:
        """Sums over levels: of `centres` over objects and places, of the others means over places; of one image."""
        features, base = output.features[0].float(), output.stuff_base[0].float()
        centre, region, thing, stuff = features.new_zeros(4).unbind()
        regions = 0
        maps = zip(*output[:4], strict=True)
        for (centres, areas, thing_kernels, stuff_kernels), (low, high) in zip(maps, RANGES, strict=True):
            centres, areas = centres[0].float(), areas[0].float()
            size = centres.shape[-2:]
            here = torch.nonzero((truth.rows >= 0) & _in_range(truth.boxes, low, high))[:, 0]
            rows, masks, boxes = truth.rows[here], truth.masks[here], truth.boxes[here]
            centre = centre + focal(centres, centre_map(rows, masks, boxes, centres.shape, output.stride)).sum()
            share = _resized(truth.stuff, size)
            share = share.where(share >= REGION, 0)
            region = region + focal(areas, share).mean(dim=(1, 2)).sum()
            if len(here):
                scores = centres.sigmoid()[rows].flatten(1) * (_resized(masks, size) > ON_MASK).flatten(1)
                scores, places = scores.topk(min(self.positions, scores.shape[1]), dim=1)
                kernels = thing_kernels[0].float().flatten(1).T[places]  # (M, positions, E)
                losses = dice((kernels @ features.flatten(1)).sigmoid(), masks.flatten(1)[:, None])
                thing = thing + (losses * scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-8)).sum()
            found = torch.nonzero(share.flatten(1).any(dim=1))[:, 0]
            kernels = (share[found] > 0).flatten(1).float() @ stuff_kernels[0].float().flatten(1).T / share[0].numel()
            probabilities = (kernels @ features.flatten(1) + base.flatten()).sigmoid()
            stuff = stuff + dice(probabilities, truth.stuff[found].flatten(1)).sum()
            regions += len(found)
        return {"centres": centre, "regions": region, "things": thing, "stuff": stuff / max(regions, 1)}


def dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 - 2 sum(p t) / (sum(p^2) + sum(t^2)) over the last dimension (V-Net, Milletari et al. 2016)."""
    squares = probabilities.square().sum(dim=-1) + target.square().sum(dim=-1)
    return 1 - 2 * (probabilities * target).sum(dim=-1) / squares.clamp(min=1e-8)


def coarse_masks(masks: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Masks (M, H, W) bool -> the share (M, h, w) of the four middle pixels of every place of a map with this stride.

    That is the bilinear resize by an even factor. A mask that has none of these pixels, since it is small, gets the
    places that it touches.
    """
    (height, width), middle = size, stride // 2
    padding = (0, width * stride - masks.shape[2], 0, height * stride - masks.shape[1])
    padded = F.pad(masks.to(torch.uint8), padding)
    rows, columns = (slice(start, None, stride) for start in (middle - 1, middle)), (middle - 1, middle)
    shares = sum(padded[:, row, column::stride] for row in rows for column in columns).float() / 4
    missed = ~shares.flatten(1).any(dim=1)
    if missed.any():
        shares[missed] = F.max_pool2d(padded[missed].float()[None], stride)[0]
    return shares


def centre_map(rows: Tensor, masks: Tensor, boxes: Tensor, shape: tuple[int, int, int], stride: int) -> Tensor:
    """Gaussians about the middles of masks (M, H, W) on a level (T, h, w), for each class the largest at a place.

    Their radius follows CornerNet (Law and Deng, ECCV 2018) as the official code has it: of its three cases the third
    is always the smallest. A standard deviation is a third of the diameter. `boxes` (M, 4) are in pixels.
    """
    count, height, width = shape
    target = torch.zeros(shape, device=masks.device)
    if not len(masks):
        return target
    scale = boxes.new_tensor([width / (stride * masks.shape[2]), height / (stride * masks.shape[1])])
    sides = (boxes[:, 2:] - boxes[:, :2]) * scale
    total, area = OVERLAP * sides.sum(dim=1), 4 * OVERLAP * (1 - OVERLAP) * sides.prod(dim=1)
    radius = ((total.square() + area).sqrt() - total).clamp(min=0).floor()
    on = (masks > 0).float()
    middles = []
    for axis, side in ((2, width), (1, height)):
        sums, places = on.sum(dim=3 - axis), torch.arange(masks.shape[axis], device=masks.device)
        middle = (sums @ places.float() / sums.sum(dim=1)) * (side / masks.shape[axis])
        middles.append(middle.long().clamp(max=side - 1))
    away = [
        torch.arange(side, device=masks.device) - middle[:, None]
        for middle, side in zip(middles, (width, height), strict=True)
    ]
    x, y = away[0][:, None], away[1][:, :, None]
    near = (x.abs() <= radius[:, None, None]) & (y.abs() <= radius[:, None, None])
    deviation = (2 * radius + 1)[:, None, None] / 3
    peaks = torch.exp(-(x.square() + y.square()) / (2 * deviation.square())) * near
    for row, peak in zip(rows.tolist(), peaks, strict=True):
        torch.maximum(target[row], peak, out=target[row])
    return target


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0] if len(maps) else maps


def _boxes(targets: Targets) -> Sequence[Tensor]:
    """Of every image the boxes of its segments, made of masks where there are none."""
    if targets.boxes:
        return targets.boxes
    last = torch.tensor([0, 0, 1, 1])  # torchvision's boxes end in the last pixel
    return [masks_to_boxes(masks) + last.to(masks.device) for _, masks in targets.segments()]


def _in_range(boxes: Tensor, low: float, high: float) -> Tensor:
    side = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    return (side >= low) & (side <= high)


def _in_ranges(boxes: Tensor) -> Tensor:
    """(M, 4) -> (levels, M) bool: which of them an object belongs to."""
    return torch.stack([_in_range(boxes, low, high) for low, high in RANGES])
