"""The second stage: what is in a region, where exactly, and its mask (FACTS section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from fapn_zoo.modules.layers.boxes import all_finite, decode

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # deltas are learned this much larger than they are


class BoxBranch(nn.Module):
    """Two fully connected layers, class scores and a box for every class (Fast R-CNN on pooled features).

    Args:
        channels: of the pooled maps. side: of the pooled maps. hidden: width of the layers.
        num_classes: K; the background comes last, as class K.
        score: a detection has more than this. nms: overlap above which the worse of a class's two goes.
        most: detections of one image.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        side: int = 7,
        hidden: int = 1024,
        score: float = 0.05,
        nms: float = 0.5,
        most: int = 100,
    ) -> None:
        super().__init__()
        self.side, self.score, self.nms, self.most = side, score, nms, most
        self.fc1 = nn.Linear(channels * side**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.scores = nn.Linear(hidden, num_classes + 1)
        self.deltas = nn.Linear(hidden, 4 * num_classes)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc1, self.fc2, self.scores, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(M, C, side, side) -> class logits (M, K + 1) and deltas (M, 4K), one class after the other."""
        x = F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))
        return self.scores(x), self.deltas(x)

    @torch.no_grad()
    def choose(
        self, logits: Tensor, deltas: Tensor, proposals: Tensor, size: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One image's detections, the best first: boxes (D, 4) inside `size`, scores (D,) and classes (D,) int64.

        Where a number is NaN or infinite, the only detection is NaN. On the meta device there are as many as there
        may be. See `RegionProposals.choose`.
        """
        if logits.is_meta:
            found = logits.new_empty(self.most, 5)
            return found[:, :4], found[:, 4], found.new_empty(self.most, dtype=torch.int64)
        scores = logits.float().softmax(dim=1)[:, :-1]
        boxes = decode(deltas.view(*scores.shape, 4), proposals[:, None], BOX_WEIGHTS)
        if not all_finite(logits, deltas, proposals):
            broken = scores.new_full((1, 5), torch.nan)
            return broken[:, :4], broken[:, 4], torch.zeros(1, dtype=torch.int64, device=scores.device)
        rows, classes = torch.nonzero(scores > self.score, as_tuple=True)
        boxes, scores = clip_boxes_to_image(boxes[rows, classes], size), scores[rows, classes]
        kept = batched_nms(boxes, scores, classes, self.nms)[: self.most]
        return boxes[kept], scores[kept], classes[kept]


class MaskBranch(nn.Module):
    """Four 3x3 convolutions, one transposed that doubles the side, and a mask for every class (Mask R-CNN).

    Args:
        channels: of the pooled maps. hidden: width of the layers. num_classes: K.
        side: of the pooled maps; masks have twice that. convs: how many 3x3 convolutions.
    """

    def __init__(self, channels: int, num_classes: int, *, side: int = 14, hidden: int = 256, convs: int = 4) -> None:
        super().__init__()
        self.side = side
        self.convs = nn.ModuleList(nn.Conv2d(hidden if i else channels, hidden, 3, padding=1) for i in range(convs))
        self.deconv = nn.ConvTranspose2d(hidden, hidden, 2, stride=2)
        self.predictor = nn.Conv2d(hidden, num_classes, 1)
        for layer in (*self.convs, self.deconv):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (*self.convs, self.deconv, self.predictor):
            nn.init.zeros_(layer.bias)

    def features(self, pooled: Tensor) -> Tensor:
        """(M, C, side, side) -> (M, hidden, 2 side, 2 side), which the last layer reads."""
        for conv in self.convs:
            pooled = F.relu(conv(pooled))
        return F.relu(self.deconv(pooled))

    def forward(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """(M, C, side, side) and classes (M,) -> logits (M, 2 side, 2 side) of each region's own class.

        The last layer is computed for these classes alone.
        """
        x = self.features(pooled)
        weight, bias = self.predictor.weight[classes, :, 0, 0], self.predictor.bias[classes]
        return torch.einsum("mchw,mc->mhw", x, weight) + bias[:, None, None]
