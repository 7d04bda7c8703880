"""Two-stage heads: what they choose, for batches, odd sizes, empty images and numbers that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fapn_zoo
from fapn_zoo.modules.heads.rcnn import FasterRCNNHead, MaskRCNNHead
from fapn_zoo.modules.layers.boxes import pool_boxes
from fapn_zoo.modules.necks import SubsampledLevel
from fapn_zoo.weights import probe
from fapn_zoo.weights.folder import read_config
from fapn_zoo.zoo.registry import get_spec

pytestmark = pytest.mark.unit

SMALL = {"backbone": "resnet10t", "backbone_channels": (16, 24, 32, 48), "neck_out_channels": 32, "head_hidden": 32}
WIDE = {"head_score_threshold": 0.0, "head_pre_nms": 200, "head_proposals": 60, "head_max_detections": 20}
MASKS = {"head_mask_hidden": 16}


def small(head: str = "mask_rcnn", neck: str = "fpn", **options) -> nn.Module:
    torch.manual_seed(0)
    options = SMALL | WIDE | (MASKS if head == "mask_rcnn" else {}) | {"num_classes": 5} | options
    model = fapn_zoo.create_model(f"{head}_{neck}", **options).eval()
    for layer in (model.head.rpn.objectness, model.head.rpn.deltas, model.head.box.scores, model.head.box.deltas):
        nn.init.normal_(layer.weight, std=0.3)  # a new head's answers are all alike
    return model


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_classes": 1}, {"in_chans": 5}, {"in_chans": 1}])
@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_shapes_and_ranges(head, options):
    model = small(head, **options)
    x = torch.randn(3, options.get("in_chans", 3), 96, 128)
    sizes = torch.tensor([[96, 128], [90, 100], [17, 128]])
    out = model(x, sizes)
    assert len(out.boxes) == len(out.scores) == len(out.classes) == 3 and out.stride == 1
    for n, (height, width) in enumerate(sizes.tolist()):
        boxes, scores, classes = out.boxes[n], out.scores[n], out.classes[n]
        count = len(boxes)
        assert boxes.shape == (count, 4) and scores.shape == classes.shape == (count,) and 0 < count <= 20
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all()
        assert (scores.diff() <= 0).all() and (scores > 0).all() and (scores <= 1).all()
        assert classes.dtype == torch.int64 and classes.max() < model.num_classes
        if head == "mask_rcnn":
            assert out.mask_logits[n].shape == (count, 28, 28)
        one = out.image(n)
        assert type(one) is type(out) and torch.equal(one.boxes[0], boxes) and len(one.boxes) == 1


@torch.no_grad()
def test_images_of_a_batch_do_not_mix():
    model = small()
    x, sizes = torch.randn(2, 3, 64, 96), torch.tensor([[64, 96], [50, 70]])
    together = model(x, sizes)
    for n in range(2):
        alone = model(x[n : n + 1], sizes[n : n + 1])
        for ours, theirs in zip(alone[:4], together.image(n)[:4], strict=True):
            assert torch.allclose(ours[0].float(), theirs[0].float(), atol=1e-3)


@torch.no_grad()
def test_no_detection_is_a_result():
    for head in ("faster_rcnn", "mask_rcnn"):
        out = small(head, head_score_threshold=1.0)(torch.randn(2, 3, 64, 64))
        assert [len(b) for b in out.boxes] == [len(s) for s in out.scores] == [0, 0]
        if head == "mask_rcnn":
            assert [tuple(m.shape) for m in out.mask_logits] == [(0, 28, 28)] * 2


@torch.no_grad()
def test_no_proposal_is_a_result():
    model = small()
    nn.init.constant_(model.head.rpn.deltas.bias, 1e4)  # every box lies far below the image
    nn.init.zeros_(model.head.rpn.deltas.weight)
    out = model(torch.randn(1, 3, 64, 64))
    assert len(out.boxes[0]) == 0 and out.mask_logits[0].shape == (0, 28, 28)


@torch.no_grad()
@pytest.mark.parametrize("place", ["rpn.objectness", "rpn.deltas", "box.scores", "box.deltas"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_comes_out(place, value):
    """Of one image alone; the choice among boxes would otherwise drop it without a word."""
    model = small()
    head = model.head.get_submodule(place)

    def spoil(module, inputs, output):
        bad = output.clone()
        bad[-1] = value
        return bad

    head.register_forward_hook(spoil)
    out = model(torch.randn(2, 3, 64, 64))
    assert not out.scores[1].isfinite().all() or not out.boxes[1].isfinite().all()
    assert out.scores[0].isfinite().all() and len(out.scores[0])


@torch.no_grad()
def test_masks_are_those_of_the_class():
    torch.manual_seed(0)
    branch = MaskRCNNHead(8, 8, 5, hidden=8, mask_hidden=8).mask
    pooled, classes = torch.randn(4, 8, 14, 14), torch.tensor([0, 4, 2, 2])
    hidden = pooled
    for conv in branch.convs:
        hidden = torch.relu(conv(hidden))
    every = branch.predictor(torch.relu(branch.deconv(hidden)))
    assert torch.allclose(branch(pooled, classes), every[torch.arange(4), classes], atol=1e-6)


def test_sixth_level():
    maps = [torch.randn(1, 4, 16, 20), torch.randn(1, 4, 9, 11)]
    found, names = SubsampledLevel()(maps, maps, ["0", "1"])
    assert names == ["0", "1", "pool"] and torch.equal(found[2], nn.functional.max_pool2d(maps[1], 1, 2))
    assert found[2].shape == (1, 4, 5, 6) and len(maps) == 2


def test_a_pyramid_of_other_height_is_refused():
    head = FasterRCNNHead(8, 8, 5, hidden=8)
    with pytest.raises(ValueError, match="5 sides of anchors, but a pyramid of 2 levels"):
        head([torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4)], [])


@pytest.mark.parametrize("name", ["faster_rcnn_fapn_resnet50_coco", "mask_rcnn_fpn_resnet101_coco"])
def test_on_the_meta_device_there_are_as_many_as_may_be(name):
    with torch.device("meta"):
        model = fapn_zoo.create_model(name).eval()
        out = model(torch.empty(2, 3, 96, 128))
    assert [tuple(b.shape) for b in out.boxes] == [(100, 4)] * 2
    spec = get_spec(name)[0]
    assert model.num_classes == 80 == len(model.data.labels) and spec.data.channel_order == "bgr"


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_stored_outputs_are_those_before_the_choice(head, tmp_path):
    """Saved and read back also where nothing is detected; a change of any weight of the head is found."""
    model = small(head, head_score_threshold=1.0)
    model.save(tmp_path / "m", license="apache-2.0")
    stored = read_config(tmp_path / "m")["probe"]
    assert probe.check(model, stored) == 0
    for name, parameter in model.head.named_parameters():
        before = parameter.detach().clone()
        parameter.data += 0.5
        with pytest.raises(ValueError, match="no longer computes its stored outputs"):
            probe.check(model, stored)
        parameter.data = before
        assert probe.check(model, stored) == 0, name


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_boxes_in_place(dtype):
    """A coordinate of 1000 has steps of 8 in bfloat16: boxes, anchors and pooling stay in float32."""
    head = FasterRCNNHead(8, 8, 3, hidden=8, score_threshold=0.0)
    pyramid = [torch.randn(1, 8, 320 // 2**i, 320 // 2**i) for i in range(5)]
    proposals = [boxes for boxes, _ in head.rpn.choose(*head.rpn(pyramid), [(1280, 1280)])]
    assert pool_boxes([x.to(dtype) for x in pyramid[:-1]], proposals, 7).dtype == dtype
    ramp = [torch.arange(n).div(n).expand(1, 1, n, n) for n in (320, 160, 80, 40)]
    pools = [pool_boxes([x.to(kind) for x in ramp], proposals, 7).float() for kind in (torch.float32, dtype)]
    assert (pools[0] - pools[1]).abs().max() < 1e-2
    out = head.to(dtype)([x.to(dtype) for x in pyramid], [], torch.tensor([[1280, 1280]]))
    assert out.boxes[0].dtype == torch.float32 and len(out.boxes[0]) == 100


def test_predictions_in_bfloat16_and_batches():
    model = small("mask_rcnn")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(3)]
    alone = [model.predict(image, amp="no") for image in images]
    for result, other in zip(model.predict(images, batch_size=3, amp="no"), alone, strict=True):
        assert len(result.segments) == len(other.segments) and np.allclose(result.boxes, other.boxes, atol=0.1)
    for result in model.predict(images, batch_size=2, amp="bf16"):
        assert result.boxes.shape == (len(result.segments), 4) and result.labels.shape == (96, 128)
    assert model.to(torch.bfloat16).predict(images[0]).boxes.dtype == np.float32
