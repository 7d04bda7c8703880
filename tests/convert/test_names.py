"""Official state dicts to ours and back: nothing lost, nothing made up, everything that does not fit named."""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from toys.golden_rule import Golden
from toys.official_names import relative_position_index, to_official
from toys.tiny_official import BY_NAME, SPECS, first_version, official_state

from fapn_zoo.convert import to_zoo
from fapn_zoo.convert.names import model_shapes
from fapn_zoo.model import build
from fapn_zoo.zoo.registry import get_spec, list_models
from fapn_zoo.zoo.spec import ModelSpec

pytestmark = pytest.mark.unit
SPEC = BY_NAME["maskformer_fapn"]
LAYER = "sem_seg_head.pixel_decoder.layer_1.norm.weight"
ALIAS = "sem_seg_head.pixel_decoder.align_1.offset.norm.weight"


@pytest.fixture
def state() -> dict[str, Tensor]:
    return official_state(SPEC)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    other = [key for key in a if a[key].dtype != b[key].dtype or not torch.equal(a[key], b[key])]
    assert not other, other


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_round_trip(spec: ModelSpec) -> None:
    state = official_state(spec)
    zoo, dropped = to_zoo(state, spec)
    build(spec).load_state_dict(zoo)
    assert len(zoo) + len(dropped) == len(state)
    assert_same(to_official(zoo, spec), state)
    again, _ = to_zoo(to_official(zoo, spec), spec)
    assert_same(again, zoo)
    assert {value.data_ptr() for value in zoo.values()} <= {value.data_ptr() for value in state.values()}, "a copy"


@pytest.mark.parity
@pytest.mark.parametrize(
    "name, golden_name",
    [
        ("maskformer_fapn_resnet101_cocostuff10k", "maskformer_fapn_r101_cocostuff10k"),
        ("maskformer_fpn_resnet50_ade20k", "maskformer_fpn_r50_ade20k"),
        ("maskformer_fapn_swin_l_ade20k", "maskformer_fapn_swinl_ade20k"),
        ("perpixel_fapn_resnet50_ade20k", "perpixel_fapn_r50_ade20k"),
        ("pointrend_fapn_resnet50_cityscapes", "pointrend_semantic_fapn_r50_cityscapes"),
    ],
)
def test_golden_round_trip(name: str, golden_name: str) -> None:
    """The keys are those of the official code, not of a map read backwards."""
    golden, spec = Golden(golden_name), get_spec(name)[0]
    state = golden.state()
    official = to_official(to_zoo(state, spec)[0], spec)
    made = {key: value for key, value in official.items() if key not in state}
    assert_same({key: value for key, value in official.items() if key in state}, state)
    assert official.keys() == golden.shapes.keys()
    for key, value in made.items():
        entry = golden.keys[key]
        assert (list(value.shape), str(value.dtype)) == (entry["shape"], f"torch.{entry['dtype']}"), key
    for key in golden.meta["kept_keys"]:
        assert made[key].tolist() == golden.meta["kept_values"][key]
    for alias, key in golden.meta["aliases"]:
        assert official[alias] is official[key]


OFFICIAL = [name for name in list_models() if any(w.source == "official" for w in get_spec(name)[0].weights.values())]


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_model_has_a_map(name: str) -> None:
    spec, _ = get_spec(name)
    with torch.device("meta"):
        shapes = {key: torch.empty(shape) for key, shape in model_shapes(spec).items()}
        zoo, _ = to_zoo({k: v for k, v in to_official(shapes, spec).items() if "offset.norm" not in k}, spec)
    assert zoo.keys() == shapes.keys()


def test_queries_that_read_an_encoder_have_no_projection() -> None:
    state = official_state(BY_NAME["maskformer_encoder"])
    assert "sem_seg_head.pixel_decoder.transformer.encoder.layers.1.norm2.weight" in state
    assert "sem_seg_head.pixel_decoder.input_proj.bias" in state
    assert not any(key.startswith("sem_seg_head.predictor.input_proj") for key in state)
    assert state["sem_seg_head.pixel_decoder.layer_4.weight"].shape == (32, 32, 3, 3)


def test_first_version_of_the_heads(state: dict[str, Tensor]) -> None:
    """By the rule in words: every key of the head that is not the predictor's gets `pixel_decoder.`"""
    old = first_version(state)
    assert "sem_seg_head.adapter_1.weight" in old and "sem_seg_head.predictor.query_embed.weight" in old
    assert_same(to_zoo(old, SPEC)[0], to_zoo(state, SPEC)[0])
    assert "sem_seg_head.align_1.offset.norm.weight" in to_zoo(old, SPEC)[1], "dropped keys are called as in the file"
    per_pixel = BY_NAME["perpixel"]
    old = first_version(official_state(per_pixel))
    assert "sem_seg_head.predictor.weight" in old
    assert_same(to_zoo(old, per_pixel)[0], to_zoo(official_state(per_pixel), per_pixel)[0])


