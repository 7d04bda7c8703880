"""The scripts of tests/benchmarks run, and write what hub/tables.py reads."""

from __future__ import annotations

import csv
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests" / "benchmarks"
RowsOf = Callable[..., list[dict[str, str]]]


@pytest.fixture
def rows_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RowsOf]:
    """What a script writes. It runs in this process, which has torch and timm already, as if it were called."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # rcnn.py would set it for good
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(script: str, *arguments: str) -> list[dict[str, str]]:
        out = tmp_path / "out.csv"
        monkeypatch.setattr(sys, "argv", [script, *arguments, "--csv", str(out)])
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        with open(out, newline="") as file:
            return list(csv.DictReader(file))

    yield run
    torch.set_num_threads(threads)


def test_rcnn(rows_of: RowsOf) -> None:
    rows = rows_of("rcnn.py", "--models", "faster_rcnn", "--size", "64", "--threads", "1", "--rounds", "1")
    assert [row["contender"] for row in rows] == 2 * ["torchvision", "fpn", "fapn"]
    assert [row["manner"] for row in rows] == 3 * ["fp32"] + 3 * ["defaults"]
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert len({(row["proposals"], row["detections"]) for row in rows if row["contender"] != "torchvision"}) == 1
    assert all(int(row["proposals"]) > 50 and int(row["detections"]) > 5 for row in rows)
    assert [float(row["times_fpn"]) for row in rows if row["contender"] == "fpn"] == [1, 1]
    rows = rows_of("rcnn.py", "--models", "--merge", "480x640", "--threads", "1", "--rounds", "1")
    assert [(row["model"], row["contender"]) for row in rows] == [("merge", "full masks"), ("merge", "ours")]
    assert float(rows[1]["times_faster_than_full_masks"]) > 3


def test_half_precision(rows_of: RowsOf) -> None:
    rows = rows_of("half_precision.py", "--shapes", "plain", "groups", "--seeds", "1")
    found = {(row["dtype"], row["offsets"], row["contender"]): row for row in rows}
    assert len(found) == len(rows) == 14
    for offsets in ("2 px", "50 px"):
        ours, theirs = (found["float16", offsets, name] for name in ("numba", "torchvision"))
        assert float(ours["output_percent"]) < float(theirs["output_percent"]) < 5
    with open(ROOT / "hub" / "results" / "deform_conv_half.csv", newline="") as file:
        assert set(next(csv.reader(file))) == set(rows[0])


def test_deform_conv(rows_of: RowsOf) -> None:
    rows = rows_of("deform_conv.py", "--shapes", "7", "--rounds", "1", "--threads", "1")
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
def test_peak_memory_of_deform_conv() -> None:
    script = SCRIPTS / "deform_conv.py"
    command = [sys.executable, str(script), "--peak", "conv", "float32", "forward", "8,64,64,80,8", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    output = 8 * 64 * 64 * 80 * 4 / 2**20
    assert output < float(done.stdout) < 20 * output


def test_models(rows_of: RowsOf) -> None:
    rows = rows_of("models.py", "--groups", "slim", "--rounds", "2", "--device", "cpu")
    assert [row["manner"] for row in rows] == 2 * ["defaults", "fp32", "bf16"]
    assert [row["dtype"] for row in rows if row["manner"] != "defaults"] == 2 * ["fp32", "bf16"]
    assert all(float(row["ms"]) > 0 for row in rows)
    with open(ROOT / "hub" / "results" / "models.csv", newline="") as file:
        counted = {row["model"]: row for row in csv.DictReader(file)}
    for row in rows:
        assert float(row["gmacs"]) == round(int(counted[row["model"]]["macs"]) / 1e9, 1)  # both of the padded input
    twin = "times perpixel_fpn_resnet18_slim_camvid"
    assert [row[twin] for row in rows if row["model"] == twin.removeprefix("times ")] == 3 * ["1.0"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_gpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="^error: no CUDA device; --dry-run tries the script without one$"):
        runpy.run_path(str(SCRIPTS / "gpu.py"), run_name="__main__")


def test_precision(rows_of: RowsOf) -> None:
    (row,) = rows_of("precision.py", "--data", "scenes:2@180x240", "--limit", "2")
    assert 98 < float(row["worst_image_percent"]) <= float(row["agreement_percent"]) <= 100
    assert float(row["float32_ms"]) > 0 and float(row["bfloat16_ms"]) > 0 and row["images"] == "2"


def test_revisions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One process for real; then three rounds of given times, of which the first does not count."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import revisions

    found = revisions.child(ROOT, 1)
    assert set(found) == {"import", "list_models", "predict", "eval"} and min(found.values()) > 0
    times = {"before": iter([9.0, 0.1, 0.3]), "after": iter([9.0, 0.2, 0.2])}
    turns = []

    def child(tree: Path, calls: int) -> dict[str, float]:
        turns.append(tree.name)
        return {"import": next(times[tree.name])}

    monkeypatch.setattr(revisions, "child", child)
    monkeypatch.setattr(revisions, "unpack", lambda revision, folder: folder)
    monkeypatch.setattr(sys, "argv", ["revisions.py", "--rounds", "2", "--csv", str(tmp_path / "out.csv")])
    revisions.main()
    with open(tmp_path / "out.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert turns == ["after", "before", "before", "after", "after", "before"]
    assert (row["what"], row["before_ms"], row["after_ms"], row["ratio"]) == ("import", "200.00", "200.00", "1.000")


def test_data_opening(rows_of: RowsOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it in this process: a dozen others would take a minute."""
    import data_opening

    from fapn_zoo.data import check_samples

    monkeypatch.setattr(check_samples._Split, "check", check_samples._Split.check)  # given back in the end
    monkeypatch.setattr(data_opening, "LINKS", 4)
    calls, real = [], subprocess.run

    def run(command: list[str], **options: object) -> object:
        if "--child" not in command:  # git is asked for the commit
            return real(command, **options)
        way, kind, folder = command[3:6]
        calls.append(way)
        if way == "write":
            data_opening.WRITERS[kind](Path(folder), 1 if kind == "coco" else 9)
        found = {} if way == "write" else data_opening.measure(way, kind, Path(folder))
        return subprocess.CompletedProcess(command, 0, json.dumps(found))

    monkeypatch.setattr(subprocess, "run", run)
    rows = rows_of("data_opening.py", "--rounds", "1")
    assert [row["way"] for row in rows] == 5 * ["open", "check-data"] + ["pycocotools", "torchvision"]
    assert [row["size"] for row in rows[:10:2]] == ["19 files", "19 files", "18 files", "18 files", "1 MiB"]
    assert len(calls) == 5 + len(rows) and all(float(row["seconds"]) >= 0 for row in rows)
    with open(ROOT / "hub" / "results" / "data_opening.csv", newline="") as file:
        assert set(next(csv.reader(file))) == set(rows[0])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of processes what they have spent")
def test_loader(rows_of: RowsOf) -> None:
    rows = rows_of(
        "loader.py", "--sizes", "48x64", "--pictures", "2", "--steps", "1", "--rounds", "1", "--workers", "1"
    )
    assert [row["contender"] for row in rows] == ["ours", "torchvision, tensors", "torchvision, PIL"]
    assert all(float(row["ms"]) > 0 for row in rows) and rows[0]["times_ours"] == "1.00"
    with open(ROOT / "hub" / "results" / "loader_speed.csv", newline="") as file:
        assert set(next(csv.reader(file))) == set(rows[0])
