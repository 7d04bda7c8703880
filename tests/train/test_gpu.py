"""Every head trains on a GPU as it does on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
SETTINGS = (
    "backbone=resnet18 data=scenes:4@96x128 val_data=none crop=96,128 scale=1,1 steps=2 batch_size=2 log_every=1 "
    "lr=1e-4 checkpoint_every=0 model_args.neck_out_channels=64"
)
RUNS = [
    "perpixel_fapn class_weights=1,2,1,1,1,1,1,1,1,1,1",
    "semantic_fpn_fapn",
    "pointrend_fapn",
    "maskformer_fapn",
    "maskformer_fapn task=panoptic",
    "maskformer_fapn task=instance",
    "faster_rcnn_fapn",
    "mask_rcnn_fapn",
    "pointrend_rcnn_fapn",
    "panoptic_fpn_fapn",
    "panoptic_fcn_fapn",
]


def losses(words: list[str], out: Path, **environment: str) -> list[float]:
    code = "import sys; from fapn_zoo.train.loop import train; from fapn_zoo.train.settings import parse_overrides;"
    command = [sys.executable, "-c", f"{code} train(parse_overrides(sys.argv[1:]))", *words, f"out={out}"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("run", RUNS)
def test_losses_are_those_of_the_cpu(run: str, tmp_path: Path) -> None:
    words = [*f"model={run}".split(), *SETTINGS.split()]
    exact = losses([*words, "amp=no"], tmp_path / "cpu", ACCELERATE_USE_CPU="1")
    # convolutions round to TF32 on a GPU, and matches or samples may turn on that
    assert losses([*words, "amp=no"], tmp_path / "gpu") == pytest.approx(exact, rel=0.03)
    assert losses([*words, "amp=bf16"], tmp_path / "half") == pytest.approx(exact, rel=0.1)
