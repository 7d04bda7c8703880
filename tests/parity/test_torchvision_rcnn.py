"""A second witness: torchvision's Faster and Mask R-CNN, given the same random weights, computes our numbers.

Its rules differ in three points, which are changed in it and nowhere else: anchors are rounded to whole pixels there,
RoIAlign is not shifted by half a pixel, and it always takes two samples per cell and axis. Its background comes first.
"""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import poolers, roi_align

import fapn_zoo
from fapn_zoo.modules.layers.boxes import anchors

pytestmark = pytest.mark.parity
CLASSES = 7
SIZE = (192, 256)
# their names -> ours
NAMES = [
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral.\1.conv."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"neck.output.\1.conv."),
    (r"^rpn\.head\.conv\.0\.0\.", "head.rpn.conv."),
    (r"^rpn\.head\.cls_logits\.", "head.rpn.objectness."),
    (r"^rpn\.head\.bbox_pred\.", "head.rpn.deltas."),
    (r"^roi_heads\.box_head\.fc6\.", "head.box.fc1."),
    (r"^roi_heads\.box_head\.fc7\.", "head.box.fc2."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "head.box.scores."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "head.box.deltas."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.", r"head.mask.convs.\1."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "head.mask.deconv."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "head.mask.predictor."),
]
WITHOUT_BACKGROUND = {"head.box.deltas.": 4, "head.mask.predictor.": 1}  # rows of a class


def carried_over(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, value in theirs.items():
        for pattern, ours_name in NAMES:
            name = re.sub(pattern, ours_name, name)
        if name.startswith("head.box.scores."):
            value = torch.cat([value[1:], value[:1]])
        for start, rows in WITHOUT_BACKGROUND.items():
            value = value[rows:] if name.startswith(start) else value
        ours[name] = value
    return ours


@pytest.fixture(scope="module", params=["faster_rcnn", "mask_rcnn"])
def pair(request) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs with equal weights, whose answers are well apart."""
    torch.manual_seed(3)
    make = getattr(torchvision.models.detection, f"{request.param.replace('_', '')}_resnet50_fpn")
    theirs = make(weights=None, weights_backbone=None, num_classes=CLASSES + 1).eval()
    spread(theirs)
    for pool in (theirs.roi_heads.box_roi_pool, theirs.roi_heads.mask_roi_pool):
        if pool is not None:
            pool.sampling_ratio = 0
    ours = fapn_zoo.create_model(f"{request.param}_fpn", backbone="resnet50", num_classes=CLASSES).eval()
    ours.load_state_dict(carried_over(theirs.state_dict()))
    cells = [anchors((1, 1), 1, side, (0.5, 1.0, 2.0), torch.empty(0)) for side in (32, 64, 128, 256, 512)]
    rounded = theirs.rpn.anchor_generator.cell_anchors
    assert all(torch.equal(a.round(), b) for a, b in zip(cells, rounded, strict=True))
    theirs.rpn.anchor_generator.cell_anchors = cells
    return ours, theirs


@torch.no_grad()
def spread(model: nn.Module) -> None:
    """Scales the last layers so that their outputs have these deviations: neither all alike, nor saturated."""
    x = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    maps, heads = model.backbone(x), model.roi_heads
    for layer, wanted in ((model.rpn.head.cls_logits, 1.5), (model.rpn.head.bbox_pred, 0.3)):
        layer.weight *= wanted / torch.cat([layer(model.rpn.head.conv(m)).flatten() for m in maps.values()]).std()
    proposals, _ = model.rpn(ImageList(x, [SIZE]), maps)
    hidden = heads.box_head(heads.box_roi_pool(maps, proposals, [SIZE]))
    for layer, wanted in ((heads.box_predictor.cls_score, 1.5), (heads.box_predictor.bbox_pred, 1.5)):
        layer.weight *= wanted / layer(hidden).std()
    if heads.mask_roi_pool is not None:
        layer = heads.mask_predictor.mask_fcn_logits
        pooled = heads.mask_roi_pool(maps, [proposals[0][:20]], [SIZE])
        layer.weight *= 2 / heads.mask_predictor(heads.mask_head(pooled)).std()


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
