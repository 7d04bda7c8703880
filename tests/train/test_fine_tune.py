"""What a fine-tune on one's own data depends on: class rows by name, weights of classes, losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings

pytestmark = pytest.mark.train


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
