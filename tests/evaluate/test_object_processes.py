"""Panoptic and instance evaluation by one process, by two, and after a kill: the same report to the last digit."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.panoptic import OddScenes, Oracle, Painted, mistaken

from fapn_zoo.evaluate import evaluate

pytestmark = pytest.mark.train
IMAGES = 24
CHANGING = ("seconds", "date", "command", "commit", "weights", "versions")
CODE = """
import json, sys
from toys.panoptic import OddScenes, Oracle, Painted, mistaken
from fapn_zoo.evaluate import evaluate, state, write_report
from fapn_zoo.runtime.processes import processes
count, tasks, resume, out = json.loads(sys.argv[1])
state.SECONDS = 0  # a part after every image
for task in tasks:
    data = Painted(OddScenes(f"scenes:{count}", "test"), crowds=4, void=7)
    report = evaluate(Oracle(mistaken), data, task=task, progress=False, resume=resume, batch_size=2)
    write_report(report, json=f"{out}.{task}.{processes().rank}")
"""


def lasting(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in CHANGING}


def expected(task: str) -> dict[str, Any]:
    data = Painted(OddScenes(f"scenes:{IMAGES}", "test"), crowds=4, void=7)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes below, and as the report says
    try:
        return lasting(evaluate(Oracle(mistaken), data, task=task, progress=False, batch_size=2))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def start(launch: Callable[..., subprocess.Popen], tmp_path: Path) -> Callable[..., subprocess.Popen]:
    def run(tasks: list[str], out: str, resume: Path | None = None, processes: int = 1) -> subprocess.Popen:
        return launch(CODE, [IMAGES, tasks, None if resume is None else str(resume), str(tmp_path / out)], processes)

    return run


def finish(process: subprocess.Popen, out: Path, task: str, processes: int) -> list[dict[str, Any]]:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return [lasting(json.loads(Path(f"{out}.{task}.{rank}").read_text())) for rank in range(processes)]


def test_two_processes_report_what_one_reports(start, tmp_path: Path):
    process = start(["panoptic", "instance"], "two", processes=2)
    alone = {task: expected(task) for task in ("panoptic", "instance")}
    assert 0 < alone["panoptic"]["pq"] < 1 and 0 < alone["instance"]["ap"] < 1
    for task, report in alone.items():
        assert finish(process, tmp_path / "two", task, 2) == [report, report]


def test_killed_and_finished_by_two(start, tmp_path: Path):
    state = tmp_path / "state"

    def parts() -> int:
        return len(list(state.glob("part-*.npz")))

    process = start(["instance"], "never", state)
    deadline = time.monotonic() + 120
    while parts() < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert 3 <= parts() < IMAGES, "not killed midway"
    report = expected("instance")
    assert finish(start(["instance"], "two", state, 2), tmp_path / "two", "instance", 2) == [report, report]
    assert parts() == IMAGES and not list(tmp_path.glob("never.*"))
