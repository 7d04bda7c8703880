"""The loss of two-stage heads: both stages classify and move boxes, and some find masks (FACTS section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import Compared, RCNNOutput, Targets
from fapn_zoo.modules.losses.loss import Loss


class RCNNLoss(Loss):
    """The sum of `rpn_class`, `rpn_box`, `class`, `box` and of one term for each entry of the output's masks.

    The first stage's sums are divided by `anchor_samples` per image, drawn or not, as in the official code. The others
    are means over images: of an image the mean cross-entropy of its regions, the absolute errors of their deltas over
    the count of all regions, and, over images with objects, the mean binary cross-entropy of the cells of its masks.
    How many regions are drawn, and how many of them lie on objects, is known too late to divide by it. Where it is the
    same in every image these are the official means; of regions it is nearly always.

    Args:
        anchor_samples: as in the model's `RegionProposals`.
    """

    def __init__(self, anchor_samples: int = 256) -> None:
        super().__init__()
        self.anchor_samples = anchor_samples

    @classmethod
    def of(cls, model: nn.Module, class_weights: Sequence[float] = ()) -> Self:
        """Raises ValueError for class weights: this loss balances regions, not pixels."""
        if class_weights:
            raise ValueError("class_weights is for per-pixel heads; the loss of R-CNN balances regions, not pixels")
        return cls(model.head.rpn.samples)

    def count(self, targets: Targets) -> dict[str, Tensor]:
        """`images`; `with_objects`, how many of them have any."""
        counts = {"images": len(targets), "with_objects": sum(len(classes) > 0 for classes in targets.classes)}
        return {name: torch.tensor(float(count), dtype=torch.float64) for name, count in counts.items()}

    def forward(
        self, output: RCNNOutput, targets: Targets, totals: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`loss` and its terms, which have equal weights."""
        counts = {name: max(count.item(), 1) for name, count in (totals or self.count(targets)).items()}
        images, anchors = counts["images"], counts["images"] * self.anchor_samples
        regions = [len(true) for true in output.classes.true]
        cross, binary = F.cross_entropy, F.binary_cross_entropy_with_logits
        terms = {
            "rpn_class": sum(_sums(output.rpn_class, binary)) / anchors,
            "rpn_box": sum(_sums(output.rpn_box, F.l1_loss)) / anchors,
            "class": _mean(_sums(output.classes, cross), regions) / images,
            "box": _mean(_sums(output.box, F.l1_loss), regions) / images,
        }
        for name, masks in output.masks.items():
            terms[name] = _mean(_sums(masks, binary), [true.numel() for true in masks.true]) / counts["with_objects"]
        return {"loss": sum(terms.values())} | terms


def _sums(compared: Compared, loss: nn.Module) -> list[Tensor]:
    """Of every image the sum of a loss, 0 with a gradient where nothing was compared."""
    pairs = zip(compared.found, compared.true, strict=True)
    return [loss(found.float(), true.to(found.device), reduction="sum") for found, true in pairs]


def _mean(sums: list[Tensor], counts: list[int]) -> Tensor:
    """The sum of every image's mean."""
    return sum(total / max(count, 1) for total, count in zip(sums, counts, strict=True))
