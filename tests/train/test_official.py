"""The official trainings: each makes settings, one of a family starts, and numbers are those of the configs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fapn_zoo.train.loop import train
from fapn_zoo.train.recipes import TRAININGS, trainings
from fapn_zoo.train.settings import load_recipe
from fapn_zoo.zoo.parts import HEADS
from fapn_zoo.zoo.registry import get_spec, list_models

pytestmark = pytest.mark.train
NARROW = {"neck_out_channels": 32}
RCNN = NARROW | {"head_hidden": 16, "head_anchor_sides": (8, 16, 32, 64, 128), "head_train_proposals": 50}
STARTS = {
    "faster_rcnn_fapn_resnet50_coco.1x": RCNN,
    "mask_rcnn_fpn_resnet101_coco.3x": RCNN,
    "pointrend_rcnn_fapn_resnet50_coco.1x": RCNN,
    "panoptic_fpn_fapn_resnet50_coco.1x": RCNN,
    "panoptic_fcn_fapn_resnet50_600_coco.3x": NARROW,
    "pointrend_fapn_resnet50_cityscapes": NARROW | {"head_train_points": 32},
    "maskformer_fapn_resnet50_ade20k": NARROW | {"head_layers": 1, "head_num_queries": 8},
}


def test_every_training_makes_settings_and_every_row_has_a_model() -> None:
    used = [id(found) for name in list_models() if (found := trainings(name))]
    assert {id(row["schedules"]) for row in TRAININGS} == set(used)
    for name in list_models():
        for schedule in trainings(name):
            settings = load_recipe(f"official/{name}.{schedule}")
            assert settings.model == name and settings.out == f"runs/{name}.{schedule}"
        for tag in get_spec(name)[0].weights:  # a released schedule is one that can be asked for
            assert not trainings(name) or tag in trainings(name), (name, tag)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mask_rcnn_fapn_resnet101_coco", {"steps": 270_000, "lr": 0.02, "batch_size": 16, "max_side": 1333}),
        ("faster_rcnn_fapn_resnet50_coco", {"steps": 90_000, "warmup_steps": 1000, "warmup_factor": 1e-3}),
        ("panoptic_fcn_fapn_resnet50_coco", {"clip_value": 35.0, "lr": 0.01, "schedule": "poly", "steps": 90_000}),
        ("panoptic_fcn_fapn_resnet50_600_coco", {"short_sides": (440, 472, 504, 536, 568, 600), "max_side": 1000}),
        ("pointrend_fapn_resnet50_cityscapes", {"crop": (512, 1024), "crop_category_max": 0.75, "batch_size": 32}),
        ("maskformer_fapn_resnet101_cocostuff10k", {"steps": 60_000, "batch_size": 32, "backbone_lr_mult": 0.1}),
        ("maskformer_fapn_swin_l_ade20k", {"lr": 6e-5, "warmup_steps": 1500, "warmup_factor": 1e-6}),
    ],
)  # fmt: skip
def test_numbers_of_the_configs(name: str, values: dict) -> None:
    found = load_recipe(f"official/{name}").to_dict()
    assert {key: found[key] for key in values} == json.loads(json.dumps(values))


def test_ade20k_sides_are_those_of_the_config() -> None:
    sides = load_recipe("official/maskformer_fpn_resnet50_ade20k").short_sides
    assert sides[:3] == (256, 307, 358) and sides[-1] == 1024 and len(sides) == 16


@pytest.mark.parametrize("name", STARTS)
def test_one_of_a_family_starts_evaluates_and_goes_on(name: str, tmp_path: Path) -> None:
    if not HEADS[get_spec(name)[0].head].loss:
        pytest.skip("this head cannot be trained yet")
    official = load_recipe(f"official/{name}")
    small = {"crop": (64, 96)} if min(official.crop) else {"max_side": 96}
    settings = official.replace(
        backbone="test_efficientnet", pretrained_backbone=False, model_args=STARTS[name], data="scenes:4@64x96",
        val_data="scenes:1@64x96", short_sides=(48, 64), test_size=0, batch_size=2, steps=2, checkpoint_every=1,
        threads=1, log_every=1, out=str(tmp_path / "run"), **small,
    )  # fmt: skip
    train(settings)
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["images"] == 1
    shutil.rmtree(tmp_path / "run" / "checkpoint" / "step-00000002")  # as if it had been stopped after the first
    train(settings.replace(resume="auto"))
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights


def test_unknown_ones_are_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no official training of 'perpixel_fpn_resnet50_ade20k'.*mask_rcnn_fapn"):
        load_recipe("official/perpixel_fpn_resnet50_ade20k")
    with pytest.raises(ValueError, match="no official training '9x'; it has 1x, 3x"):
        load_recipe("official/mask_rcnn_fapn_resnet50_coco.9x")
    with pytest.raises(ValueError, match="unknown model 'mask_rcnn_fapn_resnet50_cocoo'; nearest"):
        load_recipe("official/mask_rcnn_fapn_resnet50_cocoo")
