"""The loss of Panoptic FCN: its targets, its terms by hand, and how it is spread over batches."""

from __future__ import annotations

import pytest
import torch

import fapn_zoo
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.modules.losses.panoptic_fcn import PanopticFCNLoss, centre_map, coarse_masks, dice

pytestmark = pytest.mark.unit
SMALL = {"backbone": "test_efficientnet", "neck_out_channels": 16, "head_channels": 16, "head_embed": 8}


def model(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    options = SMALL | {"num_classes": 4, "things": (0, 2), "backbone_norm": "frozen_bn"} | options
    return fapn_zoo.create_model("panoptic_fcn_fpn", **options)


def truth(count: int = 2, size: tuple[int, int] = (64, 96)) -> Targets:
    """Of every image a thing, a thing of one pixel and two classes of stuff."""
    masks = torch.zeros(4, *size, dtype=torch.bool)
    masks[0, 8:40, 10:50] = True
    masks[1, 60, 60] = True
    masks[2, 40:60] = True
    masks[3, :8] = True
    boxes = torch.tensor([[10.0, 8, 50, 40], [60, 60, 61, 61], [0, 40, 96, 60], [0, 0, 96, 8]])
    return Targets(classes=(torch.tensor([2, 0, 1, 3]),) * count, masks=(masks,) * count, boxes=(boxes,) * count)


def test_terms_and_counts():
    net = model()
    loss = PanopticFCNLoss.of(net)
    targets = truth()
    # sides 35.8 and 1 are in two and one of the ranges
    assert {k: v.item() for k, v in loss.count(targets).items()} == {"images": 2, "seen": 2, "objects": 6}
    found = loss(net(torch.randn(2, 3, 64, 96)), targets)
    assert found.keys() == {"loss", "centres", "regions", "things", "stuff"}
    total = found["centres"] + found["regions"] + 3 * (found["things"] + found["stuff"])
    torch.testing.assert_close(found["loss"], total)
    assert all(value > 0 for value in found.values()) and found["things"] < 1 and found["stuff"] < 1
    with pytest.raises(ValueError, match="class_weights"):
        PanopticFCNLoss.of(net, class_weights=(1.0,) * 4)


def test_classes_are_things_and_channels():
    loss = PanopticFCNLoss(5, (3, 1))
    assert loss.rows.tolist() == [-1, 0, -1, 1, -1] and loss.channels.tolist() == [1, 0, 2, 0, 3]
    assert PanopticFCNLoss(3).rows.tolist() == [0, 1, 2] and not PanopticFCNLoss(3).channels.any()


def test_a_batch_is_the_sum_of_its_parts():
    net = model()
    loss, targets, x = PanopticFCNLoss.of(net), truth(3), torch.randn(3, 3, 64, 96)
    targets.classes = (targets.classes[0], targets.classes[1][:0], targets.classes[2][1:])
    targets.masks = (targets.masks[0], targets.masks[1][:0], targets.masks[2][1:])
    targets.boxes = (targets.boxes[0], targets.boxes[1][:0], targets.boxes[2][1:])
    totals = loss.count(targets)
    whole = loss(net(x), targets, totals)
    parts = [loss(net(x[n : n + 1]), targets.part(n, n + 1), totals) for n in range(3)]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("things", [(0, 2), (), (3,)])
def test_every_parameter_has_a_gradient_where_nothing_is_true(things):
    net = model(things=things)
    empty = Targets(
        classes=(torch.zeros(0, dtype=torch.int64),),
        masks=(torch.zeros(0, 64, 96, dtype=torch.bool),),
        boxes=(torch.zeros(0, 4),),
    )
    found = PanopticFCNLoss.of(net)(net(torch.randn(1, 3, 64, 96)), empty)
    assert found["things"] == 0 and found["stuff"] == 0 and found["regions"] > 0
    found["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)


def test_coarse_masks_are_the_bilinear_resize():
    masks = torch.rand(3, 61, 90) > 0.5
    padded = torch.nn.functional.pad(masks.float(), (0, 6, 0, 3))
    expected = torch.nn.functional.interpolate(padded[None], (16, 24), mode="bilinear")[0]
    torch.testing.assert_close(coarse_masks(masks, (16, 24), 4), expected)
    lone = torch.zeros(1, 64, 96, dtype=torch.bool)
    lone[0, 60, 63] = True  # at a corner of its place, where the resize does not look
    assert coarse_masks(lone, (16, 24), 4).nonzero().tolist() == [[0, 15, 15]]


def test_centres():
    masks = torch.zeros(2, 16, 24)
    masks[0, 2:9, 4:13] = 1
    masks[1, 15, 23] = 1
    boxes = torch.tensor([[16.0, 8, 52, 36], [92, 60, 96, 64]])
    target = centre_map(torch.tensor([1, 0]), masks, boxes, (3, 8, 12), 4)
    assert (target == 1).nonzero().tolist() == [[0, 7, 11], [1, 2, 4]]  # half of (15, 23) and (5, 8)
    # 4.5 x 3.5 places: the smallest of CornerNet's three cases
    total, area, overlap = 8.0, 4.5 * 3.5, 0.7
    cases = [
        (total + (total**2 - 4 * area * (1 - overlap) / (1 + overlap)) ** 0.5) / 2,
        (2 * total + (4 * total**2 - 16 * area * (1 - overlap)) ** 0.5) / 2,
        (-2 * overlap * total + (4 * (overlap * total) ** 2 + 16 * overlap * (1 - overlap) * area) ** 0.5) / 2,
    ]
    radius = int(min(cases))
    assert radius == 1 and min(cases) == cases[2]
    assert target[1, 2, 5].item() == pytest.approx(torch.tensor(-1 / (2 * (3 / 3) ** 2)).exp().item())
    assert (target[1] > 0).sum() == 9 and (target[0] > 0).sum() == 1 and not target[2].any()


def test_dice():
    p, t = torch.tensor([0.5, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    assert dice(p, t).item() == pytest.approx(1 - 2 * 1.5 / (1.25 + 2))
    assert dice(t, t) == 0
