"""Killed, interrupted and resumed runs end with the bits of an uninterrupted one."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fapn_zoo import create_model
from fapn_zoo.evaluate import evaluate, measure
from fapn_zoo.runtime import files
from fapn_zoo.runtime.signals import Terminated
from fapn_zoo.train import checkpoint, loop
from fapn_zoo.train.loop import train
from fapn_zoo.train.run import Interrupted
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
        with pytest.raises(Interrupted, match=r"^stopped after step [78] of 12; continue with resume=auto$") as raised:
            train(settings)
    assert raised.value.number == number  # the exit code of the command line
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


def scored(settings: Settings) -> Settings:
    """With evaluations, each but the last after a checkpoint; lines of the log that no checkpoint ends."""
    return settings.replace(steps=10, checkpoint_every=3, eval_every=4, log_every=4, ema=0.9, warmup_steps=3)


def assert_same_run(a: Settings, b: Settings) -> None:
    assert_same_weights(Path(a.out) / "model", Path(b.out) / "model")
    assert steps_and_losses(a.out) == steps_and_losses(b.out)
    assert (Path(a.out) / "metrics.csv").read_bytes() == (Path(b.out) / "metrics.csv").read_bytes()


@pytest.mark.parametrize("name", ["log.jsonl", "metrics.csv"])
def test_what_was_written_and_is_no_text_is_named(tiny: Settings, name: str):
    train(tiny.replace(steps=1))
    (Path(tiny.out) / name).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=rf"^{tiny.out}/{name} is no UTF-8 text"):
        train(tiny.replace(steps=1, resume="auto"))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny: Settings, tmp_path: Path, caplog):
    settings, whole = scored(tiny), scored(tiny).replace(out=str(tmp_path / "whole"))
    train(whole)
    train(settings)
    folder = Path(settings.out) / "checkpoint"
    assert "step-00000009" in os.listdir(folder)
    last = folder / "step-00000010/state.pt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    caplog.clear()
    train(settings.replace(resume="auto"))
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "step-00000010/state.pt is not a readable checkpoint (ValueError: the bytes of" in warning.getMessage()
    assert warning.getMessage().endswith(f"going on from the older {folder}/step-00000009")
    assert_same_run(whole, settings)
    checkpoint.load_checkpoint(folder / "step-00000010")


def stop_in_evaluation(number: int, images: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signal comes when so many images have been scored, of all evaluations together; notes each image."""
    real, seen = measure.Job.counted, []

    def counted(self, *arguments):
        for entry in real(self, *arguments):
            seen.append(entry.index)
            if len(seen) == images:
                os.kill(os.getpid(), number)
            yield entry

    monkeypatch.setattr(measure.Job, "counted", counted)
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("images, step, every", [(2, 4, 3), (2, 4, 0), (7, 8, 3), (12, 10, 3)])
def test_a_signal_in_an_evaluation_ends_it(
    tiny: Settings, tmp_path: Path, monkeypatch, number: int, images: int, step: int, every: int
):
    settings = scored(tiny).replace(checkpoint_every=every)
    whole = settings.replace(out=str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        seen = stop_in_evaluation(number, images, patch)
        words = f"^stopped after step {step} of 10, in its evaluation; continue with resume=auto$"
        with pytest.raises(Interrupted, match=words):
            train(settings)
    assert len(seen) == images  # of five in each evaluation
    assert checkpoint.latest_checkpoint(Path(settings.out) / "checkpoint").name == f"step-{step:08d}"
    train(settings.replace(resume="auto"))
    train(whole)
    assert_same_run(whole, settings)


def test_what_was_saved_before_an_evaluation_outlives_it(tiny: Settings, tmp_path: Path, monkeypatch):
    """The end of the grace period, or a crash: the evaluation is made anew, of the same weights."""
    settings, whole = scored(tiny), scored(tiny).replace(out=str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr("fapn_zoo.train.run.evaluate", lambda *a, **k: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            train(settings)
    train(settings.replace(resume="auto"))
    train(whole)
    assert_same_run(whole, settings)


def test_a_signal_to_one_of_two_processes_ends_the_evaluation_in_both(tiny: Settings, tmp_path: Path, start):
    """The other one neither waits for it nor goes on."""
    hook = (
        "import os, signal\n"
        "from fapn_zoo.evaluate import measure\n"
        "real = measure.Job.counted\n"
        "def counted(self, batches, state):\n"
        "    for place, entry in enumerate(real(self, batches, state)):\n"
        "        if place == 0 and os.environ['RANK'] == '1':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        yield entry\n"
        "measure.Job.counted = counted\n"
    )
    settings = scored(tiny).replace(batch_size=4, threads=1, resume="auto")
    process = start(settings, processes=2, before=hook)
    _, err = process.communicate(timeout=120)
    assert err.count("stopped after step 4 of 10, in its evaluation; continue with resume=auto") >= 2, err
    process = start(settings, processes=2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rows = (Path(settings.out) / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["4", "8", "10"]
    # What the two have scored together is what they have saved, though each has had norm statistics of its own.
    model = create_model(f"local-dir:{settings.out}/model", pretrained=True)
    score = evaluate(model, settings.data, "val", progress=False)["miou"]
    assert f"{score:.6f}" == rows[-1].split(",")[1]


def test_a_second_signal_later_ends_at_once(tiny: Settings, monkeypatch):
    monkeypatch.setattr("fapn_zoo.runtime.signals.ECHO", 0)
    monkeypatch.setattr(loop.Run, "update", lambda self, *a: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)])
    with pytest.raises(Terminated):
        train(tiny)
    assert not (Path(tiny.out) / "checkpoint").exists()


@pytest.mark.parametrize("file", ["state.pt", "log.jsonl", "metrics.csv", "model.safetensors", "eval.json"])
def test_a_full_disk_says_how_to_go_on(tiny: Settings, tmp_path: Path, monkeypatch, file: str):
    """Whatever is being written: one line, no half file, and the run goes on to the same bits where there is room."""
    settings, whole = scored(tiny), scored(tiny).replace(out=str(tmp_path / "whole"))
    real, lines = files._Target.write, files.append_line
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(self, data):
        late = file != "state.pt" or any(Path(settings.out).glob("checkpoint/step-*"))
        if late and file != "log.jsonl" and f".{file}." in self.file.name:
            self.error = full
        return real(self, data)

    def append(path: Path, text: str) -> None:
        if path.name == file:
            raise files._failure(full, path, 100)
        lines(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(files._Target, "write", write)
        patch.setattr("fapn_zoo.train.log.append_line", append)
        words = (
            rf"^cannot write {settings.out}/.*{file}: No space left on device; it needs \d+ bytes, \d+ are free there; "
        )
        with pytest.raises(OSError, match=rf"{words}step \d+ is kept: free space and go on with resume=auto$"):
            train(settings)
    assert not [path for path in Path(settings.out).rglob(".*")]
    train(settings.replace(resume="auto"))
    train(whole)
    assert_same_run(whole, settings)


def test_without_any_checkpoint_a_full_disk_says_that_nothing_is_kept(tiny: Settings, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Disk quota exceeded")))
    with pytest.raises(OSError, match="; nothing of the run is kept: free space and go on with resume=auto$"):
        train(tiny.replace(steps=1, val_data="none"))


def test_leavings_of_a_killed_run_are_gone(tiny: Settings):
    out = Path(tiny.out)
    train(tiny.replace(steps=1, val_data="none"))
    for name in ("checkpoint/.step-00000001.4711.tmp", "model/.writing-abcd_123", "model/.weights.0123abcd.part"):
        (out / name).mkdir()
        (out / name / "state.pt").write_text("half")
    (out / ".log.jsonl.0123abcd.part").write_text("half")
    (out / "model/mine.txt").write_text("mine")
    train(tiny.replace(steps=1, val_data="none", resume="auto"))
    assert not [path for path in out.rglob(".*")]
    assert (out / "model/mine.txt").read_text() == "mine"


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tiny: Settings):
    train(tiny.replace(steps=1, val_data="none"))
    made = checkpoint.Checkpoints(Path(tiny.out))
    made.save(2, {"model": {}, "optimizer": {}})
    with pytest.raises(ValueError, match=r"^.*/step-00000002 does not fit the model: [^\n]*$"):
        train(tiny.replace(steps=1, val_data="none", resume="auto"))


@pytest.mark.parametrize("removals", range(1, 4))
def test_a_kill_while_an_older_run_is_replaced(tiny: Settings, tmp_path: Path, monkeypatch, removals: int):
    settings, whole = tiny.replace(steps=2), tiny.replace(steps=2, out=str(tmp_path / "whole"))
    train(settings.replace(seed=1))
    real, left = Path.unlink, removals

    def unlink(path: Path, **options: bool) -> None:
        nonlocal left
        if not path.name.startswith("."):
            if not left:
                raise KeyboardInterrupt
            left -= 1
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            train(settings.replace(overwrite=True))
    train(settings.replace(overwrite=True))
    train(whole)
    assert_same_run(whole, settings)
