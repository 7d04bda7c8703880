"""The loss of Panoptic FPN: that of Mask R-CNN on things, and cross-entropy of the map of stuff (FACTS section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import PanopticFPNParts, Targets
from fapn_zoo.modules.losses.loss import Loss
from fapn_zoo.modules.losses.per_pixel import PerPixelLoss
from fapn_zoo.modules.losses.rcnn import RCNNLoss

SEMANTIC_WEIGHT = 0.5


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
    def of(cls, model: nn.Module, class_weights: Sequence[float] = ()) -> Self:
        """Raises ValueError for class weights, and for classes none of which is countable."""
        if not model.data.things:
            raise ValueError(
                "no class of the data is a thing, whose objects Panoptic FPN is trained on; for stuff alone take a "
                "semantic head, for other data name its things, in classes.json or COCO's isthing"
            )
        return cls(model.num_classes, model.data.things, model.data.ignore_index, RCNNLoss.of(model, class_weights))

    def count(self, targets: Targets) -> dict[str, Tensor]:
        """The counts of `RCNNLoss`, of things, and `pixels`."""
        return self.objects.count(targets.of_classes(self.things)) | self.semantic.count(targets)

    def forward(
        self, output: PanopticFPNParts, targets: Targets, totals: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
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
