"""Official weights when processes are killed, interrupted, run at once, or offline, and what mends their folders."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toys.hub.faults import Fault
from toys.hub.official_toys import DRIVE, HTTPS, Toys, assert_whole, cached, parts, predict
from toys.hub.release_server import ReleaseServer

from fapn_zoo.convert import official

pytestmark = pytest.mark.hub

Start = Callable[..., subprocess.Popen]

# What `fapn-zoo` does, after the toys are registered. {before} may change what is to be caught in the act.
PROGRAM = """
import pickle, signal, sys, time
from fapn_zoo import cli
from fapn_zoo.weights import failures
from fapn_zoo.zoo import registry
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
failures.FIRST_PAUSE = 0.05
for spec in pickle.load(open({specs!r}, "rb")):
    registry.register_model(spec)
{before}
codes = [cli.main(["predict", {photo!r}, "--model", name, "--out", {out!r}, "--device", "cpu"]) for name in {names!r}]
print("codes", *codes)
"""
# The folder is converted, and not yet where it belongs.
STOP_AFTER_CONVERSION = """
import fapn_zoo.convert as convert
real = convert.convert_file
def convert_file(*args, **kwargs):
    real(*args, **kwargs)
    print("converted", flush=True)
    time.sleep(600)
convert.convert_file = convert_file
"""


@pytest.fixture
def start(releases: ReleaseServer, toys: Toys, photo: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a program; what still runs at the end of the test is killed."""
    running = []
    specs = tmp_path / "specs.pkl"
    specs.write_bytes(pickle.dumps([toy[0] for toy in toys.values()]))

    def start(*names: str, before: str = "") -> subprocess.Popen:
        code = PROGRAM.format(
            specs=str(specs), before=before, photo=str(photo), out=str(tmp_path / f"out{len(running)}"), names=names
        )
        running.append(
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def wait_until(true: Callable[[], bool], process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


HOLD = Fault("hold", match=r"\.pkl$", fraction=0.6)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_download_that_was_ended_goes_on(
    how: str,
    start: Start,
    releases: ReleaseServer,
    toys: Toys,
    photo: Path,
    tmp_path: Path,
    row: Callable[[str, str], None],
) -> None:
    releases.faults.append(HOLD)
    process = start(HTTPS)
    wait_until(lambda: sum(p.stat().st_size for p in parts(tmp_path)) >= 2**21, process)
    process.send_signal(getattr(signal, how))
    out, err = process.communicate(timeout=60)
    if how == "SIGINT":
        assert out.splitlines()[-1] == "codes 130" and err.strip().splitlines()[-1] == "interrupted"
        assert "Traceback" not in err
    assert not cached(tmp_path, HTTPS).exists() and len(parts(tmp_path)) == 1
    size = parts(tmp_path)[0].stat().st_size
    releases.reset()
    assert predict(photo, HTTPS, tmp_path) == 0
    assert_whole(cached(tmp_path, HTTPS), toys[HTTPS])
    assert [r.range for r in releases.requests] == ["", f"bytes={size}-"] and parts(tmp_path) == []
    row(f"{how} during the download", "next run resumes, right weights")


def test_a_conversion_that_was_killed_is_made_again(
    start: Start, releases: ReleaseServer, toys: Toys, photo: Path, tmp_path: Path, row: Callable[[str, str], None]
) -> None:
    process = start(HTTPS, before=STOP_AFTER_CONVERSION)
    assert process.stdout.readline() == "converted\n"
    process.kill()
    process.communicate()
    assert not cached(tmp_path, HTTPS).exists()
    releases.reset()
    assert predict(photo, HTTPS, tmp_path) == 0
    assert_whole(cached(tmp_path, HTTPS), toys[HTTPS])
    assert releases.requests == [] and parts(tmp_path) == []
    row("SIGKILL during the conversion", "next run converts again without a download")


def test_of_two_processes_one_downloads_and_the_other_waits(
    start: Start, releases: ReleaseServer, toys: Toys, tmp_path: Path, row: Callable[[str, str], None]
) -> None:
    releases.faults.append(HOLD)
    first = start(HTTPS)
    wait_until(lambda: releases.bytes_sent > 0, first)
    second = start(HTTPS)
    assert "another process is fetching" in second.stderr.readline()
    releases.go.set()
    for process in (first, second):
        out, err = process.communicate(timeout=120)
        assert out.splitlines()[-1] == "codes 0", err
    assert len(releases.requests) == 1
    assert_whole(cached(tmp_path, HTTPS), toys[HTTPS])
    row("two processes at once", "one downloads, the other waits; both right")


def test_offline_with_a_warm_and_a_cold_cache(
    releases: ReleaseServer,
    toys: Toys,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    row: Callable[[str, str], None],
) -> None:
    assert_whole(official.fetch(toys[HTTPS][0], toys[HTTPS][0].weights["paper"]), toys[HTTPS])
    releases.reset()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert [predict(photo, name, tmp_path) for name in (HTTPS, DRIVE)] == [0, 1]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{DRIVE} is not in the cache and HF_HUB_OFFLINE is set" in line and "drive.google.com" in line
    assert releases.requests == []
    row("offline, warm cache", "right weights")
    row("offline, cold cache", f"exit 1: {line}")


DAMAGES = {
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "weights cut": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "weights empty": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "weights of other bytes": lambda folder: reverse(folder / "model.safetensors"),
    "description missing": lambda folder: (folder / "config.json").unlink(),
    "record missing": lambda folder: (folder / "record.json").unlink(),
    "record of another converter": lambda folder: rewrite(folder / "record.json", '"converter": 1', '"converter": 0'),
    "record of another release": lambda folder: rewrite(folder / "record.json", "model_final_", "model_other_"),
}


def reverse(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_made_again(
    damage: str, releases: ReleaseServer, toys: Toys, tmp_path: Path, row: Callable[[str, str], None]
) -> None:
    spec = toys[HTTPS][0]
    folder = official.fetch(spec, spec.weights["paper"])
    DAMAGES[damage](folder)
    releases.reset()
    assert official.fetch(spec, spec.weights["paper"]) == folder
    assert len(releases.requests) == 1
    assert_whole(folder, toys[HTTPS])
    row(f"cached folder: {damage}", "made again, right weights")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("offline", [True, False])
def test_a_damaged_folder_is_named_and_kept_where_no_other_can_be_had(
    offline: bool,
    damage: str,
    releases: ReleaseServer,
    toys: Toys,
    tmp_path: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = toys[HTTPS][0]
    folder = official.fetch(spec, spec.weights["paper"])
    DAMAGES[damage](folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if offline:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        releases.faults = [Fault("status", ".", status=404)]
    assert predict(photo, HTTPS, tmp_path) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(folder) in line and "and cannot be made again: " in line
    assert ("HF_HUB_OFFLINE is set" if offline else "answers HTTP 404") in line
    assert not damage.startswith("weights of") or re.search("sha256 [0-9a-f]{64} instead of [0-9a-f]{64}", line)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_damaged_download_is_named_offline(
    releases: ReleaseServer,
    toys: Toys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A download that was whole when a conversion was killed, and is not any more."""
    spec = toys[HTTPS][0]
    weights = spec.weights["paper"]
    name = cached(tmp_path, HTTPS).name
    source = official.source_file(cached(tmp_path, HTTPS).with_name(f".{name}.partial"), weights)
    source.parent.mkdir(parents=True)
    source.write_bytes(bytes(1000))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="OFFLINE is set"):
        official.fetch(spec, weights)
    assert "the downloaded file has the md5" in caplog.messages[-1]
