"""Cross-entropy over pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import SemanticOutput, Targets
from fapn_zoo.modules.losses.loss import Loss


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

    def count(self, targets: Targets) -> dict[str, Tensor]:
        """`pixels`: the number of labelled ones, or the sum of their weights."""
        labelled = targets.labels[targets.labels != self.ignore_index]
        if self.class_weights is None:
            return {"pixels": torch.tensor(float(labelled.numel()), dtype=torch.float64, device=labelled.device)}
        counts = torch.bincount(labelled, minlength=len(self.class_weights)).double()
        return {"pixels": (counts * self.class_weights.to(counts)).sum()}

    def forward(
        self, output: SemanticOutput, targets: Targets, totals: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Logits (N, K, h, w) at their stride against labels (N, H, W)."""
        pixels = (totals or self.count(targets))["pixels"].clamp(min=1e-6).float()
        maps = (output.logits, *output.aux)
        return {"loss": sum(self._sum(logits, targets.labels, output.stride) / pixels for logits in maps)}

    def _sum(self, logits: Tensor, labels: Tensor, stride: int) -> Tensor:
        logits = upsample_to(logits.float(), *labels.shape[-2:], stride)
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        return F.cross_entropy(logits, labels, weight, ignore_index=self.ignore_index, reduction="sum")
