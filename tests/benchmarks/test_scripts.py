"""The scripts of tests/benchmarks run, and write what hub/tables.py reads."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


def rows_of(script: str, out: Path, *arguments: str) -> list[dict[str, str]]:
    """What a script writes, run in a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / script), *arguments, "--csv", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    with open(out, newline="") as file:
        return list(csv.DictReader(file))


def test_deform_conv(tmp_path):
    rows = rows_of("deform_conv.py", tmp_path / "out.csv", "--shapes", "7", "--rounds", "1", "--threads", "1")
    assert [(row["contender"], row["dtype"]) for row in rows[:5]] == [
        ("ours", "float32"), ("torchvision", "float32"), ("conv", "float32"), ("ours", "bfloat16"), ("conv", "bfloat16")
    ]  # fmt: skip
    assert len(rows) == 10 and {row["pass"] for row in rows} == {"forward", "forward+backward"}
    for row in rows:
        assert float(row["ms"]) > 0
        assert row["contender"] != "torchvision" or row["times_faster_than_torchvision"] == "1.0"
    with open(ROOT / "hub" / "results" / "deform_conv.csv", newline="") as file:
        assert set(next(csv.reader(file))) == set(rows[0]) | {"peak_mib"}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process its peak")
def test_peak_memory_of_deform_conv():
    script = ROOT / "tests" / "benchmarks" / "deform_conv.py"
    command = [sys.executable, str(script), "--peak", "conv", "float32", "forward", "8,64,64,80,8", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    output = 8 * 64 * 64 * 80 * 4 / 2**20
    assert output < float(done.stdout) < 20 * output


def test_models(tmp_path):
    rows = rows_of("models.py", tmp_path / "out.csv", "--groups", "slim", "--rounds", "2", "--device", "cpu")
    assert [row["manner"] for row in rows] == 2 * ["defaults", "fp32", "bf16"]
    assert [row["dtype"] for row in rows if row["manner"] != "defaults"] == 2 * ["fp32", "bf16"]
    assert all(float(row["ms"]) > 0 for row in rows)
    with open(ROOT / "hub" / "results" / "models.csv", newline="") as file:
        counted = {row["model"]: row for row in csv.DictReader(file)}
    for row in rows:
        assert float(row["gmacs"]) == round(int(counted[row["model"]]["macs"]) / 1e9, 1)  # both of the padded input
    twin = "times perpixel_fpn_resnet18_slim_camvid"
    assert [row[twin] for row in rows if row["model"] == twin.removeprefix("times ")] == 3 * ["1.0"]


def test_gpu_without_a_gpu():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "gpu.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: no CUDA device; --dry-run tries the script without one\n"


def test_precision(tmp_path):
    (row,) = rows_of("precision.py", tmp_path / "out.csv", "--data", "scenes:2", "--limit", "2")
    assert 98 < float(row["worst_image_percent"]) <= float(row["agreement_percent"]) <= 100
    assert float(row["float32_ms"]) > 0 and float(row["bfloat16_ms"]) > 0 and row["images"] == "2"
