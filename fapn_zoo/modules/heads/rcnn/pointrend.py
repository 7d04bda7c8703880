"""PointRend for instances (Kirillov et al., CVPR 2020): a coarse mask in every box, refined where it is uncertain.

What it computes is described in FACTS section 3, "PointRend instance". M boxes, K classes, P points of a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from fapn_zoo.modules.heads.outputs import ClassRows, Compared, Targets
from fapn_zoo.modules.heads.pointrend import PointHead
from fapn_zoo.modules.heads.rcnn.branches import BOX_WEIGHTS
from fapn_zoo.modules.heads.rcnn.head import STRIDE, FasterRCNNHead, OnObjects, check_masks
from fapn_zoo.modules.layers.boxes import decode, masks_in_boxes
from fapn_zoo.modules.layers.conv import Maps
from fapn_zoo.modules.layers.points import (
    masks_at,
    most_uncertain_pixels,
    regular_points,
    sample_in_boxes,
    sample_points,
    training_points,
)
from fapn_zoo.modules.layers.random import drawn_bits, seeds_or_new

BLOCK = 4  # boxes whose points a CPU classifies at once: larger blocks are fresh memory every time, which costs more


class PointRendBranch(nn.Module):
    """A coarse mask for every class from a grid of fine features, and a point head that reads both.

    The refinement starts with points on a regular grid. Each step doubles it and classifies its most uncertain points
    anew, the others are interpolated. First steps that would classify all points anew are left out: the grid begins
    finer instead. So 5 steps from 7 points a side are 3 from 28, and end with 224.

    Args:
        channels: of the fine features. num_classes: K.
        grid: points of a box's side that the coarse mask is made of. side: cells of the coarse mask's side.
        hidden, fc: width of the convolution that halves the grid, and of the two layers after it.
        point_channels, point_layers: see `PointHead`.
        steps, refined_points: how often the coarse side is doubled; how many points of a box a step classifies anew.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        grid: int = 14,
        side: int = 7,
        hidden: int = 256,
        fc: int = 1024,
        point_channels: int = 256,
        point_layers: int = 3,
        steps: int = 5,
        refined_points: int = 784,
    ) -> None:
        super().__init__()
        self.num_classes, self.grid, self.side, self.refined_points = num_classes, grid, side, refined_points
        self.first_side, self.steps = side, steps
        while self.steps and 4 * self.first_side**2 <= refined_points:
            self.first_side, self.steps = 2 * self.first_side, self.steps - 1
        self.reduce = nn.Conv2d(channels, hidden, 2, stride=2)
        self.fc1 = nn.Linear(hidden * (grid // 2) ** 2, fc)
        self.fc2 = nn.Linear(fc, fc)
        self.prediction = nn.Linear(fc, num_classes * side**2)
        self.points = PointHead(channels, num_classes, point_channels, point_layers, coarse_each_layer=True)
        nn.init.kaiming_normal_(self.reduce.weight, mode="fan_out", nonlinearity="relu")
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.prediction.weight, std=0.001)
        for layer in (self.reduce, self.fc1, self.fc2, self.prediction):
            nn.init.zeros_(layer.bias)

    def coarse(self, fine: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Fine features (N, C, h, w) of stride 4 and every image's boxes (M_n, 4) -> logits (M, K, side, side)."""
        count = sum(len(each) for each in boxes)
        sampled = sample_in_boxes(fine, boxes, regular_points(self.grid, fine).expand(count, -1, -1), STRIDE)
        x = F.relu(self.reduce(sampled.unflatten(2, (self.grid, self.grid)))).flatten(1)
        x = self.prediction(F.relu(self.fc2(F.relu(self.fc1(x)))))
        return x.view(count, self.num_classes, self.side, self.side)

    def at(self, points: Tensor, fine: Tensor, boxes: Sequence[Tensor], coarse: Tensor) -> tuple[Tensor, Tensor]:
        """What `PointHead` takes for points (M, P, 2) of boxes: fine features (M, C, P), coarse logits (M, K, P)."""
        return sample_in_boxes(fine, boxes, points, STRIDE), sample_points(coarse, points)

    def classified(
        self, points: Tensor, fine: Tensor, boxes: Sequence[Tensor], coarse: Tensor, classes: Tensor
    ) -> Tensor:
        """Logits (M, P) of points (M, P, 2) of boxes, each of its box's own class (M,) alone."""
        hidden = self.points.hidden(*self.at(points, fine, boxes, coarse))
        weight, bias = self.points.predictor.weight[classes, :, 0], self.points.predictor.bias[classes, None]
        return torch.einsum("mcp,mc->mp", hidden, weight) + bias

    def forward(self, fine: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of every image the logits (M_n, S, S) of its boxes' own classes (M_n,), S = `side` * 2^`steps`."""
        coarse = self.coarse(fine, boxes).split([len(each) for each in boxes])
        images = zip(fine.split(1), boxes, classes, coarse, strict=True)
        return tuple(self._in_blocks(*image) for image in images)

    def _in_blocks(self, fine: Tensor, *of_boxes: Tensor) -> Tensor:
        count = BLOCK if fine.device.type == "cpu" else max(len(of_boxes[0]), 1)
        blocks = zip(*(tensor.split(count) for tensor in of_boxes), strict=True)
        return torch.cat([self._refined(fine, *block) for block in blocks])

    def _refined(self, fine: Tensor, boxes: Tensor, classes: Tensor, coarse: Tensor) -> Tensor:
        """`forward` for some boxes of one image, whose fine features are (1, C, h, w)."""
        start = regular_points(self.first_side, fine).expand(len(boxes), -1, -1)
        logits = self.classified(start, fine, [boxes], coarse, classes).view(-1, self.first_side, self.first_side)
        for _ in range(self.steps):
            doubled = F.interpolate(logits[:, None], scale_factor=2.0, mode="bilinear", align_corners=False)[:, 0]
            with torch.no_grad():
                index, points = most_uncertain_pixels(-doubled.abs(), self.refined_points)
            found = self.classified(points, fine, [boxes], coarse, classes).to(doubled.dtype)
            logits = doubled.flatten(1).scatter(1, index, found).view(doubled.shape)
        return logits


class PointRendRCNNHead(FasterRCNNHead):
    """Faster R-CNN whose detections have masks that are rendered point by point, S = 224 cells a side.

    Args: as `FasterRCNNHead`; `mask_hidden` and `mask_fc` are `hidden` and `fc` of `PointRendBranch`,
        `point_channels`, `point_layers`, `steps` and `refined_points` are the same as there; `train_points` of a region
        are what the loss sees, `oversample` and `importance` are those of `training_points`.

    Raises ValueError for fewer than one layer or point, negative `steps`, or an `importance` outside 0..1.
    """

    # every layer of the point head reads the coarse logits, so its shape follows the classes
    classifier = {
        **FasterRCNNHead.classifier,
        "mask.prediction": ClassRows(),
        "mask.points.layers": ClassRows("", inputs=True),
        "mask.points.predictor": ClassRows(inputs=True),
    }

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        num_classes: int,
        *,
        mask_hidden: int = 256,
        mask_fc: int = 1024,
        point_channels: int = 256,
        point_layers: int = 3,
        train_points: int = 196,
        oversample: float = 3.0,
        importance: float = 0.75,
        steps: int = 5,
        refined_points: int = 784,
        **detection: Any,
    ) -> None:
        super().__init__(in_channels, feature_channels, num_classes, **detection)
        if steps < 0 or min(point_layers, refined_points, train_points) < 1:
            given = f"steps={steps}, point_layers={point_layers}, refined_points={refined_points}"
            raise ValueError(f"{given}, train_points={train_points}; expected 0 or more steps, 1 or more of the others")
        if not 0 <= importance <= 1 <= oversample:
            raise ValueError(f"importance={importance}, oversample={oversample}; expected 0..1, and 1 or more")
        self.train_points, self.oversample, self.importance = train_points, oversample, importance
        points = {"point_channels": point_channels, "point_layers": point_layers, "refined_points": refined_points}
        self.mask = PointRendBranch(in_channels, num_classes, hidden=mask_hidden, fc=mask_fc, steps=steps, **points)

    def find_masks(self, pyramid: Maps, boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of every image the logits (D, S, S) of its boxes' own classes."""
        return self.mask(pyramid[0], boxes, classes)

    def learn_masks(self, pyramid: Maps, found: OnObjects, targets: Targets) -> dict[str, Compared]:
        """`mask`: coarse logits (P, 7, 7); `point`: those of random points (P, `train_points`), of the true classes.

        Boxes are those that the second stage predicts for the true class, without gradient, cut to the padded image.
        (The official code does not cut them. A wild one would make the true masks in it cost without bound.) The truth
        is 1 where a mask covers half of a coarse cell; at a point it is how far the mask covers it.

        Raises ValueError where the targets have no masks.
        """
        check_masks(targets)
        fine, parts = pyramid[0], [len(boxes) for boxes in found.boxes]
        extent = [STRIDE * side for side in fine.shape[-2:]]
        moved = map(partial(decode, weights=BOX_WEIGHTS), (d.detach() for d in found.deltas), found.boxes)
        boxes = [clip_boxes_to_image(each, extent) for each in moved]
        coarse, classes = self.mask.coarse(fine, boxes), torch.cat(found.classes)
        own = coarse[torch.arange(len(classes), device=classes.device), classes]
        seeds = seeds_or_new(targets.seeds, len(fine), fine.device)
        # every box has a seed of its own, which follows from its image's
        drawn = zip(drawn_bits(seeds, 1).split(1), parts, strict=True)
        of_boxes = torch.cat([drawn_bits(~seed[0], count)[0] for seed, count in drawn])
        points = training_points(own[:, None], self.train_points, of_boxes, self.oversample, self.importance)
        logits = self.mask.classified(points, fine, boxes, coarse, classes)
        rows = list(zip(targets.masks, found.objects, boxes, points.split(parts), strict=True))
        cells = tuple(masks_in_boxes(masks, box, objects, self.mask.side) for masks, objects, box, _ in rows)
        return {
            "mask": Compared(own.split(parts), cells),
            "point": Compared(logits.split(parts), tuple(masks_at(*row) for row in rows)),
        }

    def before_choice(self, pyramid: Maps) -> dict[str, Tensor]:
        """Also the coarse masks of these boxes, and points on a regular grid, for every class."""
        boxes, fine = self.fixed_boxes(pyramid), pyramid[0]
        coarse = self.mask.coarse(fine, boxes)
        points = regular_points(self.mask.side, fine).expand(len(coarse), -1, -1)
        return super().before_choice(pyramid) | {
            "coarse": coarse,
            "points": self.mask.points(*self.mask.at(points, fine, boxes, coarse)),
        }
