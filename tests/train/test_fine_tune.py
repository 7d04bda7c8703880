"""What a fine-tune on one's own data depends on: class rows by name, weights of classes, losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings, parse_overrides

pytestmark = pytest.mark.train
NO_BATCH_NORM = {"neck_out_channels": 16, "head_mask_channels": 16, "neck_norm": "gn", "backbone_norm": "frozen_bn"}


def test_a_run_for_other_classes_starts_with_the_rows_of_those_it_knows(tiny: Settings, pictures: Path, tmp_path: Path):
    first = train(tiny.replace(steps=2))
    data = tmp_path / "turned"
    shutil.copytree(pictures, data)
    (data / "classes.json").write_text(json.dumps({"names": ["sign", "ground", "dog"], "ignore_index": 255}))
    second = tiny.replace(data=str(data), checkpoint_path=str(first), steps=0, out=str(tmp_path / "second"))
    folder = train(second)
    old, new = (load_file(f / "model.safetensors")["head.predictor.weight"] for f in (first, folder))
    assert torch.equal(new[:2], old[[2, 0]]) and not torch.equal(new[2], old[1])
    told = json.loads((folder / "config.json").read_text())["training"]
    assert told["classes_kept"] == "sign, ground" and told["classes_new"] == "dog"


@pytest.mark.parametrize("loss", ["ce+dice", "ohem", "lovasz"])
def test_losses_are_trained_by_however_the_batch_is_spread(tiny: Settings, tmp_path: Path, loss: str):
    steady = tiny.replace(loss=loss, model_args=NO_BATCH_NORM, val_data="none", steps=12)
    runs = [train(steady.replace(micro_batch=size, out=str(tmp_path / f"{size}"))) for size in (0, 1)]
    lines = [[json.loads(line) for line in (run.parent / "log.jsonl").read_text().splitlines()] for run in runs]
    losses = [[line["loss"] for line in one] for one in lines]
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-4)  # rounding grows with AdamW
    assert sum(losses[0][-3:]) < sum(losses[0][:3])
    assert ("dice" in lines[0][0]) == (loss == "ce+dice")
    with pytest.raises(ValueError, match="loss is for per-pixel heads; this loss balances masks"):
        train(tiny.replace(loss=loss, model="maskformer_fpn", model_args={}, out=str(tmp_path / "masks")))


def test_weights_of_classes_are_counted(tiny: Settings, pictures: Path):
    folder = train(tiny.replace(class_weights="auto", steps=1))
    values = np.concatenate([np.asarray(Image.open(f)).ravel() for f in sorted(pictures.glob("train/labels/*.png"))])
    shares = np.bincount(values[values != 255], minlength=3) / (values != 255).sum()
    told = json.loads((folder / "config.json").read_text())["training"]["class_weights"]
    assert told == pytest.approx((1 / np.log(1.02 + shares)).tolist(), abs=1e-3)
    assert json.loads((folder.parent / "settings.json").read_text())["class_weights"] == "auto"
    train(tiny.replace(class_weights="auto", steps=1, resume="auto"))
    with pytest.raises(ValueError, match="class_weights is for per-pixel heads"):
        train(tiny.replace(class_weights="auto", model="maskformer_fpn", model_args={}, out=tiny.out + "2"))
    assert parse_overrides(["class_weights=auto"]).class_weights == "auto"
    with pytest.raises(ValueError, match="class_weights must be of type"):
        parse_overrides(["class_weights=automatic"])
    with pytest.raises(ValueError, match="class_weights must be of type"):
        Settings(class_weights="some")
