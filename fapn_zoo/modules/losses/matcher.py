"""Bipartite matching of predicted and true masks (MaskFormer section 3.2; FACTS section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fapn_zoo.modules.losses.loss import FOCAL_ALPHA, FOCAL_GAMMA


@torch.no_grad()
def match(
    class_logits: Tensor,
    mask_logits: Tensor,
    classes: Tensor,
    masks: Tensor,
    *,
    class_weight: float = 1.0,
    mask_weight: float = 20.0,
    dice_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Assigns every true mask of one image to its own query at least cost.

    Args:
        class_logits: (Q, K + 1). mask_logits: (Q, h, w).
        classes: (M,) int64. masks: (M, H, W) bool; compared at (h, w) by nearest resizing.

    Returns:
        Query and target indices, int64, min(Q, M) each, by increasing query.

    Raises:
        ValueError: a cost that is not finite, naming its term (the usual sign of diverged training).
    """
    if len(classes) == 0:
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, empty
    target = F.interpolate(masks[None].byte(), size=mask_logits.shape[-2:], mode="nearest")[0].flatten(1).float()
    logits = mask_logits.flatten(1).float()
    costs = {
        "class": -class_weight * class_logits.float().softmax(-1)[:, classes],
        "mask": mask_weight * _focal_cost(logits, target),
        "dice": dice_weight * _dice_cost(logits, target),
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
