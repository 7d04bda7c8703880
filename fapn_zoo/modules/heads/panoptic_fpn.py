"""Panoptic FPN: Mask R-CNN and a semantic branch on one pyramid (Kirillov et al., CVPR 2019; FACTS section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fapn_zoo.modules.heads.outputs import (
    ClassRows,
    MergeRule,
    PanopticFPNOutput,
    PanopticFPNParts,
    Targets,
    count_things,
)
from fapn_zoo.modules.heads.per_pixel import SemanticFPNHead
from fapn_zoo.modules.heads.rcnn.head import MaskRCNNHead
from fapn_zoo.modules.layers.conv import Maps


class PanopticFPNHead(MaskRCNNHead):
    """Boxes and masks of things, and a map of stuff in which all things are one class.

    Args: as `MaskRCNNHead`, and
        things: ids of the countable ones of the K classes; empty: all are.
        semantic_channels, semantic_norm: `channels` and `norm` of `SemanticFPNHead`.
        merge_score, merge_overlap, stuff_area: how an answer is made of both parts, see `MergeRule`; the score is that
            from which on a detection gets a segment, the area in pixels of the original image.

    Raises ValueError for things that are none of the classes, a score or overlap outside 0..1, or an area below 0.
    """

    classifier = {
        **{name: rows._replace(of="things") for name, rows in MaskRCNNHead.classifier.items()},
        "semantic.predictor": ClassRows("stuff", first=1),
    }

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        num_classes: int,
        *,
        things: Sequence[int] = (),
        semantic_channels: int = 128,
        semantic_norm: str = "gn",
        merge_score: float = 0.5,
        merge_overlap: float = 0.5,
        stuff_area: int = 4096,
        **detection: Any,
    ) -> None:
        self.things = tuple(sorted(things)) or tuple(range(num_classes))
        count = count_things(things, num_classes)
        super().__init__(in_channels, feature_channels, count, **detection)
        look = {"channels": semantic_channels, "norm": semantic_norm}
        self.semantic = SemanticFPNHead(in_channels, feature_channels, num_classes - count + 1, **look)
        self.rule = MergeRule.checked(merge_score, merge_overlap, stuff_area)

    def forward(
        self, pyramid: Maps, features: Maps, sizes: Tensor | None = None, targets: Targets | None = None
    ) -> PanopticFPNOutput | PanopticFPNParts:
        """The detections of Mask R-CNN, and semantic logits (N, C, h, w) at stride 4.

        With targets, what the loss reads instead. Of their objects only things are used.
        """
        semantic = self.semantic(pyramid, features)
        things = None if targets is None else targets.of_classes(self.things)
        found = super().forward(pyramid, features, sizes, things)
        if targets is not None:
            return PanopticFPNParts(found, semantic)
        return PanopticFPNOutput(*found[:4], semantic.logits, rule=self.rule)

    def before_choice(self, pyramid: Maps) -> dict[str, Tensor]:
        """Also the semantic logits."""
        return super().before_choice(pyramid) | {"semantic": self.semantic(pyramid, ()).logits}
