"""Losses: (output, targets) -> a dict of scalars whose ``"loss"`` is the weighted total.

Targets of semantic training are ``{"labels": (N, H, W) int64}``. Every loss is a sum divided by a count; `count` says
what a batch adds to that count, so that a trainer can pass the total over micro-batches and processes as `normalizer`
and the gradient does not depend on how a batch is spread.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fapn_zoo.modules.losses.per_pixel import PerPixelLoss
from fapn_zoo.modules.losses.set_criterion import SetCriterion

__all__ = ["PerPixelLoss", "SetCriterion", "build_loss"]


def build_loss(model: nn.Module, class_weights: Sequence[float] = ()) -> nn.Module:
    """The loss that belongs to a model's head, for its number of classes and ignore index.

    Raises ValueError for class weights that are not one positive number per class, or with a MaskFormer head, whose
    loss balances masks instead of pixels.
    """
    from fapn_zoo.modules.heads import MaskFormerHead

    if class_weights and (len(class_weights) != model.num_classes or min(class_weights) <= 0):
        raise ValueError(
            f"class_weights has {len(class_weights)} values {tuple(class_weights)}; expected a positive "
            f"number for each of the {model.num_classes} classes"
        )
    if isinstance(model.head, MaskFormerHead):
        if class_weights:
            raise ValueError("class_weights is for per-pixel heads; MaskFormer's loss balances masks, not pixels")
        return SetCriterion(model.num_classes, ignore_index=model.data.ignore_index)
    return PerPixelLoss(ignore_index=model.data.ignore_index, class_weights=class_weights)
