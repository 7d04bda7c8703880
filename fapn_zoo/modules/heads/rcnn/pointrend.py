"""PointRend for instances (Kirillov et al., CVPR 2020): a coarse mask in every box, refined where it is uncertain.

What it computes is described in FACTS section 3, "PointRend instance". M boxes, K classes, P points of a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import InstanceOutput, Targets
from fapn_zoo.modules.heads.pointrend import PointHead
from fapn_zoo.modules.heads.rcnn.head import STRIDE, FasterRCNNHead
from fapn_zoo.modules.layers.points import most_uncertain_pixels, regular_points, sample_in_boxes, sample_points

BLOCK = 16  # boxes whose points are classified at once: the features of a hundred would leave every cache


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

    def forward(self, fine: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of every image the logits (M_n, S, S) of its boxes' own classes (M_n,), S = `side` * 2^`steps`."""
        coarse = self.coarse(fine, boxes).split([len(each) for each in boxes])
        images = zip(fine.split(1), boxes, classes, coarse, strict=True)
        return tuple(
            torch.cat([self._refined(image, *part) for part in zip(*(t.split(BLOCK) for t in of_boxes), strict=True)])
            for image, *of_boxes in images
        )

    def _refined(self, fine: Tensor, boxes: Tensor, classes: Tensor, coarse: Tensor) -> Tensor:
        """`forward` for some boxes of one image, whose fine features are (1, C, h, w)."""
        weight, bias = self.points.predictor.weight[classes, :, 0], self.points.predictor.bias[classes, None]

        def classified(points: Tensor) -> Tensor:
            hidden = self.points.hidden(*self.at(points, fine, [boxes], coarse))
            return torch.einsum("mcp,mc->mp", hidden, weight) + bias  # of the one class that is asked for

        start = regular_points(self.first_side, fine).expand(len(boxes), -1, -1)
        logits = classified(start).view(-1, self.first_side, self.first_side)
        for _ in range(self.steps):
            doubled = F.interpolate(logits[:, None], scale_factor=2.0, mode="bilinear", align_corners=False)[:, 0]
            with torch.no_grad():
                index, points = most_uncertain_pixels(-doubled.abs(), self.refined_points)
            logits = doubled.flatten(1).scatter(1, index, classified(points).to(doubled.dtype)).view(doubled.shape)
        return logits


class PointRendRCNNHead(FasterRCNNHead):
    """Faster R-CNN whose detections have masks that are rendered point by point, S = 224 cells a side.

    Args: as `FasterRCNNHead`; `mask_hidden` and `mask_fc` are `hidden` and `fc` of `PointRendBranch`,
        `point_channels`, `point_layers`, `steps` and `refined_points` are the same as there.

    Raises ValueError for fewer than one layer or refined point, or negative `steps`.
    """

    # every layer of the point head reads the coarse logits, so its shape follows the classes
    classifier = ("box.scores", "box.deltas", "mask.prediction", "mask.points.layers", "mask.points.predictor")

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
        steps: int = 5,
        refined_points: int = 784,
        **detection: Any,
    ) -> None:
        super().__init__(in_channels, feature_channels, num_classes, **detection)
        if steps < 0 or min(point_layers, refined_points) < 1:
            given = f"steps={steps}, point_layers={point_layers}, refined_points={refined_points}"
            raise ValueError(f"{given}; expected 0 or more steps and 1 or more of the others")
        points = {"point_channels": point_channels, "point_layers": point_layers, "refined_points": refined_points}
        self.mask = PointRendBranch(in_channels, num_classes, hidden=mask_hidden, fc=mask_fc, steps=steps, **points)

    def forward(
        self,
        pyramid: Sequence[Tensor],
        features: Sequence[Tensor],
        sizes: Tensor | None = None,
        targets: Targets | None = None,
    ) -> InstanceOutput:
        """The detections of every image with the logits of their masks; see `FasterRCNNHead`."""
        boxes, scores, classes = self.detect(pyramid, sizes)
        usable = [each.nan_to_num() for each in boxes]
        return InstanceOutput(boxes, scores, classes, self.mask(pyramid[0], usable, classes))

    def before_choice(self, pyramid: Sequence[Tensor]) -> dict[str, Tensor]:
        """Also the coarse masks of these boxes, and points on a regular grid, for every class."""
        boxes, fine = self.fixed_boxes(pyramid), pyramid[0]
        coarse = self.mask.coarse(fine, boxes)
        points = regular_points(self.mask.side, fine).expand(len(coarse), -1, -1)
        return super().before_choice(pyramid) | {
            "coarse": coarse,
            "points": self.mask.points(*self.mask.at(points, fine, boxes, coarse)),
        }
