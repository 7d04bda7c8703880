"""PointRend for semantic segmentation (Kirillov et al., CVPR 2020): a coarse map, refined where it is uncertain.

What it computes is described in FACTS section 3, "PointRend semantic". N images, K classes, P points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import ClassRows, PointRendOutput, SemanticOutput, Targets
from fapn_zoo.modules.heads.per_pixel import SemanticFPNHead
from fapn_zoo.modules.layers.conv import Maps
from fapn_zoo.modules.layers.points import most_uncertain_pixels, sample_points, training_points, uncertainty


class PointHead(nn.Module):
    """Classifies points on their own: 1x1 convolutions with ReLU on fine features beside coarse logits.

    Args:
        in_channels: of the fine features.
        num_classes: K, of the coarse logits and of the result.
        channels, layers: width and number of the hidden layers.
        coarse_each_layer: coarse logits enter every layer and the predictor, not the first layer only.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int = 256,
        layers: int = 3,
        *,
        coarse_each_layer: bool = False,
    ) -> None:
        super().__init__()
        self.coarse_each_layer = coarse_each_layer
        again = num_classes if coarse_each_layer else 0
        widths = [in_channels + num_classes] + [channels + again] * layers
        self.layers = nn.ModuleList(nn.Conv1d(width, channels, 1) for width in widths[:-1])
        self.predictor = nn.Conv1d(widths[-1], num_classes, 1)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    def hidden(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """What the predictor reads, (N, channels, P), with `coarse_each_layer` (N, channels + K, P)."""
        x = torch.cat([fine, coarse], dim=1)
        for layer in self.layers:
            x = layer(x).relu_()
            if self.coarse_each_layer:
                x = torch.cat([x, coarse], dim=1)
        return x

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """(N, in_channels, P) and (N, K, P) -> logits (N, K, P)."""
        return self.predictor(self.hidden(fine, coarse))


class PointRendHead(nn.Module):
    """A semantic FPN head whose logits are refined by a point head that also reads the finest neck output.

    Every step of the refinement doubles the map and classifies its most uncertain pixels anew, the others are
    interpolated: two steps lead from stride 4 to the input's own resolution. Coarse logits are always read at stride 4.

    Args: as `SemanticFPNHead`, and
        point_channels, point_layers: see `PointHead`.
        train_points: points of an image that the loss sees. oversample, importance: see `training_points`.
        steps: of the refinement, 0 to 2.
        refined_points: pixels of an image that a step classifies anew, at most.

    Raises ValueError for other `steps`, fewer than one point, or an `importance` outside 0..1.
    """

    # the first layer of the point head reads the coarse logits, so its shape follows the classes
    classifier = {
        "coarse.predictor": ClassRows(),
        "points.layers.0": ClassRows("", inputs=True),
        "points.predictor": ClassRows(),
    }

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        num_classes: int,
        *,
        channels: int = 128,
        norm: str = "gn",
        levels: int = 4,
        point_channels: int = 256,
        point_layers: int = 3,
        train_points: int = 2048,
        oversample: float = 3.0,
        importance: float = 0.75,
        steps: int = 2,
        refined_points: int = 8192,
    ) -> None:
        super().__init__()
        if steps not in (0, 1, 2):
            raise ValueError(f"steps={steps!r}; expected 0, 1 or 2: the coarse map has stride 4")
        if min(train_points, refined_points, point_layers) < 1:
            given = f"train_points={train_points}, refined_points={refined_points}, point_layers={point_layers}"
            raise ValueError(f"{given}; expected 1 or more of each")
        if not 0 <= importance <= 1 <= oversample:
            raise ValueError(f"importance={importance}, oversample={oversample}; expected 0..1, and 1 or more")
        self.coarse = SemanticFPNHead(
            in_channels, feature_channels, num_classes, channels=channels, norm=norm, levels=levels
        )
        self.points = PointHead(in_channels, num_classes, point_channels, point_layers)
        self.train_points, self.oversample, self.importance = train_points, oversample, importance
        self.steps, self.refined_points = steps, refined_points

    def forward(
        self, pyramid: Maps, features: Maps, sizes: object = None, targets: Targets | None = None
    ) -> SemanticOutput | PointRendOutput:
        """`pyramid[i]` (N, C, h / 2^i, w / 2^i) -> logits (N, K, 2^steps h, 2^steps w), at stride 1 after two steps.

        In training mode, or with targets, coarse logits (N, K, h, w) and those of random points instead, which the
        seeds of the targets decide.
        """
        coarse, fine = self.coarse(pyramid, features).logits, pyramid[0]
        if not self.training and targets is None:
            return SemanticOutput(self.refined(coarse, fine), stride=4 >> self.steps)
        seeds = None if targets is None else targets.seeds
        points = training_points(coarse, self.train_points, seeds, self.oversample, self.importance)
        return PointRendOutput(coarse, points, self.at(points, coarse, fine))

    def at(self, points: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
        """Logits (N, K, P) of points (N, P, 2), from coarse logits and fine features of one extent."""
        return self.points(sample_points(fine, points), sample_points(coarse, points))

    def refined(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(N, K, h, w) and (N, C, h, w) -> (N, K, 2^steps h, 2^steps w)."""
        logits = coarse
        for _ in range(self.steps):
            logits = F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
            with torch.no_grad():
                index, points = most_uncertain_pixels(uncertainty(logits), self.refined_points)
            found = self.at(points, coarse, fine).to(logits.dtype)
            places = index.unsqueeze(1).expand(-1, logits.shape[1], -1)
            logits = logits.flatten(2).scatter_(2, places, found).view(logits.shape)  # large, and nobody else's
        return logits
