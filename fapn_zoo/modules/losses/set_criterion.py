"""The set loss of MaskFormer: classification of every query, focal and dice loss of the matched masks.

Formulas and weights: MaskFormer section 3.2 and FACTS section 2, "Training recipe".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import MaskFormerOutput, Targets
from fapn_zoo.modules.layers.random import seeds_or_new
from fapn_zoo.modules.losses.loss import FOCAL_ALPHA, FOCAL_GAMMA, Loss, Totals, counted, focal, refuse

Pairs = tuple[Tensor, Tensor]  # query and target indices
Segments = list[tuple[Tensor, Tensor]]  # per image: classes (M,) int64, masks (M, H, W) bool
WEIGHTS = {"class": 1.0, "mask": 20.0, "dice": 1.0}  # of the terms of the loss, and of the costs of matching

NONE: Pairs = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


class Place(NamedTuple):
    """Where the masks of an image lie: the seed (1,) of what is drawn for them, and (H, W) that they stretch over."""

    seed: Tensor
    covers: tuple[int, int]


@torch.no_grad()
def match(class_logits: Tensor, mask_logits: Tensor, classes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Assigns every true mask of one image to its own query at least cost (section 3.2).

    Args:
        class_logits: (Q, K + 1). mask_logits: (Q, h, w).
        classes: (M,) int64. masks: (M, H, W) bool; compared at (h, w) by nearest resizing.

    Returns:
        Query and target indices, int64, min(Q, M) each, by increasing query.

    Raises:
        ValueError: a cost that is not finite, naming its term (the usual sign of diverged training).
    """
    if len(classes) == 0:
        return NONE
    target = F.interpolate(masks[None].byte(), size=mask_logits.shape[-2:], mode="nearest")[0].flatten(1).float()
    logits = mask_logits.flatten(1).float()
    costs = {"mask": _focal_cost(logits, target), "dice": dice_cost(logits, target)}
    return cheapest(class_logits, classes, costs, WEIGHTS)


def cheapest(
    class_logits: Tensor, classes: Tensor, costs: dict[str, Tensor], weights: dict[str, float]
) -> tuple[Tensor, Tensor]:
    """The pairs of least cost: of the class probability, and of the masks (Q, M) by term; see `match`."""
    costs = {"class": -class_logits.float().softmax(-1)[:, classes]} | costs
    for term, cost in costs.items():
        if not torch.isfinite(cost).all():
            raise ValueError(f"the {term} cost of the matching is not finite")
    queries, targets = linear_sum_assignment(sum(weights[term] * cost for term, cost in costs.items()).cpu().numpy())
    return torch.from_numpy(queries), torch.from_numpy(targets)


def _focal_cost(logits: Tensor, target: Tensor) -> Tensor:
    """(Q, P) logits, (M, P) masks -> (Q, M): the focal loss of each pair, averaged over the P pixels."""
    p = logits.sigmoid()
    inside = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * F.softplus(-logits)
    outside = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * F.softplus(logits)
    return (inside @ target.t() + outside @ (1 - target).t()) / logits.shape[1]


