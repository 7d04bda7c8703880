"""Cross-entropy over pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.heads import SemanticOutput


def upsample_to(maps: Tensor, height: int, width: int, stride: int = 4) -> Tensor:
    """Bilinear upsampling of (N, C, h, w) by exactly ``stride``, then a crop to (height, width).

    The grid of a strided network reaches past an image whose size is no multiple of the stride, so stretching the
    map to the image's size would shift it by a fraction of a pixel (FACTS section 2, per-pixel baseline).
    """
    maps = F.interpolate(
        maps, size=(maps.shape[-2] * stride, maps.shape[-1] * stride), mode="bilinear", align_corners=False
    )
    return maps[..., :height, :width]


class PerPixelLoss(nn.Module):
    """Weighted mean cross-entropy over labelled pixels, on logits upsampled to the labels' size.

    Args:
        ignore_index: label value that does not count.
        aux_weight: weight of each map in ``output.aux``.
        class_weights: one factor per class for its pixels; empty weighs all alike.
    """

    def __init__(self, ignore_index: int = 255, aux_weight: float = 1.0, class_weights: Sequence[float] = ()):
        super().__init__()
        self.ignore_index = ignore_index
        self.aux_weight = aux_weight
        weights = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """The number of labelled pixels, or the sum of their weights, float64."""
        labels = targets["labels"]
        labelled = labels[labels != self.ignore_index]
        if self.class_weights is None:
            return torch.tensor(float(labelled.numel()), dtype=torch.float64, device=labels.device)
        counts = torch.bincount(labelled, minlength=len(self.class_weights)).double()
        return (counts * self.class_weights.to(counts)).sum()

    def forward(
        self, output: SemanticOutput, targets: dict[str, Tensor], normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Logits (N, K, h, w) at stride 4 against labels (N, H, W) int64; ``normalizer`` replaces `count`."""
        total = self.count(targets) if normalizer is None else normalizer
        total = total.clamp(min=1e-6).float()
        loss = self._sum(output.logits, targets["labels"]) / total
        for logits in output.aux:
            loss = loss + self.aux_weight * self._sum(logits, targets["labels"]) / total
        return {"loss": loss}

    def _sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = upsample_to(logits.float(), *labels.shape[-2:])
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        return F.cross_entropy(logits, labels, weight, ignore_index=self.ignore_index, reduction="sum")
