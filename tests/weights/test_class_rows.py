"""Weights that follow their classes by name, for the layers of every family of heads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import fapn_zoo
from fapn_zoo.weights.class_rows import same_names

pytestmark = pytest.mark.unit
OLD, NEW = ("road", "car", "Traffic light", "sky"), ("dog", "traffic_light", "road")
OLD_THINGS, NEW_THINGS = (1, 2), (0, 1)
SMALL = {"backbone": "test_efficientnet", "neck_out_channels": 16}
RCNN = {"head_hidden": 8}
# rows of the new model <- rows of the old one, and the rows that stay random
HEADS = {
    "perpixel_fpn": ({}, {"predictor.weight": ([1, 2], [2, 0], [0])}),
    "perpixel_plus_fpn": ({}, {"decoder.query_embed.weight": ([1, 2], [2, 0], [0])}),
    "maskformer_fpn": ({}, {"class_embed.weight": ([1, 2, 3], [2, 0, 4], [0])}),
    "pointrend_fpn": (
        {"head_point_channels": 8},
        {"coarse.predictor.bias": ([1, 2], [2, 0], [0]), "points.predictor.weight": ([1, 2], [2, 0], [0])},
    ),
    "mask_rcnn_fpn": (
        {**RCNN, "head_mask_hidden": 8},
        {
            "box.scores.weight": ([1, 2, 3], [2, 0, 4], [0]),
            "box.deltas.weight": ([4, 5, 6, 7, 8, 11], [8, 9, 10, 11, 0, 3], [0, 1, 2, 3]),
            "mask.predictor.weight": ([1, 2], [2, 0], [0]),
        },
    ),
    "pointrend_rcnn_fpn": (
        {**RCNN, "head_mask_hidden": 8, "head_mask_fc": 8, "head_point_channels": 8},
        {"mask.prediction.weight": ([49, 97, 98, 146], [98, 146, 0, 48], [0, 48])},
    ),
    "panoptic_fpn_fpn": (
        {**RCNN, "head_mask_hidden": 8, "head_semantic_channels": 32},
        {
            "box.scores.weight": ([1, 2], [1, 2], [0]),
            "box.deltas.weight": ([4, 7], [4, 7], [0]),
            "semantic.predictor.weight": ([0, 1], [0, 1], []),
        },
    ),
    "panoptic_fcn_fpn": (
        {"head_channels": 32, "head_convs": 1},
        {"position.centres.weight": ([1], [1], [0]), "position.regions.weight": ([0, 1], [0, 1], [])},
    ),
}


def made(name: str, **changes: object) -> fapn_zoo.ZooModel:
    return fapn_zoo.create_model(name, **{**SMALL, **HEADS[name][0], **changes})


@pytest.mark.parametrize("name", HEADS)
def test_rows_follow_names(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = made(name, labels=OLD, things=OLD_THINGS)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.normal_()
    old.save(tmp_path)
    torch.manual_seed(1)
    new = fapn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True, labels=NEW, things=NEW_THINGS)
    assert new.num_classes == 3 and new.spec.data.labels == NEW and new.spec.label_set is None
    report = new.load_report
    assert report.carried == ("traffic_light", "road") and report.new == ("dog",) and not report.fresh
    assert "2 of 3 classes keep their rows by name: traffic_light, road" in str(report)
    before, after = old.state_dict(), new.state_dict()
    for key, (to, frm, random) in HEADS[name][1].items():
        mine, its = after[f"head.{key}"], before[f"head.{key}"]
        assert torch.equal(mine[to], its[frm]), key
        assert not any(torch.equal(row, other) for row in mine[random] for other in its), key
    assert torch.equal(after["backbone.body.conv_stem.weight"], before["backbone.body.conv_stem.weight"])
    new.eval()(torch.zeros(1, 3, 64, 64))


def test_columns_that_read_classes_follow_them_too(tmp_path: Path) -> None:
    old = made("pointrend_fpn", labels=OLD)
    old.save(tmp_path)
    new = fapn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True, labels=NEW)
    key = "head.points.layers.0.weight"
    mine, its = new.state_dict()[key], old.state_dict()[key]
    assert torch.equal(mine[:, :16], its[:, :16]) and torch.equal(mine[:, [17, 18]], its[:, [18, 16]])
    assert not torch.equal(mine[:, 16], its[:, 16])
    assert torch.equal(new.state_dict()["head.points.layers.0.bias"], old.state_dict()["head.points.layers.0.bias"])


def test_the_same_classes_in_another_order(tmp_path: Path) -> None:
    """As many classes: without names their rows would stay where they are, and mean something else."""
    old = made("perpixel_fpn", labels=OLD).eval()
    old.save(tmp_path)
    images = torch.randn(1, 3, 64, 64)
    for options in ({"pretrained": True}, {"checkpoint_path": tmp_path}):
        turned = fapn_zoo.create_model(f"local-dir:{tmp_path}", labels=OLD[::-1], **options).eval()
        assert torch.equal(turned(images).logits, old(images).logits.flip(1))
        assert turned.load_report.carried == OLD[::-1] and not turned.load_report.new
    same = fapn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True, labels=OLD)
    assert not same.load_report.carried and str(same.load_report).endswith("tensors loaded")


def test_names_that_say_nothing(tmp_path: Path) -> None:
    old = made("perpixel_fpn", labels=OLD)
    old.save(tmp_path)
    weight = "head.predictor.weight"

    def again(labels: tuple[str, ...]) -> fapn_zoo.ZooModel:
        return fapn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True, labels=labels)

    unnamed = again(tuple(f"class_{i}" for i in range(4)))
    assert torch.equal(unnamed.state_dict()[weight], old.state_dict()[weight])
    for strange in (("a", "b", "c", "d"), ("a", "b")):
        report = again(strange).load_report
        assert report.fresh == (weight, "head.predictor.bias") and not report.carried
    with pytest.raises(ValueError, match="num_classes=3, but there are 4 labels"):
        fapn_zoo.create_model(f"local-dir:{tmp_path}", num_classes=3, labels=OLD)
    with pytest.raises(ValueError, match="head.predictor.weight has shape"):
        fapn_zoo.create_model(f"local-dir:{tmp_path}", checkpoint_path=tmp_path, labels=("a", "b"))
    for wrong in ("road", ("road", "road")):
        with pytest.raises(ValueError, match="expected a list of different names"):
            fapn_zoo.create_model(f"local-dir:{tmp_path}", labels=wrong)
    named = dataclasses.replace(
        old.data, labels=("Straße", "Auto", "Ampel", "Himmel")
    )  # a translation, not new classes
    kept = fapn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True, data=named)
    assert torch.equal(kept.state_dict()[weight], old.state_dict()[weight])


def test_when_names_are_the_same() -> None:
    assert same_names(("a", "b"), ("b", "c", "a")) == {0: 1, 2: 0}
    assert same_names(("Car", "car"), ("car", "CAR")) == {0: 1}  # "CAR" might be either
    assert same_names(("Car", "caR"), ("car",)) == {}  # which of the two?
    assert same_names(("sky-other",), ("Sky other", "sky_other")) == {}
    assert same_names(("...", "!"), ("?",)) == {}
    assert same_names(("Ampel", "STRASSE"), ("straße",)) == {0: 1}
