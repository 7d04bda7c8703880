"""The set loss of MaskFormer: classification of every query, focal and dice loss of the matched masks.

Formulas and weights: MaskFormer section 3.2 and FACTS section 2, "Training recipe".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import MaskFormerOutput, Targets
from fapn_zoo.modules.losses.loss import Loss

WEIGHTS = {"class": 1.0, "mask": 20.0, "dice": 1.0}  # of the loss terms, and of the matching costs
NO_OBJECT_WEIGHT = 0.1  # in the class-weighted mean of the cross-entropy
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
Segments = list[tuple[Tensor, Tensor]]  # per image: classes (M,) int64, masks (M, H, W) bool


@torch.no_grad()
def match(class_logits: Tensor, mask_logits: Tensor, classes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Assigns every true mask of one image to its own query at least cost (MaskFormer section 3.2).

    Logits (Q, K + 1) and (Q, h, w), classes (M,) int64 and masks (M, H, W) bool, compared at (h, w) by nearest
    resizing -> query and target indices, int64, min(Q, M) each, by increasing query. Raises ValueError where a cost is
    not finite, naming its term (the usual sign of diverged training).
    """
    if len(classes) == 0:
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, empty
    target = F.interpolate(masks[None].float(), size=mask_logits.shape[-2:], mode="nearest")[0].flatten(1)
    logits = mask_logits.flatten(1).float()
    costs = {
        "class": -WEIGHTS["class"] * class_logits.float().softmax(-1)[:, classes],
        "mask": WEIGHTS["mask"] * _focal_cost(logits, target),
        "dice": WEIGHTS["dice"] * _dice_cost(logits, target),
    }
    for term, cost in costs.items():
        if not torch.isfinite(cost).all():
            raise ValueError(f"the {term} cost of the matching is not finite")
    queries, targets = linear_sum_assignment(sum(costs.values()).cpu().numpy())
    return torch.from_numpy(queries), torch.from_numpy(targets)


def _focal_cost(logits: Tensor, target: Tensor) -> Tensor:
    """(Q, P) logits, (M, P) masks -> (Q, M): the focal loss of each pair, averaged over the P pixels."""
    p = logits.sigmoid()
    inside = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * F.softplus(-logits)
    outside = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * F.softplus(logits)
    return (inside @ target.t() + outside @ (1 - target).t()) / logits.shape[1]


def _dice_cost(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    return 1 - (2 * p @ target.t() + 1) / (p.sum(1)[:, None] + target.sum(1)[None] + 1)


class SetCriterion(Loss):
    """Set loss over the last decoder layer and all earlier ones (deep supervision), each matched anew."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @classmethod
    def of(cls, model: nn.Module, class_weights: Sequence[float] = ()) -> Self:
        """Raises ValueError for class weights: this loss balances masks, not pixels."""
        if class_weights:
            raise ValueError("class_weights is for per-pixel heads; MaskFormer's loss balances masks, not pixels")
        return cls(model.num_classes)

    def count(self, targets: Targets) -> dict[str, Tensor]:
        """`images`, and `masks`: how many true ones they have."""
        masks = sum(len(classes) for classes, _ in targets.segments())
        counts = {"images": len(targets), "masks": masks}
        return {name: torch.tensor(float(count), dtype=torch.float64) for name, count in counts.items()}

    def forward(
        self, output: MaskFormerOutput, targets: Targets, totals: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`loss` and its unweighted terms `class`, `mask`, `dice` (last layer), `class_0` ... (aux)."""
        totals = totals or self.count(targets)
        images, masks = totals["images"].item(), totals["masks"].item()
        segments = targets.segments()
        layers = [("", (output.class_logits, output.mask_logits))]
        layers += [(f"_{i}", pair) for i, pair in enumerate(output.aux)]
        losses, total = {}, 0
        for suffix, (class_logits, mask_logits) in layers:
            terms = self._layer(class_logits, mask_logits, segments, images, masks)
            total = total + sum(WEIGHTS[name] * value for name, value in terms.items())
            losses |= {name + suffix: value for name, value in terms.items()}
        return {"loss": total} | losses

    def _layer(
        self, class_logits: Tensor, mask_logits: Tensor, segments: Segments, images: float, masks: float
    ) -> dict[str, Tensor]:
        mask_loss = dice_loss = mask_logits.sum() * 0  # keeps the graph where no image has a mask
        target = torch.full(class_logits.shape[:2], self.num_classes, device=class_logits.device)
        for i, (classes, true) in enumerate(segments):
            queries, chosen = (n.to(target.device) for n in match(class_logits[i], mask_logits[i], classes, true))
            if len(queries):
                target[i, queries] = classes[chosen]
                focal, dice = _mask_losses(mask_logits[i][queries], true[chosen])
                mask_loss, dice_loss = mask_loss + focal, dice_loss + dice
        class_loss = self._class_loss(class_logits, target, images * class_logits.shape[1], masks)
        return {"class": class_loss, "mask": mask_loss / max(masks, 1), "dice": dice_loss / max(masks, 1)}

    def _class_loss(self, class_logits: Tensor, target: Tensor, queries: float, masks: float) -> Tensor:
        """Class-weighted mean. The sum of weights follows from the counts, so it is known for the whole batch."""
        weight = torch.ones(self.num_classes + 1, device=class_logits.device)
        weight[-1] = NO_OBJECT_WEIGHT
        loss = F.cross_entropy(class_logits.float().flatten(0, 1), target.flatten(), weight, reduction="sum")
        matched = min(masks, queries)
        return loss / (matched + NO_OBJECT_WEIGHT * (queries - matched))


def _mask_losses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(M, h, w) logits, upsampled to the (M, H, W) masks -> focal (mean over pixels) and dice, summed over masks."""
    logits = F.interpolate(logits[None].float(), size=target.shape[-2:], mode="bilinear", align_corners=False)[0]
    logits, target = logits.flatten(1), target.flatten(1).float()
    p = logits.sigmoid()
    p_true = p * target + (1 - p) * (1 - target)
    alpha = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (alpha * (1 - p_true) ** FOCAL_GAMMA * entropy).mean(1).sum()
    dice = (1 - (2 * (p * target).sum(1) + 1) / (p.sum(1) + target.sum(1) + 1)).sum()
    return focal, dice
