"""PointRend through the common loop: it learns, and neither micro-batches, processes nor kills change its points."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toys.resuming import check_resumes, losses_of

from fapn_zoo.create import create_model
from fapn_zoo.evaluate import evaluate
from fapn_zoo.modules.heads import pointrend
from fapn_zoo.train.loop import train
from fapn_zoo.train.recipes import find_recipe
from fapn_zoo.train.settings import Settings, load_recipe, parse_overrides

pytestmark = pytest.mark.train
NARROW = {"neck_out_channels": 16, "head_channels": 16, "head_point_channels": 16, "head_train_points": 64}


@pytest.fixture
def narrow(tiny: Settings) -> Settings:
    """No batch norm: its statistics are those of a micro-batch, by definition."""
    return tiny.replace(model="pointrend_fpn", model_args=NARROW | {"backbone_norm": "frozen_bn"}, optimizer="sgd")


def test_it_learns_by_the_recipe_for_folders(pictures: Path, tmp_path: Path) -> None:
    words = [f"data={pictures}", "model=pointrend_fapn", "backbone=test_efficientnet", f"out={tmp_path / 'run'}"]
    words += ["steps=60", "batch_size=4", "crop=32,48", "lr=3e-3", "model_args.neck_out_channels=16"]
    words += ["model_args.head_channels=16", "model_args.head_point_channels=16", "threads=1"]
    settings = parse_overrides(words, load_recipe(str(find_recipe("finetune_folder"))))
    folder = train(settings)
    first, *_, last = losses_of(settings)
    assert all(last[name] < 0.7 * first[name] for name in first), (first, last)
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert report["miou"] > 0.5
    model = create_model(f"local-dir:{folder}", pretrained=True)
    assert model.spec.head == "pointrend"
    assert evaluate(model, str(pictures), "val", progress=False)["miou"] == report["miou"]
    windows = evaluate(model, str(pictures), "val", window=48, progress=False)
    several = evaluate(model, str(pictures), "val", scales=(1.0, 1.5), flip=True, boundary=True, progress=False)
    assert windows["miou"] > 0.4 and several["boundary"]["boundary_iou"] is not None


def test_micro_batches_change_no_gradient(narrow: Settings, tmp_path: Path) -> None:
    whole = narrow.replace(val_data="none", steps=4)
    parts = whole.replace(micro_batch=3, out=str(tmp_path / "parts"))  # uneven: 3 + 1
    a, b = (load_file(train(settings) / "model.safetensors") for settings in (whole, parts))
    torch.testing.assert_close(losses_of(parts), losses_of(whole), rtol=1e-4, atol=1e-5)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5, msg=name)


def test_two_processes_equal_one(narrow: Settings, tmp_path: Path, start: Any) -> None:
    one = narrow.replace(val_data="none", steps=3)
    two = one.replace(out=str(tmp_path / "two"))
    process = start(two, processes=2)
    train(one)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    torch.testing.assert_close(losses_of(two), losses_of(one), rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(
    narrow: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = narrow.replace(val_data="none", steps=6, checkpoint_every=2, model="pointrend_fapn")
    check_resumes(whole, 4, tmp_path, monkeypatch)


def test_every_step_draws_other_points(narrow: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, real = [], pointrend.training_points

    def noted(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        drawn.append(real(logits, *rest))
        return drawn[-1]

    monkeypatch.setattr(pointrend, "training_points", noted)
    train(narrow.replace(val_data="none", steps=2))
    assert len(drawn) == 2
    images = torch.cat(drawn)
    assert len({tuple(image.flatten().tolist()) for image in images}) == len(images) == 8


def test_one_class_is_refused_as_everywhere(narrow: Settings, pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "one"
    shutil.copytree(pictures, data)
    for path in data.glob("*/labels/*.png"):
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(path)
    (data / "classes.json").write_text(json.dumps({"names": ["ground"], "ignore_index": 255}))
    with pytest.raises(ValueError, match="one class only, 'ground', so that every answer is right"):
        train(narrow.replace(data=str(data)))
    assert not Path(narrow.out).exists()


def test_half_precision(narrow: Settings) -> None:
    train(narrow.replace(val_data="none", steps=2, amp="bf16"))
    assert all(0 < line["point"] < 3 for line in losses_of(narrow))


def test_a_frozen_head_still_has_its_loss(narrow: Settings) -> None:
    train(narrow.replace(val_data="none", steps=2, freeze="head", class_weights=(1.0, 2.0, 3.0)))
    assert all(line["point"] > 0 for line in losses_of(narrow))
