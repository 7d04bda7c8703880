"""A second witness: torchvision's Faster and Mask R-CNN, given the same random weights, computes our numbers.

Its rules differ in three points, which are changed in it and nowhere else: anchors are rounded to whole pixels there,
RoIAlign is not shifted by half a pixel, and it always takes two samples per cell and axis. Its background comes first.
While training it also rounds off the absolute errors near zero, and compares masks with the covered share of a cell.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torchvision.models.detection import roi_heads
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import masks_to_boxes, poolers, roi_align
from toys.torchvision_rcnn import twins

from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.modules.heads.rcnn.sampling import draw_regions, kinds_of_anchors
from fapn_zoo.modules.layers.boxes import anchors
from fapn_zoo.modules.losses import RCNNLoss

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


@pytest.mark.parametrize("n", [0, 1])
def test_losses(pair, n, monkeypatch, record_property):
    """Of the anchors and regions that ours draws in an image."""
    ours, theirs = pair
    for module in (poolers, roi_heads):
        monkeypatch.setattr(module, "roi_align", partial(roi_align, aligned=True))
    sharp = lambda a, b, beta, reduction: l1_loss(a, b, reduction=reduction)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "smooth_l1_loss", sharp)
    x = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(n))
    truth, seed = some_objects(6 + 5 * n, n), torch.tensor([n + 11])
    targets = Targets(classes=(truth["labels"] - 1,), boxes=(truth["boxes"],), masks=(truth["masks"],), seeds=seed)
    losses = RCNNLoss.of(ours)(ours(x, None, targets), targets)

    maps = theirs.backbone(x)
    logits, deltas = theirs.rpn.head(list(maps.values()))
    anchors = theirs.rpn.anchor_generator(ImageList(x, [SIZE]), list(maps.values()))
    kinds, nearest = theirs.rpn.assign_targets_to_anchors(anchors, [truth])
    positive, negative, objects = kinds_of_anchors(anchors[0], truth["boxes"])
    assert torch.equal(kinds[0] == 1, positive) and torch.equal(kinds[0] == 0, negative)
    *drawn, _ = ours.head.rpn._drawn(anchors[0], truth["boxes"], seed[0])
    assert 0 < len(drawn[0]) <= 128 and len(drawn[0]) + len(drawn[1]) == 256
    masks = [torch.zeros(len(positive)).index_fill(0, rows, 1) for rows in drawn]
    monkeypatch.setattr(theirs.rpn, "fg_bg_sampler", lambda labels: [[mask] for mask in masks])
    wanted = theirs.rpn.box_coder.encode(nearest, anchors)
    flat = concat_box_prediction_layers(logits, deltas)
    expected = dict(zip(("rpn_class", "rpn_box"), theirs.rpn.compute_loss(*flat, kinds, wanted), strict=True))

    proposals, *_ = ours.head.rpn.learn(*ours.head.rpn(list(maps.values())), [SIZE], targets.boxes, seed)
    regions = draw_regions(*proposals[0], len(positive), truth["boxes"], seed[0], 512)
    assert not regions.boxes.requires_grad and 0 < len(regions.objects) <= 128
    heads, given = theirs.roi_heads, [regions.boxes]
    ids, labels = heads.assign_targets_to_proposals(given, [truth["boxes"]], [truth["labels"]])
    count = len(regions.objects)
    assert torch.equal(ids[0][:count], regions.objects)
    assert labels[0][:count].tolist() == truth["labels"][regions.objects].tolist() and labels[0][count:].sum() == 0
    found = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, given, [SIZE])))
    wanted = heads.box_coder.encode([truth["boxes"][ids[0]]], given)
    expected |= dict(zip(("class", "box"), roi_heads.fastrcnn_loss(*found, labels, wanted), strict=True))
    if heads.mask_roi_pool is not None:
        half = lambda *args: roi_align(*args, aligned=True).ge(0.5).float()  # noqa: E731
        given = [regions.boxes[:count]]
        pooled = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, given, [SIZE])))
        monkeypatch.setattr(roi_heads, "roi_align", half)
        shown = [truth["masks"].byte()], [truth["labels"]], [regions.objects]
        expected["mask"] = roi_heads.maskrcnn_loss(pooled, given, *shown)
    assert losses.keys() - {"loss"} == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=2e-5), name
    row = {"model": ours.spec.name, "image": n} | {name: f"{value.item():.4f}" for name, value in expected.items()}
    record_property("row of losses, ours and torchvision's", row)


def some_objects(count: int, seed: int) -> dict[str, Tensor]:
    """Ellipses of all sizes, some across the edge, one of one pixel."""
    g = torch.Generator().manual_seed(seed)
    height, width = SIZE
    centre = torch.rand(count, 2, generator=g) * torch.tensor([width, height])
    half = torch.rand(count, 2, generator=g) ** 2 * 60 + 2
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    masks = ((x - centre[:, :1, None]) / half[:, :1, None]) ** 2 + ((y - centre[:, 1:, None]) / half[:, 1:, None]) ** 2
    masks = masks < 1
    masks[0] = False
    masks[0, 50, 70] = True
    return {
        "boxes": masks_to_boxes(masks) + torch.tensor([0.0, 0, 1, 1]),
        "labels": torch.randint(CLASSES, (count,), generator=g) + 1,
        "masks": masks,
    }


def matched(boxes: Tensor, others: Tensor, within: float = 0.05) -> float:
    """Which share of the boxes has one of the others in its place."""
    return ((boxes[:, None] - others[None]).abs().amax(2).min(1)[0] < within).float().mean().item()
