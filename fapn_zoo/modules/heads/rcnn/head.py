"""Faster R-CNN and Mask R-CNN: heads that end with detections (Ren et al. 2015; He et al. 2017; FACTS section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import DetectionOutput, InstanceOutput, Targets
from fapn_zoo.modules.heads.rcnn.branches import BoxBranch, MaskBranch
from fapn_zoo.modules.heads.rcnn.rpn import RegionProposals
from fapn_zoo.modules.layers.boxes import pool_boxes

STRIDE = 4  # of the finest map
FIXED = ((0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.5, 0.9), (0.6, 0.1, 0.7, 0.3))  # boxes, as shares of an image's sides


class FasterRCNNHead(nn.Module):
    """Proposals on all levels, boxes pooled from all but the coarsest. What is chosen is part of the network.

    Args:
        in_channels: channels of the pyramid.
        feature_channels: channels of the coarsest backbone map; not used, every head takes it.
        num_classes: K, without background.
        anchor_sides, anchor_ratios, pre_nms, proposals, proposal_nms: `sides`, `ratios`, `before`, `after` and `nms`
            of `RegionProposals`.
        hidden, score_threshold, nms, max_detections: `hidden`, `score`, `nms` and `most` of `BoxBranch`.
    """

    classifier: tuple[str, ...] = ("box.scores", "box.deltas")

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        num_classes: int,
        *,
        anchor_sides: Sequence[float] = (32, 64, 128, 256, 512),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        pre_nms: int = 1000,
        proposals: int = 1000,
        proposal_nms: float = 0.7,
        hidden: int = 1024,
        score_threshold: float = 0.05,
        nms: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        looked_at = {"before": pre_nms, "after": proposals, "nms": proposal_nms}
        kept = {"score": score_threshold, "nms": nms, "most": max_detections}
        self.rpn = RegionProposals(in_channels, anchor_sides, anchor_ratios, **looked_at)
        self.box = BoxBranch(in_channels, num_classes, hidden=hidden, **kept)

    def forward(
        self,
        pyramid: Sequence[Tensor],
        features: Sequence[Tensor],
        sizes: Tensor | None = None,
        targets: Targets | None = None,
    ) -> DetectionOutput:
        """The detections of every image, the best first, inside `sizes`; without them inside the padded input."""
        return DetectionOutput(*self.detect(pyramid, sizes))

    def before_choice(self, pyramid: Sequence[Tensor]) -> dict[str, Tensor]:
        """Logits and deltas of all anchors, and of `FIXED` boxes in every image."""
        logits, shifts = self.rpn(pyramid)
        found = {f"logits{i}": x for i, x in enumerate(logits)} | {f"shifts{i}": x for i, x in enumerate(shifts)}
        scores, deltas = self.box(pool_boxes(pyramid[:-1], self.fixed_boxes(pyramid), self.box.side))
        return found | {"scores": scores, "deltas": deltas}

    @staticmethod
    def fixed_boxes(pyramid: Sequence[Tensor]) -> list[Tensor]:
        """`FIXED` in pixels of the padded input, for every image."""
        finest = pyramid[0]
        height, width = (STRIDE * side for side in finest.shape[-2:])
        boxes = torch.tensor([(x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in FIXED])
        return [boxes.to(finest.device)] * len(finest)

    def detect(
        self, pyramid: Sequence[Tensor], sizes: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Boxes, scores and classes of every image; see `DetectionOutput`."""
        count = len(pyramid[0])
        padded = [STRIDE * side for side in pyramid[0].shape[-2:]]
        inside = [padded] * count if sizes is None else sizes.tolist()
        proposals = [boxes for boxes, _ in self.rpn.choose(*self.rpn(pyramid), inside)]
        usable = [boxes.nan_to_num() for boxes in proposals]  # what is NaN stays so below, but is not pooled
        logits, deltas = self.box(pool_boxes(pyramid[:-1], usable, self.box.side))
        parts = [len(boxes) for boxes in proposals]
        rows = zip(logits.split(parts), deltas.split(parts), proposals, inside, strict=True)
        boxes, scores, classes = zip(*(self.box.choose(*row) for row in rows), strict=True)
        return boxes, scores, classes


class MaskRCNNHead(FasterRCNNHead):
    """Faster R-CNN whose detections have masks, pooled inside their boxes.

    Args: as `FasterRCNNHead`; `mask_hidden` is the width of the mask layers, `mask_convs` how many there are.
    """

    classifier = ("box.scores", "box.deltas", "mask.predictor")

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        num_classes: int,
        *,
        mask_hidden: int = 256,
        mask_convs: int = 4,
        **detection: Any,
    ) -> None:
        super().__init__(in_channels, feature_channels, num_classes, **detection)
        self.mask = MaskBranch(in_channels, num_classes, hidden=mask_hidden, convs=mask_convs)

    def forward(
        self,
        pyramid: Sequence[Tensor],
        features: Sequence[Tensor],
        sizes: Tensor | None = None,
        targets: Targets | None = None,
    ) -> InstanceOutput:
        """The detections of every image with the logits of their masks; see `FasterRCNNHead`."""
        boxes, scores, classes = self.detect(pyramid, sizes)
        usable = [each.nan_to_num() for each in boxes]
        logits = self.mask(pool_boxes(pyramid[:-1], usable, self.mask.side), torch.cat(classes))
        return InstanceOutput(boxes, scores, classes, logits.split([len(each) for each in boxes]))

    def before_choice(self, pyramid: Sequence[Tensor]) -> dict[str, Tensor]:
        """Also the masks of these boxes, for every class."""
        pooled = pool_boxes(pyramid[:-1], self.fixed_boxes(pyramid), self.mask.side)
        return super().before_choice(pyramid) | {"masks": self.mask.predictor(self.mask.features(pooled))}
