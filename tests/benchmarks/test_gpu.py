"""tests/benchmarks/gpu.py: what fails takes nothing else along."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.unit


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("triton", reason="needs triton")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import gpu

    return gpu


@pytest.mark.parametrize("broken", ["ours", "torchvision", "conv", "everything"])
def test_rows_stay_when_something_fails(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    from triton import OutOfResources

    make_call = gpu.make_call

    def make(contender: str, *arguments: Any) -> Callable[..., Any]:
        def fail() -> None:
            raise OutOfResources(2, 1, "shared memory")

        return fail if contender.startswith(broken) else make_call(contender, *arguments)

    def forget(*arguments: Any) -> None:
        raise KeyError("no memory to ask for")

    monkeypatch.setattr(gpu, "make_call", make)
    if broken == "everything":
        monkeypatch.setattr(gpu, "measure", forget)
    options = SimpleNamespace(shapes=gpu.DRY_SHAPES, dtypes=["float32"], rounds=1, out=tmp_path)
    good = gpu.measure_all(options, gpu.Timer("cpu"), {"device": "cpu"})
    with open(tmp_path / "deform_conv_gpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # Torchvision is not expected to run everything; ours is.
    assert good == (broken in ("torchvision", "conv"))
    assert len(rows) == (0 if broken == "everything" else 2)
    for row in rows:
        times = {name.removesuffix("_ms") for name in row if name.removesuffix("_ms") in gpu.CONTENDERS}
        assert times == {name for name in gpu.CONTENDERS if not name.startswith(broken)}
        assert float(row["bytes_floor_ms"]) > 0
        assert ("ratio_to_torchvision" in row) == (broken == "conv") and ("over_floor" in row) == (broken != "ours")


def test_parts_go_on_after_one_that_fails(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = []

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(gpu, "measure_kernels", fail)
    monkeypatch.setattr(gpu.gpu_processes, "measure_models", lambda *arguments: done.append("models"))
    monkeypatch.setattr(gpu.gpu_processes, "measure_realtime", lambda *arguments: done.append("realtime") is None)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: times, models failed"):
        gpu.main()
    assert done == ["models", "realtime"]
    out, err = capfd.readouterr()
    assert "disk full" in err and "realtime: done" in out


def test_a_process_that_hangs_is_ended(gpu: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    assert not gpu.gpu_processes.finish(gpu.gpu_processes.start(["-c", "import time; time.sleep(600)"]), 0.5)
    assert time.perf_counter() - start < 60
    assert "ended after 0.5 s" in capfd.readouterr().out
    assert gpu.gpu_processes.finish(gpu.gpu_processes.start(["-c", "pass"]), 60)
    assert not gpu.gpu_processes.finish(gpu.gpu_processes.start(["-c", "raise SystemExit(1)"]), 60)
