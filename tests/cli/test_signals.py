"""A verb that is asked to stop: what is done stays, the summary says that it is not all, the exit code who asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.train, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")]
COUNT = 60


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(COUNT):
        Image.fromarray(np.full((240, 320, 3), i, np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    running = []

    def begin(*words: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "fapn_zoo.cli", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.parametrize(
    "signals, code",
    [
        ([signal.SIGTERM] * 3, 143),  # `timeout` asks its child and then the whole group
        ([signal.SIGINT], 130),
        ([signal.SIGHUP], 129),
    ],
)
def test_predict_leaves_its_summary(
    start: Callable[..., subprocess.Popen], photos: Path, tmp_path: Path, signals: list[int], code: int
) -> None:
    out = tmp_path / "out"
    process = start("predict", photos, "--out", out)
    wait_for(lambda: len(list(out.glob("[0-9]*_labels.png"))) > 2, process)
    for number in signals:
        process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == code and err.splitlines()[-1] == "interrupted" and "Traceback" not in err
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert not summary["complete"] and 1 < len(summary["images"]) < COUNT
    for entry in summary["images"]:
        for kind in ("overlay", "labels"):
            with Image.open(out / entry[kind]) as picture:
                picture.load()
    assert not list(out.glob("*.part")) and not list(out.glob(".*"))


def test_before_there_is_anything(start: Callable[..., subprocess.Popen], photos: Path, tmp_path: Path) -> None:
    """While libraries are imported and the model is read."""
    process = start("predict", photos, "--out", tmp_path / "out")
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: not maps.exists() or "libtorch" in maps.read_text(), process)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and err.splitlines()[-1] == "interrupted" and "Traceback" not in err


def test_eval_says_how_to_go_on(start: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    state = tmp_path / "state"
    words = ("eval", "perpixel_fapn_resnet18_slim_camvid", "--data", "scenes:400@240x320", "--resume", state)
    process = start(*words)
    wait_for(lambda: (state / "state.json").exists(), process)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 143, err
    assert err.splitlines()[-1] == f"interrupted: go on with --resume {state}"
