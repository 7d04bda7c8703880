"""The four maps of official backbones are the stored ones, and their parameters as many."""

from __future__ import annotations

import re

import pytest
import torch
from toys.golden_rule import Golden

from fapn_zoo.convert.key_maps import KeyMap, backbone_pairs
from fapn_zoo.modules.backbones.backbone import Backbone
from fapn_zoo.weights.folder import WithoutInit

pytestmark = pytest.mark.parity


def load_official(backbone: Backbone, golden: Golden, prefix: str) -> None:
    """Load the golden weights; `prefix` is that of the official backbone's keys."""
    state = golden.state()
    names = KeyMap(backbone_pairs(backbone.name, prefix)).translate(
        f"backbone.{name}" for name in backbone.state_dict()
    )
    backbone.load_state_dict({name.removeprefix("backbone."): state[key] for name, key in names.items()}, assign=True)


def official_parameters(golden: Golden) -> int:
    """Parameters of the official backbone, without the neck that the R-CNN family counts with it."""
    part_of_backbone = re.compile(r"backbone\.(bottom_up|stem|res\d|patch_embed|layers|norm\d)$")
    return sum(count for part, count in golden.meta["parameters_by_part"].items() if part_of_backbone.match(part))


def check_levels(golden: Golden, backbone: Backbone, prefix: str) -> None:
    """Compare all four maps with the stored ones."""
    with torch.no_grad():
        features = backbone.eval()(golden.network_input())
    for level, feature in enumerate(features):
        golden.check(f"{prefix}res{level + 2}", feature)


RESNETS = [
    ("maskformer_fapn_r101_cocostuff10k", "backbone.", "backbone.", {"name": "resnet101"}),
    ("perpixel_fapn_r50_ade20k", "backbone.", "backbone.", {"name": "resnet50"}),
    ("pointrend_semantic_fapn_r50_cityscapes", "backbone.bottom_up.", "", {"name": "resnet50", "stride_in_1x1": True}),
]


@pytest.mark.parametrize(("model", "keys", "outputs", "kwargs"), RESNETS, ids=[case[0] for case in RESNETS])
def test_official_resnets(model, keys, outputs, kwargs):
    golden = Golden(model)
    backbone = Backbone(**kwargs, norm="frozen_bn")
    assert sum(p.numel() for p in backbone.parameters()) == official_parameters(golden)
    load_official(backbone, golden, keys)
    check_levels(golden, backbone, outputs)


def test_official_swin_large():
    golden = Golden("maskformer_fapn_swinl_ade20k")
    with WithoutInit():
        backbone = Backbone("swin_l")
    assert sum(p.numel() for p in backbone.parameters()) == official_parameters(golden) == 195_201_204
    load_official(backbone, golden, "backbone.")
    check_levels(golden, backbone, "backbone.")
