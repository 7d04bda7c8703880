"""The R-CNN family through the common loop: neither micro-batches, processes nor kills change what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys.resuming import check_resumes, losses_of

from fapn_zoo.create import create_model
from fapn_zoo.data.scenes import THINGS
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings

pytestmark = pytest.mark.train
NARROW = {"neck_out_channels": 16, "head_hidden": 32, "head_anchor_sides": (8, 16, 32, 64, 128)}
NARROW |= {"head_region_samples": 64, "head_proposals": 100, "head_train_proposals": 100}
MASKS = {"head_mask_hidden": 16, "head_mask_convs": 2}
TERMS = {"faster_rcnn_fpn": ("loss", "rpn_class", "rpn_box", "class", "box")}
TERMS["mask_rcnn_fpn"] = (*TERMS["faster_rcnn_fpn"], "mask")
TERMS["panoptic_fpn_fpn"] = (*TERMS["mask_rcnn_fpn"], "semantic")
TERMS["pointrend_rcnn_fpn"] = (*TERMS["mask_rcnn_fpn"], "point")
POINTS = {"head_mask_hidden": 16, "head_mask_fc": 32, "head_point_channels": 16, "head_train_points": 40}
HEADS = {"faster_rcnn_fpn": {}, "mask_rcnn_fpn": MASKS, "pointrend_rcnn_fpn": POINTS}
HEADS["panoptic_fpn_fpn"] = MASKS | {"head_semantic_channels": 32}


@pytest.fixture(params=TERMS)
def narrow(request: pytest.FixtureRequest, tiny: Settings) -> Settings:
    """No batch norm: its statistics are those of a micro-batch, by definition."""
    args = NARROW | {"backbone_norm": "frozen_bn"} | HEADS[request.param]
    few = tiny.replace(model=request.param, model_args=args, data="scenes:6@64x96", crop=(64, 96))
    return few.replace(optimizer="sgd", val_data="none", steps=3)


def test_micro_batches_change_no_gradient(narrow: Settings, tmp_path: Path) -> None:
    parts = narrow.replace(micro_batch=3, out=str(tmp_path / "parts"))  # uneven: 3 + 1
    a, b = (load_file(train(settings) / "model.safetensors") for settings in (narrow, parts))
    assert set(losses_of(narrow)[0]) == set(TERMS[narrow.model])
    torch.testing.assert_close(losses_of(parts), losses_of(narrow), rtol=1e-4, atol=1e-5)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("narrow", ["panoptic_fpn_fpn"], indirect=True)
def test_two_processes_equal_one(narrow: Settings, tmp_path: Path, start: Any) -> None:
    two = narrow.replace(out=str(tmp_path / "two"))
    process = start(two, processes=2)
    train(narrow)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    torch.testing.assert_close(losses_of(two), losses_of(narrow), rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(
    narrow: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = narrow.replace(steps=4, checkpoint_every=2)
    check_resumes(whole, 3, tmp_path, monkeypatch)


def test_frozen_parts_stay_as_they_are(narrow: Settings) -> None:
    """Stem and first stage with the statistics of their batch norms; a whole frozen head still has its loss."""
    args = {name: value for name, value in narrow.model_args.items() if name != "backbone_norm"}
    args |= {"backbone_frozen_stages": 1}
    settings = narrow.replace(backbone="resnet10t", model_args=args, freeze="head", steps=1)
    torch.manual_seed(settings.seed)
    before = create_model(settings.model, backbone="resnet10t", num_classes=11, things=tuple(sorted(THINGS)), **args)
    folder = train(settings)
    after = create_model(f"local-dir:{folder}", pretrained=True)
    fixed = {name for name, parameter in before.named_parameters() if not parameter.requires_grad}
    assert any("layer1" in name for name in fixed) and not any("layer2" in name for name in fixed)
    same = {name for name, value in after.state_dict().items() if torch.equal(value, before.state_dict()[name])}
    assert fixed <= same and all(name.startswith(("backbone.", "head.")) for name in same)
    statistics = {name for name in before.state_dict() if "layer1" in name or name.startswith("head.")}
    assert same >= statistics and "backbone.body.layer2.0.bn1.running_mean" not in same
    assert all(0 < value < 20 for line in losses_of(settings) for value in line.values())


def test_half_precision(narrow: Settings) -> None:
    train(narrow.replace(steps=2, amp="bf16"))
    assert all(0 < value < 20 for line in losses_of(narrow) for value in line.values())
