"""The loss of two-stage heads: both stages classify and move boxes, and some find masks (FACTS section 3).

That of Panoptic FPN adds cross-entropy of the map of stuff.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import Compared, PanopticFPNParts, RCNNOutput, Targets
from fapn_zoo.modules.losses.loss import Loss, Totals, counted, refuse
from fapn_zoo.modules.losses.per_pixel import PerPixelLoss

SEMANTIC_WEIGHT = 0.5  # in Panoptic FPN


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
    def of(cls, model: nn.Module, **options: Any) -> Self:
        """Raises ValueError for options: this loss balances regions, not pixels."""
        refuse(options, "regions")
        return cls(model.head.rpn.samples)

    def count(self, targets: Targets) -> Totals:
        """`images`; `with_objects`, how many of them have any."""
        return counted(images=len(targets), with_objects=sum(len(classes) > 0 for classes in targets.classes))

    def forward(self, output: RCNNOutput, targets: Targets, totals: Totals | None = None) -> Totals:
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


class PanopticFPNLoss(Loss):
    """`RCNNLoss` of things, plus half the mean cross-entropy of `PerPixelLoss`, for which all things are one class.

    Args:
        num_classes: K. things: ids of the countable ones.
        ignore_index: of pixels that the cross-entropy does not count.
        objects: the loss of things.
    """

    def __init__(self, num_classes: int, things: Sequence[int], ignore_index: int, objects: RCNNLoss) -> None:
        super().__init__()
        self.things, self.objects, self.semantic = tuple(sorted(things)), objects, PerPixelLoss(ignore_index)
        channel = torch.zeros(num_classes, dtype=torch.int64)
        stuff = [i for i in range(num_classes) if i not in things]
        channel[stuff] = torch.arange(1, len(stuff) + 1)
        self.register_buffer("channel", channel, persistent=False)

    @classmethod
    def of(cls, model: nn.Module, **options: Any) -> Self:
        """Raises ValueError for options, and for classes none of which is countable."""
        if not model.data.things:
            raise ValueError(
                "no class of the data is a thing, whose objects Panoptic FPN is trained on; for stuff alone take a "
                "semantic head, for other data name its things, in classes.json or COCO's isthing"
            )
        return cls(model.num_classes, model.data.things, model.data.ignore_index, RCNNLoss.of(model, **options))

    def count(self, targets: Targets) -> Totals:
        """The counts of `RCNNLoss`, of things, and `pixels`."""
        return self.objects.count(targets.of_classes(self.things)) | self.semantic.count(targets)

    def forward(self, output: PanopticFPNParts, targets: Targets, totals: Totals | None = None) -> Totals:
        """`loss`, the terms of `RCNNLoss`, and `semantic`, which weighs 0.5. Labels are (N, H, W)."""
        totals = totals or self.count(targets)
        terms = self.objects(output.objects, targets.of_classes(self.things), totals)
        semantic = self.semantic(output.semantic, self.in_channels(targets), totals)["loss"]
        return terms | {"loss": terms["loss"] + SEMANTIC_WEIGHT * semantic, "semantic": semantic}

    def in_channels(self, targets: Targets) -> Targets:
        """The targets with channels of the semantic map for labels."""
        labels, void = targets.labels, targets.labels == self.semantic.ignore_index
        channels = self.channel.to(labels.device)[labels.masked_fill(void, 0)]
        return dataclasses.replace(targets, labels=channels.masked_fill(void, self.semantic.ignore_index))
