"""Panoptic FPN's targets and loss: which objects are boxes, which pixels count, and data that lacks one of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fapn_zoo
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import Objects, Sample
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.modules.losses import PanopticFPNLoss, RCNNLoss
from fapn_zoo.tasks import TASKS

pytestmark = pytest.mark.unit
SMALL = {"backbone": "resnet10t", "backbone_channels": (16, 24, 32, 48), "neck_out_channels": 16, "head_hidden": 16}
SMALL |= {"head_mask_hidden": 8, "head_semantic_channels": 16, "head_region_samples": 16, "head_proposals": 20}
SMALL |= {"head_train_proposals": 20}


def targets() -> Targets:
    """One image of 64 x 96: an object of class 1, one of class 3, stuff of class 2, void at the right."""
    masks = torch.zeros(3, 64, 96, dtype=torch.bool)
    masks[0, 8:40, 8:40], masks[1, :, 60:80], masks[2, 40:, :60] = True, True, True
    labels = torch.zeros(1, 64, 96, dtype=torch.int64)
    for mask, category in zip(masks, (1, 3, 2), strict=True):
        labels[0, mask] = category
    labels[..., 80:] = 255
    boxes = torch.tensor([[8.0, 8, 40, 40], [60, 0, 80, 64], [0, 40, 60, 64]])
    return Targets(labels, (torch.tensor([1, 3, 2]),), (masks,), (boxes,), seeds=torch.tensor([5]))


def model(num_classes: int = 4, things: tuple[int, ...] = (1, 3), **options) -> torch.nn.Module:
    torch.manual_seed(0)
    made = fapn_zoo.create_model("panoptic_fpn_fpn", num_classes=num_classes, things=things, **SMALL | options)
    return made.eval()


def test_objects_of_some_classes():
    found = targets().of_classes((1, 3))
    assert found.classes[0].tolist() == [0, 1] and torch.equal(found.masks[0], targets().masks[0][:2])
    assert torch.equal(found.boxes[0], targets().boxes[0][:2]) and torch.equal(found.labels, targets().labels)
    none = targets().of_classes((7,))
    assert none.classes[0].dtype == torch.int64 and none.boxes[0].shape == (0, 4) and none.masks[0].shape == (0, 64, 96)
    assert Targets(classes=(torch.tensor([1]),), boxes=(torch.zeros(1, 4),)).of_classes((1,)).masks == ()


def test_the_loss_is_that_of_both_parts():
    net, truth = model(), targets()
    loss, x = PanopticFPNLoss.of(net), torch.randn(1, 3, 64, 96)
    out = net(x, torch.tensor([[64, 96]]), truth)
    found = loss(out, truth)
    channels = torch.full((1, 64, 96), 255)
    for category, channel in ((0, 1), (1, 0), (2, 2), (3, 0)):
        channels[truth.labels == category] = channel
    logits = F.interpolate(out.semantic.logits, scale_factor=4, mode="bilinear", align_corners=False)
    semantic = F.cross_entropy(logits, channels, ignore_index=255)
    objects = RCNNLoss(net.head.rpn.samples)(out.objects, truth.of_classes((1, 3)))
    assert found["semantic"].item() == pytest.approx(semantic.item(), rel=1e-5)
    assert found["loss"].item() == pytest.approx((objects["loss"] + 0.5 * semantic).item(), rel=1e-5)
    assert found.keys() == {*objects, "semantic"}
    found["loss"].backward()
    assert all(p.grad is not None for p in net.head.parameters())


@pytest.mark.parametrize("num_classes, things", [(4, (0, 1, 2, 3)), (4, (3,)), (4, (0,))])
def test_objects_or_stuff_may_be_missing(num_classes, things):
    """All things, and things of which this image has one or none."""
    net, truth = model(num_classes, things), targets()
    found = PanopticFPNLoss.of(net)(net(torch.randn(1, 3, 64, 96), None, truth), truth)
    assert all(torch.isfinite(value) for value in found.values()) and found["rpn_class"] > 0
    assert (found["semantic"] == 0) == (len(things) == num_classes) and (found["box"] == 0) == (things == (0,))


def test_what_cannot_be_trained_is_said():
    with pytest.raises(ValueError, match="no class of the data is a thing"):
        PanopticFPNLoss.of(model(things=()))
    with pytest.raises(ValueError, match="class_weights is for per-pixel heads"):
        PanopticFPNLoss.of(model(), class_weights=[1, 1, 1, 1])
    with pytest.raises(ValueError, match=r"things=\(4,\); expected different ids of the 4 classes"):
        model(things=(4,))
    with pytest.raises(ValueError, match="stuff_area=-1; expected"):
        model(head_stuff_area=-1)


def test_targets_of_panoptic_data_have_both():
    """A crowd is pixels of its class and no object; void is neither."""
    ids = np.array([[1, 1, 2, 2], [3, 3, 0, 0]], np.int32)
    labels = np.array([[0, 0, 1, 1], [1, 1, 255, 255]], np.uint8)
    objects = Objects(ids, np.array([0, 1, 1]), np.array([False, False, True]))
    sample = Sample(torch.zeros(3, 2, 4), "x", labels, objects)
    found = TASKS["panoptic"].targets(sample, LabelMap(("stuff", "thing"), ((0, 0, 0), (1, 1, 1)), 255, (1,)))
    assert found.classes[0].tolist() == [0, 1] and np.array_equal(found.labels[0].numpy(), labels)
    assert [classes.tolist() for classes, _ in found.segments()] == [[0, 1]]  # what MaskFormer's loss sees
    only = Sample(torch.zeros(3, 2, 4), "x", None, objects)
    assert TASKS["panoptic"].targets(only, LabelMap(("a", "b"), ((0, 0, 0),) * 2, 255, (1,))).labels is None


@torch.no_grad()
def test_bands_and_narrow_heads():
    out = model(5, (4, 0), in_chans=5, backbone="test_efficientnet", backbone_channels=None)(torch.randn(2, 5, 97, 131))
    assert out.semantic_logits.shape == (2, 4, 25, 33) and all(c.max() < 2 for c in out.classes if len(c))
    assert out.image(1).boxes[0].shape == out.boxes[1].shape and out.image(0).rule == out.rule