def dice_cost(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    return 1 - (2 * p @ target.t() + 1) / (p.sum(1)[:, None] + target.sum(1)[None] + 1)


class SetCriterion(Loss):
    """Set loss over the last decoder layer and all earlier ones (deep supervision), each matched anew.

    Args:
        num_classes: K.
        num_queries: Q; an image may have more objects.
        no_object_weight: weight of "no object" in the class-weighted mean of the cross-entropy.
    """

    weights = WEIGHTS

    def __init__(self, num_classes: int, num_queries: int, *, no_object_weight: float = 0.1) -> None:
        super().__init__()
        self.num_classes, self.num_queries, self.no_object_weight = num_classes, num_queries, no_object_weight

    @classmethod
    def of(cls, model: nn.Module, **options: Any) -> Self:
        """Raises ValueError for options: this loss balances masks, not pixels."""
        refuse(options, "masks")
        return cls(model.num_classes, model.head.num_queries)

    def count(self, targets: Targets) -> Totals:
        """`images`; `masks`, how many true ones they have; `matched`, how many of these get a query.

        An image matches no more masks than it has queries, so `matched` is a sum over images. Focal and dice loss are
        divided by all true masks, as in the official code, also by those for which no query is left.
        """
        masks = [len(classes) for classes in targets.object_classes()]
        matched = sum(min(count, self.num_queries) for count in masks)
        return counted(images=len(targets), masks=sum(masks), matched=matched)

    def forward(self, output: MaskFormerOutput, targets: Targets, totals: Totals | None = None) -> Totals:
        """`loss` and its unweighted terms `class`, `mask`, `dice` (last layer), `class_0` ... (aux).

        Raises ValueError where the output has another number of queries.
        """
        queries, segments = output.class_logits.shape[1], targets.segments()
        if queries != self.num_queries:
            raise ValueError(f"the output has {queries} queries, the loss was made for {self.num_queries}")
        counts = {name: count.item() for name, count in (totals or self.count(targets)).items()}
        layers = [("", (output.class_logits, output.mask_logits))]
        layers += [(f"_{i}", pair) for i, pair in enumerate(output.aux)]
        losses, total = {}, 0
        seeds = seeds_or_new(targets.seeds, len(segments), output.mask_logits.device)
        for layer, (suffix, (class_logits, mask_logits)) in enumerate(layers):
            places = [Place(seed, output.covers) for seed in (seeds + layer).split(1)]
            terms = self._layer(class_logits, mask_logits, segments, counts, places)
            total = total + sum(self.weights[name] * value for name, value in terms.items())
            losses |= {name + suffix: value for name, value in terms.items()}
        return {"loss": total} | losses

    def _match(self, class_logits: Tensor, mask_logits: Tensor, classes: Tensor, masks: Tensor, place: Place) -> Pairs:
        """See `match`; `place` is for those who compare at points."""
        return match(class_logits, mask_logits, classes, masks)

    def _mask_losses(self, logits: Tensor, target: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """(M, h, w) logits, upsampled to (M, H, W) masks -> focal (mean over pixels) and dice, summed over masks."""
        logits = F.interpolate(logits[None].float(), size=target.shape[-2:], mode="bilinear", align_corners=False)[0]
        logits, target = logits.flatten(1), target.flatten(1).float()
        return focal(logits, target).mean(1).sum(), dice_loss(logits, target)

    def _layer(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        segments: Segments,
        counts: dict[str, float],
        places: Sequence[Place],
    ) -> dict[str, Tensor]:
        each = zip(class_logits, mask_logits, segments, places, strict=True)
        matches = [self._match(classes, masks, *segment, place) for classes, masks, segment, place in each]
        mask_loss = dice_loss = mask_logits.sum() * 0  # keeps the graph where no image has a mask
        for i, (queries, chosen) in enumerate(matches):
            if len(queries):
                target = segments[i][1][chosen.to(mask_logits.device)]
                focal, dice = self._mask_losses(mask_logits[i][queries.to(mask_logits.device)], target, places[i])
                mask_loss, dice_loss = mask_loss + focal, dice_loss + dice
        return {
            "class": self._class_loss(class_logits, segments, matches, counts),
            "mask": mask_loss / max(counts["masks"], 1),
            "dice": dice_loss / max(counts["masks"], 1),
        }

    def _class_loss(
        self, class_logits: Tensor, segments: Segments, matches: list[tuple[Tensor, Tensor]], counts: dict[str, float]
    ) -> Tensor:
        """Class-weighted mean. The sum of weights follows from the counts, so it is known for the whole batch."""
        target = torch.full(class_logits.shape[:2], self.num_classes, device=class_logits.device)
        for i, (queries, chosen) in enumerate(matches):
            target[i, queries.to(target.device)] = segments[i][0][chosen.to(target.device)]
        weight = torch.ones(self.num_classes + 1, device=class_logits.device)
        weight[-1] = self.no_object_weight
        loss = F.cross_entropy(class_logits.float().flatten(0, 1), target.flatten(), weight, reduction="sum")
        unmatched = counts["images"] * class_logits.shape[1] - counts["matched"]
        return loss / max(counts["matched"] + self.no_object_weight * unmatched, 1e-6)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """(M, P) logits and truth 0..1 of P pixels or points of M masks -> the dice losses, summed over masks."""
    p = logits.sigmoid()
    return (1 - (2 * (p * target).sum(1) + 1) / (p.sum(1) + target.sum(1) + 1)).sum()
