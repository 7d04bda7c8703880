"""A second witness: torchvision's Faster and Mask R-CNN, given the same random weights, computes our numbers.

Its rules differ in three points, which are changed in it and nowhere else: anchors are rounded to whole pixels there,
RoIAlign is not shifted by half a pixel, and it always takes two samples per cell and axis. Its background comes first.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import poolers, roi_align
from toys.torchvision_rcnn import twins

from fapn_zoo.modules.layers.boxes import anchors

pytestmark = pytest.mark.parity
CLASSES = 7
SIZE = (192, 256)


@pytest.fixture(scope="module", params=["faster_rcnn", "mask_rcnn"])
def pair(request) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs with equal weights, whose answers are well apart."""
    ours, theirs = twins(request.param, CLASSES, SIZE)
    for pool in (theirs.roi_heads.box_roi_pool, theirs.roi_heads.mask_roi_pool):
        if pool is not None:
            pool.sampling_ratio = 0
    cells = [anchors((1, 1), 1, side, (0.5, 1.0, 2.0), torch.empty(0)) for side in (32, 64, 128, 256, 512)]
    rounded = theirs.rpn.anchor_generator.cell_anchors
    assert all(torch.equal(a.round(), b) for a, b in zip(cells, rounded, strict=True))
    theirs.rpn.anchor_generator.cell_anchors = cells
    return ours, theirs


@torch.no_grad()
def test_features_boxes_and_masks(pair, monkeypatch, record_property):
    monkeypatch.setattr(poolers, "roi_align", partial(roi_align, aligned=True))
    ours, theirs = pair
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    sizes = [(192, 256), (180, 201)]
    maps = theirs.backbone(x)
    features = dict(zip(maps, ours.neck(ours.backbone(x)), strict=True))
    apart = max((features[name] - value).abs().max().item() / value.abs().max().item() for name, value in maps.items())
    assert apart < 1e-5

    images = ImageList(x, sizes)
    proposals, _ = theirs.rpn(images, maps)
    logits, deltas = ours.head.rpn(list(features.values()))
    boxes = [found for found, _ in ours.head.rpn.choose(logits, deltas, sizes)]
    for found, other in zip(boxes, proposals, strict=True):
        assert matched(found, other) > 0.995 and matched(other, found) > 0.995  # near-ties of 1000

    detections, _ = theirs.roi_heads(maps, proposals, sizes)
    out = ours(x, torch.tensor(sizes))
    for n, other in enumerate(detections):
        assert len(out.boxes[n]) == len(other["boxes"]) > 50
        # a class's boxes lie far from those of the others, and so can be compared together
        found = torch.cat([out.boxes[n], 1e4 * (out.classes[n][:, None] + 1), 1e3 * out.scores[n][:, None]], dim=1)
        same = torch.cat([other["boxes"], 1e4 * other["labels"][:, None], 1e3 * other["scores"][:, None]], dim=1)
        assert matched(found, same) >= 0.97 and matched(same, found) >= 0.97
        if hasattr(out, "mask_logits"):
            distance, twin = (found[:, None] - same[None]).abs().amax(2).min(1)
            known = distance < 0.05
            masks = out.mask_logits[n].sigmoid()[known]
            worst = (masks - other["masks"][twin[known], 0]).abs().amax((1, 2))
            assert worst.median() < 1e-4 and worst.max() < 2e-2
    row = {"model": ours.spec.name, "features, relative": f"{apart:.1e}"}
    row |= {"proposals": f"{matched(boxes[0], proposals[0]):.1%}", "detections": f"{matched(found, same):.1%}"}
    record_property("row of parity with torchvision", row)


def matched(boxes: Tensor, others: Tensor, within: float = 0.05) -> float:
    """Which share of the boxes has one of the others in its place."""
    return ((boxes[:, None] - others[None]).abs().amax(2).min(1)[0] < within).float().mean().item()