def test_both_versions_at_once(state: dict[str, Tensor]) -> None:
    state["sem_seg_head.mask_features.bias"] = state["sem_seg_head.pixel_decoder.mask_features.bias"]
    with pytest.raises(
        ValueError,
        match=r"'sem_seg_head\.pixel_decoder\.mask_features\.bias' and 'sem_seg_head\.mask_f"
        r"eatures\.bias' are names of one tensor in two versions",
    ):
        to_zoo(state, SPEC)


def test_errors_call_keys_as_the_file_does(state: dict[str, Tensor]) -> None:
    old = first_version(state)
    old["sem_seg_head.layer_9.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 unknown: sem_seg_head\.layer_9\.weight$"):
        to_zoo(old, SPEC)


def test_a_shared_norm_must_be_one(state: dict[str, Tensor]) -> None:
    assert torch.equal(state[ALIAS], state[LAYER])
    _, dropped = to_zoo(state, SPEC)
    assert dropped[ALIAS] == "a second name of another tensor"
    state[ALIAS] = state[ALIAS] + 1e-7
    with pytest.raises(
        ValueError,
        match=rf"'{re.escape(ALIAS)}' and '{re.escape(LAYER)}' are one tensor in "
        "'tiny_maskformer_fapn', but their values differ",
    ):
        to_zoo(state, SPEC)


def test_a_shared_norm_under_its_second_name_alone(state: dict[str, Tensor]) -> None:
    del state[LAYER]
    with pytest.raises(ValueError, match=rf"1 missing: {re.escape(LAYER)}$"):
        to_zoo(state, SPEC)


def test_a_plain_pyramid_has_no_second_names() -> None:
    spec = BY_NAME["maskformer_fpn"]
    state = official_state(spec) | {ALIAS: torch.ones(32)}
    with pytest.raises(ValueError, match=rf"1 unknown: {re.escape(ALIAS)}$"):
        to_zoo(state, spec)


DROPPED = {
    "criterion.empty_weight": "a constant of the training loss",
    "pixel_mean": "preprocessing is part of config.json",
    "pixel_std": "preprocessing is part of config.json",
    "backbone.layers.0.blocks.0.attn.relative_position_index": "follows from the window size",
    "backbone.layers.0.blocks.1.attn_mask": "follows from the image size",
    "backbone.res2.0.conv1.norm.num_batches_tracked": "frozen norms count no batches",
    "proposal_generator.anchor_generator.cell_anchors.0": "anchors follow from the settings",
}


@pytest.mark.parametrize("key", DROPPED)
def test_dropped_on_purpose(state: dict[str, Tensor], key: str) -> None:
    zoo, dropped = to_zoo(state | {key: torch.zeros(3)}, SPEC)
    assert dropped[key] == DROPPED[key]
    assert zoo.keys() == model_shapes(SPEC).keys()


def test_all_that_does_not_fit_is_named(state: dict[str, Tensor]) -> None:
    for level in (1, 2, 3):
        for part in ("weight", "bias"):
            del state[f"sem_seg_head.pixel_decoder.adapter_{level}.norm.{part}"]
    state["backbone.res7.0.conv1.weight"] = torch.zeros(1)
    state["sem_seg_head.predictor.transformer.decoder.layers.2.norm1.weight"] = torch.ones(32)
    state["sem_seg_head.predictor.class_embed.bias"] = torch.zeros(9)
    with pytest.raises(ValueError) as error:
        to_zoo(state, SPEC)
    text = str(error.value)
    assert "\n" not in text
    assert text == (
        "the tensors are not those of 'tiny_maskformer_fapn': 2 unknown: backbone.res7.0.conv1.weight, "
        "sem_seg_head.predictor.transformer.decoder.layers.2.norm1.weight; 6 missing: "
        "sem_seg_head.pixel_decoder.adapter_1.norm.weight, sem_seg_head.pixel_decoder.adapter_1.norm.bias, "
        "sem_seg_head.pixel_decoder.adapter_2.norm.weight, sem_seg_head.pixel_decoder.adapter_2.norm.bias, "
        "sem_seg_head.pixel_decoder.adapter_3.norm.weight and 1 more; 1 of another shape: "
        "sem_seg_head.predictor.class_embed.bias (9,) instead of (6,)"
    )


