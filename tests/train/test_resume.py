"""Killed, interrupted and resumed runs end with the bits of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fapn_zoo.train import checkpoint, loop
from fapn_zoo.train.loop import Interrupted, train
from fapn_zoo.train.settings import Settings

pytestmark = pytest.mark.train


def assert_same_weights(a: Path, b: Path) -> None:
    a, b = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def steps_and_losses(out: str) -> list[tuple[int, float]]:
    lines = (json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


@pytest.fixture
def long(tiny: Settings) -> Settings:
    """With all the state there is: dropout, momenta, batch norm statistics, averaged weights, warm-up."""
    tiny = tiny.replace(model="perpixel_fapn", model_args=tiny.model_args | {"neck_out_channels": 32})
    return tiny.replace(steps=40, checkpoint_every=5, ema=0.95, warmup_steps=10, clip_norm=0.5, micro_batch=3)


def test_killed_and_resumed_equals_uninterrupted(long: Settings, tmp_path: Path, start):
    whole = long.replace(out=str(tmp_path / "whole"))
    process = start(long)
    deadline = time.monotonic() + 120
    while checkpoint.latest_checkpoint(Path(long.out) / "checkpoint") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = checkpoint.latest_checkpoint(Path(long.out) / "checkpoint")
    assert left is not None and 5 <= int(left.name[5:]) < 40, "the run was too fast or too slow to be killed midway"
    assert not (Path(long.out) / "model").exists()

    resumed = train(long.replace(resume="auto", log_every=1, workers=1, cache=True))
    assert_same_weights(train(whole), resumed)
    assert steps_and_losses(whole.out) == steps_and_losses(long.out)
    scores = [json.loads((Path(s.out) / "eval.json").read_text())["classes"] for s in (whole, long)]
    assert scores[0] == scores[1]


def interrupt_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.Run.update

    def update(self, *arguments):
        if self.step == step:
            os.kill(os.getpid(), number)
        return real(self, *arguments)

    monkeypatch.setattr(loop.Run, "update", update)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_ends(long: Settings, tmp_path: Path, monkeypatch, number: int):
    settings = long.replace(checkpoint_every=0, steps=12, val_data="none")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupt_at(6, number, patch)
        with pytest.raises(Interrupted, match=r"^stopped after step [78] of 12; continue with resume=auto$"):
            train(settings)
    assert signal.getsignal(number) is before
    whole = train(settings.replace(out=str(tmp_path / "whole")))
    assert_same_weights(whole, train(settings.replace(resume="auto")))


def test_a_finished_run_resumes_to_the_same_folder(tiny: Settings, tmp_path: Path):
    folder = train(tiny)
    copy = tmp_path / "copy"
    folder.rename(copy)
    assert_same_weights(copy, train(tiny.replace(resume="auto")))


def test_a_folder_with_a_run_is_not_touched_unasked(tiny: Settings):
    settings = tiny.replace(steps=2, val_data="none")
    folder = train(settings)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"holds a run \(log.jsonl, checkpoint, model\); use resume=auto, overwrite"):
        train(settings)
    with pytest.raises(ValueError, match=r"other settings: lr \(was 0.003, now 1.0\), steps \(was 2, now 3\)"):
        train(settings.replace(resume="auto", lr=1.0, steps=3))
    with pytest.raises(ValueError, match="unknown|perpixel"):
        train(settings.replace(overwrite=True, model="perpixel_fpm"))  # overwrite waits until the run is sure
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    train(settings.replace(overwrite=True, steps=3))
    assert len(steps_and_losses(settings.out)) == 3


def test_a_folder_of_other_things_is_shared(tiny: Settings):
    Path(tiny.out).mkdir()
    (Path(tiny.out) / "notes.txt").write_text("mine")
    train(tiny.replace(steps=1, val_data="none", overwrite=True))
    assert (Path(tiny.out) / "notes.txt").read_text() == "mine"


def test_damaged_files_are_named(tiny: Settings):
    settings = tiny.replace(steps=2, val_data="none")
    train(settings)
    state = Path(settings.out) / "checkpoint/step-00000002/state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"step-00000002/state\.pt is not a readable checkpoint"):
        train(settings.replace(resume="auto"))
    (Path(settings.out) / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is not readable JSON"):
        train(settings.replace(resume="auto"))
    (Path(settings.out) / "settings.json").unlink()
    with pytest.raises(ValueError, match="no settings.json"):
        train(settings.replace(resume="auto"))


def test_checkpoints_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint.save_checkpoint(tmp_path, 1, {"x": torch.ones(2)})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save_checkpoint(tmp_path, 2, {"x": torch.ones(2)})
    assert checkpoint.latest_checkpoint(tmp_path).name == "step-00000001"
    final = checkpoint.save_checkpoint(tmp_path, 10, {"x": torch.ones(2), "none": None, "n": [1, "a"]})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]
    state = checkpoint.load_checkpoint(final)
    assert state["step"] == 10 and torch.equal(state["x"], torch.ones(2))
    assert checkpoint.save_checkpoint(tmp_path, 10, {"x": torch.zeros(2)}) == final  # already there: left alone
    assert checkpoint.latest_checkpoint(tmp_path / "none") is None
