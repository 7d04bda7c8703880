"""Cross-entropy over pixels, and over points (PointRend; FACTS section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import PointRendOutput, SemanticOutput, Targets
from fapn_zoo.modules.losses.loss import Loss, Totals


def upsample_to(maps: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Bilinear upsampling of (N, C, h, w) by exactly `stride`, then a crop to (height, width).

    The grid of a strided network reaches past an image whose size is no multiple of the stride, so stretching the
    map to the image's size would shift it by a fraction of a pixel (FACTS section 2, per-pixel baseline).
    """
    size = (maps.shape[-2] * stride, maps.shape[-1] * stride)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[..., :height, :width]


class PerPixelLoss(Loss):
    """Weighted mean cross-entropy over labelled pixels, on logits upsampled to the labels' size.

    Pixels of `ignore_index` do not count; `class_weights` is a factor per class, empty weighs all alike.
    """

    def __init__(self, ignore_index: int = 255, class_weights: Sequence[float] = ()) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        weights = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    @classmethod
    def of(cls, model: nn.Module, class_weights: Sequence[float] = ()) -> Self:
        """Raises ValueError for class weights that are not one positive number per class."""
        if class_weights and (len(class_weights) != model.num_classes or min(class_weights) <= 0):
            raise ValueError(
                f"class_weights has {len(class_weights)} values {tuple(class_weights)}; expected a positive number "
                f"for each of the {model.num_classes} classes"
            )
        return cls(ignore_index=model.data.ignore_index, class_weights=class_weights)

    def count(self, targets: Targets) -> Totals:
        """`pixels`: the number of labelled ones, or the sum of their weights."""
        labelled = targets.labels[targets.labels != self.ignore_index]
        if self.class_weights is None:
            return {"pixels": torch.tensor(float(labelled.numel()), dtype=torch.float64, device=labelled.device)}
        counts = torch.bincount(labelled, minlength=len(self.class_weights)).double()
        return {"pixels": (counts * self.class_weights.to(counts)).sum()}

    def forward(self, output: SemanticOutput, targets: Targets, totals: Totals | None = None) -> Totals:
        """Logits (N, K, h, w) at their stride against labels (N, H, W)."""
        pixels = (totals or self.count(targets))["pixels"].clamp(min=1e-6).float()
        maps = (output.logits, *output.aux)
        return {"loss": sum(self._sum(logits, targets.labels, output.stride) / pixels for logits in maps)}

    def _sum(self, logits: Tensor, labels: Tensor, stride: int) -> Tensor:
        logits = upsample_to(logits.float(), *labels.shape[-2:], stride)
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        return F.cross_entropy(logits, labels, weight, ignore_index=self.ignore_index, reduction="sum")


class PointRendLoss(PerPixelLoss):
    """`PerPixelLoss` of the coarse logits, plus the mean cross-entropy of the points, with equal weights.

    The label of a point is that of the pixel it lies in. The points' term is a mean over images of means over their
    labelled points: counts are needed before the points are drawn, and how many images have labels is known then. With
    one image, or equal shares of ignored points, it is the official mean over all labelled points.
    """

    def count(self, targets: Targets) -> Totals:
        """`pixels` as in `PerPixelLoss`; `images`, those with a labelled pixel."""
        labelled = (targets.labels != self.ignore_index).flatten(1).any(dim=1)
        return super().count(targets) | {"images": labelled.sum().double()}

    def forward(self, output: PointRendOutput, targets: Targets, totals: Totals | None = None) -> Totals:
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
