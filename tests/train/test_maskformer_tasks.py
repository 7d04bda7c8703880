"""MaskFormer trained for another task than its head's first: the task travels, and a resumed run ends the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toys.resuming import check_resumes

from fapn_zoo.create import create_model
from fapn_zoo.evaluate import evaluate
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings

pytestmark = pytest.mark.train
NARROW = {"neck_out_channels": 16, "head_mask_channels": 16, "head_channels": 32, "head_layers": 2}
NARROW |= {"head_feedforward": 32, "head_heads": 4, "head_num_queries": 12}


@pytest.fixture
def scenes(tiny: Settings) -> Settings:
    changes = {"model": "maskformer_fpn", "model_args": NARROW, "data": "scenes:4@48x64", "val_data": "none"}
    return tiny.replace(**changes, batch_size=2, steps=4, crop=(48, 64), scale=(1.0, 1.0))


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_the_task_travels_with_the_weights(scenes: Settings, task: str) -> None:
    folder = train(scenes.replace(task=task, steps=60, colour_jitter=0.0))
    lines = [json.loads(line) for line in (Path(scenes.out) / "log.jsonl").read_text().splitlines()]
    first, last = (sum(line["loss"] for line in part) for part in (lines[:5], lines[-5:]))
    assert last < 0.7 * first
    model = create_model(f"local-dir:{folder}", pretrained=True)
    assert model.spec.task == task
    report = evaluate(model, "scenes:2@48x64", "val", limit=1, progress=False)
    assert report["task"] == task
    assert model.predict(torch.zeros(3, 48, 64, dtype=torch.uint8)).task == task
    assert model.predict(torch.zeros(3, 48, 64, dtype=torch.uint8), task="semantic").task == "semantic"


def test_a_resumed_run_ends_with_the_same_bits(
    scenes: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scenes.replace(task="instance", checkpoint_every=2)
    check_resumes(whole, 3, tmp_path, monkeypatch)


def test_a_task_that_the_head_does_not_answer_is_refused(scenes: Settings) -> None:
    with pytest.raises(ValueError, match="task 'detection'; .* has semantic, panoptic, instance"):
        train(scenes.replace(task="detection"))
    assert not Path(scenes.out).exists()
