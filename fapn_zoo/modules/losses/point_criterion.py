"""The set loss of Mask2Former and EoMT: masks are compared at points, most of them where they are uncertain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fapn_zoo.modules.layers.points import even_points, masks_at, sample_points, training_points
from fapn_zoo.modules.layers.random import drawn_bits
from fapn_zoo.modules.losses.set_criterion import NONE, Pairs, Place, SetCriterion, cheapest, dice_cost, dice_loss

POINTS = 12544  # of every mask


class PointCriterion(SetCriterion):
    """`SetCriterion` with binary cross-entropy and dice loss of `POINTS` points in place of losses of all pixels.

    Matching draws points evenly, the same for all masks of an image, the loss draws them for each mask anew: of three
    times as many those that are least certain, three quarters of all, and the rest evenly (Mask2Former, arXiv
    2112.01527, section 3.3). Weights of the terms are EoMT's. What is drawn follows from the image's seed, the layer
    and the place of the mask among the image's pairs.
    """

    weights = {"class": 2.0, "mask": 5.0, "dice": 5.0}

    @torch.no_grad()
    def _match(self, class_logits: Tensor, mask_logits: Tensor, classes: Tensor, masks: Tensor, place: Place) -> Pairs:
        if len(classes) == 0:
            return NONE
        points = even_points(drawn_bits(place.seed, 1)[0], POINTS)
        logits = sample_points(mask_logits[None].float(), points)[0]
        target = _truth(masks, points.expand(len(masks), -1, -1), place)
        cross_entropy = F.softplus(-logits) @ target.t() + F.softplus(logits) @ (1 - target).t()
        costs = {"mask": cross_entropy / POINTS, "dice": dice_cost(logits, target)}
        return cheapest(class_logits, classes, costs, self.weights)

    def _mask_losses(self, logits: Tensor, target: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """(M, h, w) logits and (M, H, W) masks -> cross-entropy (mean over points) and dice, summed over masks."""
        logits = logits[:, None].float()
        points = training_points(logits, POINTS, drawn_bits(place.seed, len(logits) + 1)[0, 1:])
        found, truth = sample_points(logits, points)[:, 0], _truth(target, points, place)
        cross_entropy = F.binary_cross_entropy_with_logits(found, truth, reduction="none")
        return cross_entropy.mean(1).sum(), dice_loss(found, truth)


def _truth(masks: Tensor, points: Tensor, place: Place) -> Tensor:
    """How far masks (M, H, W) bool cover points (M, P, 2) of the extent of the predicted ones: (M, P)."""
    height, width = place.covers
    whole = points.new_tensor([[0, 0, width, height]]).expand(len(masks), -1)
    return masks_at(masks, torch.arange(len(masks), device=masks.device), whole, points)
