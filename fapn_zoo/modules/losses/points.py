"""The loss of PointRend: cross-entropy of the coarse map, and of points (FACTS section 3, "PointRend semantic")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fapn_zoo.modules.heads.outputs import PointRendOutput, Targets
from fapn_zoo.modules.losses.per_pixel import PerPixelLoss


class PointRendLoss(PerPixelLoss):
    """`PerPixelLoss` of the coarse logits, plus the mean cross-entropy of the points, with equal weights.

    The label of a point is that of the pixel it lies in. The points' term is a mean over images of means over their
    labelled points: counts are needed before the points are drawn, and how many images have labels is known then. With
    one image, or equal shares of ignored points, it is the official mean over all labelled points.
    """

    def count(self, targets: Targets) -> dict[str, Tensor]:
        """`pixels` as in `PerPixelLoss`; `images`, those with a labelled pixel."""
        labelled = (targets.labels != self.ignore_index).flatten(1).any(dim=1)
        return super().count(targets) | {"images": labelled.sum().double()}

    def forward(
        self, output: PointRendOutput, targets: Targets, totals: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`loss` and its terms `coarse` and `point`. Labels are (N, H, W)."""
        totals = totals or self.count(targets)
        pixels, images = (totals[name].clamp(min=1e-6).float() for name in ("pixels", "images"))
        coarse = self._sum(output.logits, targets.labels, output.stride) / pixels
        height, width = (side * output.stride for side in output.logits.shape[-2:])
        labels = labels_at(targets.labels, output.points, (height, width), self.ignore_index)
        point = self._means(output.point_logits.float(), labels).sum() / images
        return {"loss": coarse + point, "coarse": coarse, "point": point}

    def _means(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of every image the (weighted) mean over its labelled points, (N,); 0 where it has none."""
        known = labels != self.ignore_index
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        losses = F.cross_entropy(logits, labels, weight, ignore_index=self.ignore_index, reduction="none")
        weights = known.float() if weight is None else weight[labels.where(known, 0)] * known
        return losses.sum(1) / weights.sum(1).clamp(min=1e-6)


def labels_at(labels: Tensor, points: Tensor, extent: tuple[int, int], ignore_index: int) -> Tensor:
    """Labels (N, H, W) of the pixels that points (N, P, 2) of an `extent` (height, width) lie in: (N, P).

    The extent of a strided map reaches past an image whose size is no multiple of the stride; there the label is
    `ignore_index`.
    """
    height, width = labels.shape[-2:]
    x, y = (points * points.new_tensor(extent[::-1])).long().unbind(dim=2)
    inside = (x < width) & (y < height)
    found = labels.flatten(1).gather(1, y.clamp(max=height - 1) * width + x.clamp(max=width - 1))
    return torch.where(inside, found, ignore_index)
