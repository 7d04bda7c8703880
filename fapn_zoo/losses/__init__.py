"""Losses: (output, targets) -> a dict of scalars whose ``"loss"`` is the weighted total.

Targets of semantic training are ``{"labels": (N, H, W) int64}``. Every loss is a sum divided by a count; `count` says
what a batch adds to that count, so that a trainer can pass the total over micro-batches and processes as `normalizer`
and the gradient does not depend on how a batch is spread.
"""

from __future__ import annotations

from torch import nn

from fapn_zoo.losses.per_pixel import PerPixelLoss
from fapn_zoo.losses.set_criterion import SetCriterion

__all__ = ["PerPixelLoss", "SetCriterion", "build_loss"]


def build_loss(model: nn.Module) -> nn.Module:
    """The loss that belongs to a model's head, for its number of classes and ignore index."""
    from fapn_zoo.heads import MaskFormerHead

    if isinstance(model.head, MaskFormerHead):
        return SetCriterion(model.num_classes, ignore_index=model.data.ignore_index)
    return PerPixelLoss(ignore_index=model.data.ignore_index)
