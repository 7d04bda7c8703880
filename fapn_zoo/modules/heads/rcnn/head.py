"""Faster R-CNN and Mask R-CNN: heads that end with detections (Ren et al. 2015; He et al. 2017; FACTS section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import ClassRows, Compared, DetectionOutput, InstanceOutput, RCNNOutput, Targets
from fapn_zoo.modules.heads.rcnn.branches import BOX_WEIGHTS, BoxBranch, MaskBranch
from fapn_zoo.modules.heads.rcnn.rpn import RegionProposals
from fapn_zoo.modules.heads.rcnn.sampling import draw_regions
from fapn_zoo.modules.layers.boxes import encode, masks_in_boxes, not_empty, pool_boxes
from fapn_zoo.modules.layers.conv import Maps
from fapn_zoo.modules.layers.random import seeds_or_new

STRIDE = 4  # of the finest map
FIXED = ((0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.5, 0.9), (0.6, 0.1, 0.7, 0.3))  # boxes, as shares of an image's sides


class OnObjects(NamedTuple):
    """The regions of N images that lie on objects, P of each, while training; P may be 0."""

    boxes: tuple[Tensor, ...]  # (P, 4), without gradient
    deltas: tuple[Tensor, ...]  # (P, 4) of the true class, by `BOX_WEIGHTS`
    classes: tuple[Tensor, ...]  # (P,) int64
    objects: tuple[Tensor, ...]  # (P,) int64: which of the image's objects each lies on


class FasterRCNNHead(nn.Module):
    """Proposals on all levels, boxes pooled from all but the coarsest. What is chosen is part of the network.

    Args:
        in_channels: channels of the pyramid.
        feature_channels: channels of the coarsest backbone map; not used, every head takes it.
        num_classes: K, without background.
        anchor_sides, anchor_ratios, pre_nms, proposals, proposal_nms: `sides`, `ratios`, `before`, `after` and `nms`
            of `RegionProposals`; train_pre_nms, train_proposals, anchor_samples: its `train_before`, `train_after`
            and `samples`.
        region_samples: regions of an image that the second stage is trained on.
        hidden, score_threshold, nms, max_detections: `hidden`, `score`, `nms` and `most` of `BoxBranch`.
    """

    classifier: Mapping[str, ClassRows] = {"box.scores": ClassRows(last=1), "box.deltas": ClassRows()}

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
        train_pre_nms: int = 2000,
        train_proposals: int = 1000,
        anchor_samples: int = 256,
        region_samples: int = 512,
    ) -> None:
        super().__init__()
        looked_at = {"before": pre_nms, "after": proposals, "nms": proposal_nms}
        looked_at |= {"train_before": train_pre_nms, "train_after": train_proposals, "samples": anchor_samples}
        kept = {"score": score_threshold, "nms": nms, "most": max_detections}
        self.rpn = RegionProposals(in_channels, anchor_sides, anchor_ratios, **looked_at)
        self.box = BoxBranch(in_channels, num_classes, hidden=hidden, **kept)
        self.num_classes, self.region_samples = num_classes, region_samples

    def forward(
        self, pyramid: Maps, features: Maps, sizes: Tensor | None = None, targets: Targets | None = None
    ) -> DetectionOutput | InstanceOutput | RCNNOutput:
        """The detections of every image, the best first, inside `sizes`; without them inside the padded input.

        A head that finds masks gives their logits too. With targets, what the loss reads instead, in evaluation mode
        too.
        """
        if targets is not None:
            return self.learn(pyramid, sizes, targets)
        boxes, scores, classes = self.detect(pyramid, sizes)
        # a box that is NaN stays so, but nothing is read inside it
        masks = self.find_masks(pyramid, [each.nan_to_num() for each in boxes], classes)
        if masks is None:
            return DetectionOutput(boxes, scores, classes)
        return InstanceOutput(boxes, scores, classes, masks)

    def find_masks(
        self, pyramid: Maps, boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> tuple[Tensor, ...] | None:
        """Of every image the logits (D, S, S) of its boxes' masks, see `InstanceOutput`; here none."""

    def before_choice(self, pyramid: Maps) -> dict[str, Tensor]:
        """Logits and deltas of all anchors, and of `FIXED` boxes in every image."""
        logits, shifts = self.rpn(pyramid)
        found = {f"logits{i}": x for i, x in enumerate(logits)} | {f"shifts{i}": x for i, x in enumerate(shifts)}
        scores, deltas = self.box(pool_boxes(pyramid[:-1], self.fixed_boxes(pyramid), self.box.side))
        return found | {"scores": scores, "deltas": deltas}

    @staticmethod
    def fixed_boxes(pyramid: Maps) -> list[Tensor]:
        """`FIXED` in pixels of the padded input, for every image."""
        finest = pyramid[0]
        height, width = (STRIDE * side for side in finest.shape[-2:])
        boxes = torch.tensor([(x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in FIXED])
        return [boxes.to(finest.device)] * len(finest)

    def learn(self, pyramid: Maps, sizes: Tensor | None, targets: Targets) -> RCNNOutput:
        """What both stages find for anchors and regions that the seeds of the targets draw, beside the truth.

        Raises ValueError where the targets have no boxes or one without an area, or the maps are not finite.
        """
        truth, seeds = targets.boxes, seeds_or_new(targets.seeds, len(pyramid[0]), pyramid[0].device)
        if len(truth) != len(pyramid[0]):
            raise ValueError(f"targets have boxes of {len(truth)} images, the batch has {len(pyramid[0])}")
        for n, boxes in enumerate(truth):
            if not bool((not_empty(boxes) & boxes.isfinite().all(1)).all()):
                raise ValueError(f"image {n} of the batch has a true box without an area, or that is not finite")
        logits, shifts = self.rpn(pyramid)
        proposals, *first_stage = self.rpn.learn(logits, shifts, self._inside(pyramid, sizes), truth, seeds)
        anchors = sum(x[0].numel() for x in logits)
        rows = zip(proposals, truth, seeds, strict=True)
        regions = [draw_regions(*found, anchors, true, seed, self.region_samples) for found, true, seed in rows]
        scores, deltas = self.box(pool_boxes(pyramid[:-1], [region.boxes for region in regions], self.box.side))
        parts = [len(region.boxes) for region in regions]
        kinds, box, on_objects = Compared((), ()), Compared((), ()), []
        every = zip(regions, scores.split(parts), deltas.split(parts), targets.classes, truth, strict=True)
        for (boxes, objects), score, delta, classes, true in every:
            wanted, count = classes[objects], len(objects)
            background = wanted.new_full((len(boxes) - count,), self.num_classes)
            delta = delta.view(len(boxes), self.num_classes, 4)[torch.arange(count, device=wanted.device), wanted]
            kinds = kinds.and_of(score, torch.cat([wanted, background]))
            box = box.and_of(delta, encode(true[objects], boxes[:count], BOX_WEIGHTS))
            on_objects.append((boxes[:count], delta, wanted, objects))
        masks = self.learn_masks(pyramid, OnObjects(*zip(*on_objects, strict=True)), targets)
        return RCNNOutput(*first_stage, kinds, box, masks)

    def learn_masks(self, pyramid: Maps, found: OnObjects, targets: Targets) -> dict[str, Compared]:
        """What the masks are trained by: a `Compared` by the name of each term of the loss; here none.

        Every parameter takes part, also where no region lies on an object.
        """
        return {}

    @staticmethod
    def _inside(pyramid: Maps, sizes: Tensor | None) -> list[list[int]]:
        """Height and width of every image without its padding."""
        padded = [STRIDE * side for side in pyramid[0].shape[-2:]]
        return [padded] * len(pyramid[0]) if sizes is None else sizes.tolist()

    def detect(
        self, pyramid: Maps, sizes: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Boxes, scores and classes of every image; see `DetectionOutput`."""
        inside = self._inside(pyramid, sizes)
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

    classifier = {**FasterRCNNHead.classifier, "mask.predictor": ClassRows()}

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

    def find_masks(self, pyramid: Maps, boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of every image the logits (D, 28, 28) of its boxes' own classes."""
        logits = self.mask(pool_boxes(pyramid[:-1], boxes, self.mask.side), torch.cat(list(classes)))
        return logits.split([len(each) for each in boxes])

    def learn_masks(self, pyramid: Maps, found: OnObjects, targets: Targets) -> dict[str, Compared]:
        """`mask`: the logits of regions' own classes beside the true masks in them.

        Raises ValueError where the targets have no masks.
        """
        check_masks(targets)
        logits = self.mask(pool_boxes(pyramid[:-1], found.boxes, self.mask.side), torch.cat(found.classes))
        rows = zip(targets.masks, found.boxes, found.objects, strict=True)
        true = tuple(masks_in_boxes(*row, side=2 * self.mask.side) for row in rows)
        return {"mask": Compared(logits.split([len(boxes) for boxes in found.boxes]), true)}

    def before_choice(self, pyramid: Maps) -> dict[str, Tensor]:
        """Also the masks of these boxes, for every class."""
        pooled = pool_boxes(pyramid[:-1], self.fixed_boxes(pyramid), self.mask.side)
        return super().before_choice(pyramid) | {"masks": self.mask.predictor(self.mask.features(pooled))}


def check_masks(targets: Targets) -> None:
    """Raises ValueError where targets have no masks."""
    if len(targets.masks) != len(targets.boxes):
        raise ValueError("targets have boxes but no masks, which this head is trained by")
