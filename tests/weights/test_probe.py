"""Stored outputs: what they notice, and what they leave alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import fapn_zoo
from fapn_zoo.model import ZooModel
from fapn_zoo.weights import probe

pytestmark = pytest.mark.unit


def tiny(head: str = "perpixel", **kwargs: Any) -> ZooModel:
    options = {"head_layers": 2, "head_channels": 32, "head_feedforward": 32} if head == "maskformer" else {}
    torch.manual_seed(0)
    return fapn_zoo.create_model(
        f"{head}_fapn",
        backbone="resnet10t",
        backbone_channels=(16, 24, 32, 48),
        neck_out_channels=32,
        neck_deform_groups=4,
        **({"num_classes": 4} | options | kwargs),
    )


@pytest.mark.parametrize("head", ["perpixel", "maskformer"])
def test_a_folder_holds_what_its_model_computes(head: str, tmp_path: Path) -> None:
    model = tiny(head).train()
    model.save(tmp_path, license="mit")
    assert model.training and model.backbone.training
    stored = json.loads((tmp_path / "config.json").read_text())["probe"]
    assert len(stored["outputs"]) == (2 if head == "maskformer" else 1)
    again = fapn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert probe.check(again, stored) < 1e-4


def test_one_changed_layer_is_noticed() -> None:
    model = tiny()
    stored = probe.probe(model)
    for name in ("backbone.body.conv1.0.weight", "neck.align.0.dcn.bias", "head.predictor.weight"):
        weight = model.get_parameter(name)
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[0] += weight.std() + 0.1
        with pytest.raises(ValueError, match="no longer computes its stored outputs"):
            probe.check(model, stored)
        with torch.no_grad():
            weight.copy_(kept)
    assert probe.check(model, stored) == 0


def test_values_that_are_no_numbers_are_noticed() -> None:
    model = tiny()
    stored = probe.probe(model)
    with torch.no_grad():
        model.head.predictor.bias[0] = float("nan")
    with pytest.raises(ValueError, match="its outputs on a small image hold NaN in logits"):
        probe.check(model, stored)


def test_half_precision_folders_store_the_rounded_model(tmp_path: Path) -> None:
    model = tiny()
    model.save(tmp_path, dtype=torch.float16)
    stored = json.loads((tmp_path / "config.json").read_text())["probe"]
    assert probe.check(fapn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True), stored) < 1e-4
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("stored", [{}, {"size": [64, 96], "outputs": [{}]}, {"size": [1, 2], "outputs": []}])
def test_other_stored_forms_are_refused(stored: Any) -> None:
    with pytest.raises(ValueError, match="stored outputs"):
        probe.check(tiny(), stored)


def test_another_structure_is_named() -> None:
    with pytest.raises(ValueError, match=r"shapes \[\[1, 4, 16, 24\]\], the stored ones \[\[1, 5, 16, 24\]\]"):
        probe.check(tiny(), probe.probe(tiny(num_classes=5)))


def test_a_model_that_fails_is_saved_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    monkeypatch.setattr(model, "forward", lambda x: model.head.predictor(x))
    with caplog.at_level(logging.WARNING):
        model.save(tmp_path)
    assert "no outputs are stored" in caplog.text
    assert json.loads((tmp_path / "config.json").read_text())["probe"] == {}
