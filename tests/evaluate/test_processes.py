"""One process, two processes, and a killed evaluation that others finish: the same report to the last digit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.evaluation import small_model

import fapn_zoo
from fapn_zoo.data.scenes import CLASSES
from fapn_zoo.evaluate import evaluate

pytestmark = pytest.mark.train
DATA = "scenes:41@48x64"
OPTIONS = {"batch_size": 2, "boundary": True, "flip": True}
CHANGING = ("seconds", "date", "command", "commit", "weights")
CODE = """
import json, os, sys
from fapn_zoo import create_model
from fapn_zoo.evaluate import evaluate, state, write_report
from fapn_zoo.runtime.processes import processes
folder, data, resume, out, options = json.loads(sys.argv[1])
state.SECONDS = 0  # a part after every image
open(f"{out}.pid.{os.environ.get('RANK', 0)}", "w").write(str(os.getpid()))
model = create_model("local-dir:" + folder, pretrained=True)
report = evaluate(model, data, progress=False, resume=resume, **options)
write_report(report, json=out + "." + str(processes().rank))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(names=tuple(CLASSES)).save(tmp_path_factory.mktemp("weights") / "net")


@pytest.fixture(scope="module")
def expected(weights: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes below: another split of a convolution rounds differently
    try:
        model = fapn_zoo.create_model(f"local-dir:{weights}", pretrained=True)
        return lasting(evaluate(model, DATA, progress=False, **OPTIONS))
    finally:
        torch.set_num_threads(threads)


def lasting(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in CHANGING}


@pytest.fixture
def start(launch: Callable[..., subprocess.Popen], weights: Path, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts an evaluation on its own or on several processes: `start("out.json", resume=..., processes=2)`."""

    def run(out: str, resume: Path | None = None, processes: int = 1) -> subprocess.Popen:
        values = [str(weights), DATA, None if resume is None else str(resume), str(tmp_path / out), OPTIONS]
        return launch(CODE, values, processes)

    return run


def finish(process: subprocess.Popen, out: Path, processes: int = 1) -> list[dict[str, Any]]:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return [lasting(json.loads(Path(f"{out}.{rank}").read_text())) for rank in range(processes)]


def parts(state: Path) -> int:
    return len(list(state.glob("part-*.npz")))


def test_two_processes_report_what_one_reports(start, expected, tmp_path: Path):
    assert expected["images"] == 41 and expected["miou"] and expected["boundary"]["band_3"]
    assert finish(start("two", processes=2), tmp_path / "two", 2) == [expected, expected]


def test_killed_and_resumed_by_any_number_of_processes(start, weights, expected, tmp_path: Path):
    state = tmp_path / "state"
    for processes, enough in ((1, 3), (2, 10)):
        before = parts(state)
        process = start(f"never{processes}", state, processes)
        deadline = time.monotonic() + 120
        while parts(state) < before + enough and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        for file in tmp_path.glob(f"never{processes}.pid.*"):  # the workers themselves: torchrun's death is not theirs
            os.kill(int(file.read_text()), signal.SIGKILL)
        process.wait()
        assert before + enough <= parts(state) < 41, "not killed midway"
        assert not list(tmp_path.glob(f"never{processes}.?")), "a killed evaluation has no report"
    assert finish(start("two", state, 2), tmp_path / "two", 2) == [expected, expected]
    model = fapn_zoo.create_model(f"local-dir:{weights}", pretrained=True)
    model.forward = None  # all is done: nothing is run
    assert lasting(evaluate(model, DATA, progress=False, resume=state, **OPTIONS)) == expected
    assert parts(state) == 41


def test_a_foreign_state_stops_all_processes(start, tmp_path: Path):
    state = tmp_path / "state"
    state.mkdir()
    (state / "state.json").write_text(json.dumps({"format": 4, "model": "other"}))
    process = start("never", state, 2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode and "holds another evaluation: model (was 'other', now 'perpixel_fpn" in errors
    assert parts(state) == 0