def test_a_deeper_network_does_not_pass_for_a_shallower_one() -> None:
    deep = official_state(dataclasses.replace(SPEC, backbone="resnet34"))
    with pytest.raises(ValueError, match=r"unknown: backbone\.res2\.2\.conv1\.weight, .* and \d+ more$"):
        to_zoo(deep, SPEC)


def test_stems_are_told_apart() -> None:
    spec = BY_NAME["maskformer_deep_stem"]
    state = {k: v for k, v in official_state(spec).items() if ".stem.conv2." not in k and ".stem.conv3." not in k}
    with pytest.raises(ValueError, match=r"10 missing: backbone\.stem\.conv2\.weight, "):
        to_zoo(state, spec)
    with pytest.raises(ValueError, match=r"15 unknown: backbone\.stem\.conv2\.weight, .*; 2 of another shape: "):
        to_zoo(official_state(spec), dataclasses.replace(spec, backbone="resnet50"))


def test_the_way_back_is_strict_too(state: dict[str, Tensor]) -> None:
    zoo, _ = to_zoo(state, SPEC)
    zoo["head.extra.weight"] = zoo.pop("head.class_embed.bias")
    with pytest.raises(ValueError, match=r"1 unknown: head\.extra\.weight; 1 missing: head\.class_embed\.bias$"):
        to_official(zoo, SPEC)
    zoo["head.class_embed.bias"] = torch.zeros(3)
    del zoo["head.extra.weight"]
    with pytest.raises(ValueError, match=r"1 of another shape: head\.class_embed\.bias \(3,\) instead of \(6,\)$"):
        to_official(zoo, SPEC)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"backbone": "convnextv2_a", "args": {}}, "no official release has the backbone 'convnextv2_a'"),
        ({"neck": "fam"}, "no official release has the head and neck of 'tiny_maskformer_fapn'; those that have: "),
        ({"args": SPEC.args | {"neck_dialect": "detectron2"}}, "no official release has the head and neck"),
    ],
)
def test_models_without_a_release(state: dict[str, Tensor], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        to_zoo(state, dataclasses.replace(SPEC, **changes))


def test_choices_that_no_release_made(state: dict[str, Tensor]) -> None:
    """A per-pixel head without mask features: the release's have no place in it."""
    spec = dataclasses.replace(BY_NAME["perpixel"], args=BY_NAME["perpixel"].args | {"head_mask_channels": 0})
    with pytest.raises(ValueError, match=r"2 unknown: sem_seg_head\.pixel_decoder\.mask_features\.weight"):
        to_zoo(official_state(BY_NAME["perpixel"]), spec)


def test_other_preprocessing_is_said(state: dict[str, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        to_zoo(state | {"pixel_mean": torch.tensor(SPEC.data.mean).view(3, 1, 1)}, SPEC)
        assert not caplog.records
        to_zoo(state | {"pixel_std": torch.ones(3, 1, 1)}, SPEC)
    words = "pixel_std of the checkpoint is [1.0, 1.0, 1.0], but the model is made for [58.395, 57.12, 57.375]"
    assert words in caplog.text


def test_older_files_of_pointrend_hold_its_preprocessing(caplog: pytest.LogCaptureFixture) -> None:
    spec = dataclasses.replace(BY_NAME["pointrend_fpn"], data=get_spec("pointrend_fpn_resnet101_cityscapes")[0].data)
    state = official_state(spec)
    mean = torch.tensor((103.53, 116.28, 123.675)).view(3, 1, 1)
    with caplog.at_level(logging.WARNING):
        zoo, dropped = to_zoo(state | {"pixel_mean": mean, "pixel_std": torch.ones(3, 1, 1)}, spec)
    assert not caplog.records and set(dropped) == {"pixel_mean", "pixel_std"} and len(zoo) == len(state)


@pytest.mark.parametrize("window", [2, 7, 12])
def test_relative_position_index(window: int) -> None:
    """Token by token: equal displacements have equal rows, counted along columns, then rows, from the upper left."""
    index = relative_position_index(torch.empty((2 * window - 1) ** 2, 3))
    assert index.dtype == torch.int64 and index.shape == (window**2, window**2)
    rows = sorted(
        {
            (qy - ky, qx - kx)
            for qy in range(window)
            for ky in range(window)
            for qx in range(window)
            for kx in range(window)
        }
    )
    for query in range(window**2):
        for key in (0, window, window**2 - 1, query):
            (qy, qx), (ky, kx) = divmod(query, window), divmod(key, window)
            assert rows[index[query, key]] == (qy - ky, qx - kx)
