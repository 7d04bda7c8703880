"""A stopped evaluation goes on where it was, and its report is that of one that was not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys.evaluation import Noise, small_model

from fapn_zoo.data.sample import Sample
from fapn_zoo.evaluate import Stopped, evaluate, state
from fapn_zoo.metrics.accumulator import Accumulator, Tallies
from fapn_zoo.runtime import files
from fapn_zoo.runtime.signals import Terminated, sigterm_as_interrupt

pytestmark = pytest.mark.unit
CHANGING = ("seconds", "date", "command", "commit")


def lasting(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in CHANGING}


class Failing(Noise):
    """Stops at one image."""

    def __init__(self, count: int, at: int, error: BaseException):
        super().__init__(count)
        self.at, self.error = at, error

    def sample(self, index: int) -> Sample:
        if index == self.at:
            raise self.error
        return super().sample(index)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad file")])
@pytest.mark.parametrize("seconds", [0, 1e9])
@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "boundary": True}])
def test_only_the_rest_is_done(model, tmp_path: Path, monkeypatch, error, seconds, options):
    monkeypatch.setattr(state, "SECONDS", seconds)
    whole = evaluate(model, Noise(9), progress=False, **options)
    with pytest.raises(type(error)):
        evaluate(model, Failing(9, 6, error), progress=False, resume=tmp_path / "state", **options)
    parts = list((tmp_path / "state").glob("part-*.npz"))
    assert len(parts) > 2 if seconds == 0 else len(parts) == 1
    data = Noise(9)
    resumed = evaluate(model, data, progress=False, resume=tmp_path / "state", **options)
    assert lasting(resumed) == lasting(whole)
    assert 6 in data.asked and len(data.asked) < 9
    again = Noise(9)
    assert lasting(evaluate(model, again, progress=False, resume=tmp_path / "state", **options)) == lasting(whole)
    assert not again.asked
    assert not [p.name for p in (tmp_path / "state").iterdir() if p.name.startswith(".")]


def test_another_evaluation_is_refused(model: torch.nn.Module, tmp_path: Path):
    evaluate(model, Noise(2), progress=False, resume=tmp_path)

    def message(net=model, data=None, **options) -> str:
        with pytest.raises(ValueError) as error:
            evaluate(net, data or Noise(2), progress=False, resume=tmp_path, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert f"{tmp_path} holds another evaluation: weights (was '" in message(small_model(seed=1))
    assert "images (was 2, now 3), files" in message(data=Noise(3))
    assert "split (was 'test', now 'val')" in message(split="val")
    assert "'scales': [0.9]" in message(scales=(0.9,)) and "boundary (was False, now True)" in message(boundary=True)
    assert "amp (was 'no', now 'bf16')" in message(amp="bf16") and "batch size (was 1, now 2)" in message(batch_size=2)
    assert "class map (was None" in message(class_map="names")
    with torch.no_grad():
        bias = model.head.predictor.bias
        bias[0] += 1
        try:
            assert "weights (was" in message()
        finally:
            bias[0] -= 1


def test_edited_labels_are_another_evaluation(model: torch.nn.Module, tmp_path: Path):
    for kind in ("images", "labels"):
        (tmp_path / "data/test" / kind).mkdir(parents=True)
    label = tmp_path / "data/test/labels/a.png"
    Image.new("RGB", (64, 64)).save(tmp_path / "data/test/images/a.png")
    (tmp_path / "data/classes.json").write_text(json.dumps({"names": Noise(1).labels.names}))

    def score() -> dict[str, Any]:
        return evaluate(model, str(tmp_path / "data"), progress=False, resume=tmp_path / "state")

    for value in (0, 1):
        Image.new("L", (64, 64), value).save(label, compress_level=0)  # as many bytes
        os.utime(label, (1, 1))
        if value:
            with pytest.raises(ValueError, match="files .was '2 files, .* by names, sizes and contents', now '2 files"):
                score()
        else:
            assert lasting(score()) == lasting(score())


def test_damage_and_strangers_are_named(model: torch.nn.Module, tmp_path: Path):
    folder = tmp_path / "state"
    whole = evaluate(model, Noise(2), progress=False, resume=folder)
    part = next(folder.glob("part-*.npz"))
    kept = part.read_bytes()
    for broken in (kept[: len(kept) // 2], b"", kept.replace(b"noise"[:1], b"x")[:-30]):
        part.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{part.name} is damaged .*; delete it and its images are counted again"):
            evaluate(model, Noise(2), progress=False, resume=folder)
    part.unlink()
    assert lasting(evaluate(model, Noise(2), progress=False, resume=folder)) == lasting(whole)
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state\.json is not readable JSON"):
        evaluate(model, Noise(2), progress=False, resume=folder)
    (folder / "state.json").unlink()
    with pytest.raises(ValueError, match="is not the state of an evaluation"):
        evaluate(model, Noise(2), progress=False, resume=folder)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is not the state of an evaluation"):
        evaluate(model, Noise(2), progress=False, resume=tmp_path / "file")


def test_tallies_survive_the_file(tmp_path: Path):
    def empty() -> Tallies:
        return Tallies({"few": Accumulator((2, 3)), "none": Accumulator((0,))})

    rows = [np.array([0, 2**40, 0, 3, 0, 0]), np.zeros(6, np.int64), np.array([1, 1, 1, 1, 1, 2**62])]
    first = state.State(tmp_path, {"a": (1, 2)}, empty)
    for i, row in enumerate(rows):
        tally = empty().load({"few.counts": row.reshape(2, 3), "none.counts": np.zeros(0, np.int64)})
        first.add(state.Counted(i * 3, f"naïve {i}", tally))
    first.save()
    first.save()  # nothing new, no file
    assert len(list(tmp_path.glob("part-*.npz"))) == 1
    second = state.State(tmp_path, {"a": [1, 2]}, empty)
    assert second.done == {0, 3, 6}
    for i, entry in enumerate(second.entries()):
        assert (entry.index, entry.name) == (i * 3, f"naïve {i}")
        assert np.array_equal(entry.tally["few"].counts.numpy().ravel(), rows[i])
    assert json.loads((tmp_path / "state.json").read_text()) == {"format": 4, "a": [1, 2]}


def test_sigterm_keeps_what_is_counted(model, tmp_path: Path):
    class Signalled(Noise):
        def sample(self, index: int) -> Sample:
            if index == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().sample(index)

    with pytest.raises(Terminated), sigterm_as_interrupt():
        evaluate(model, Signalled(9), progress=False, resume=tmp_path, threads=1)
    assert len(list(tmp_path.glob("part-*.npz"))) == 1
    rest = Noise(9)
    evaluate(model, rest, progress=False, resume=tmp_path)
    assert 0 < len(rest.asked) < 9


def test_it_stops_when_asked_to(model, tmp_path: Path):
    data = Noise(9)
    with pytest.raises(Stopped):
        evaluate(model, data, progress=False, resume=tmp_path, threads=1, should_stop=lambda: 3 in data.asked)
    assert 3 in data.asked and 8 not in data.asked
    whole = evaluate(model, Noise(9), progress=False)
    again = evaluate(model, Noise(9), progress=False, resume=tmp_path, should_stop=lambda: False)
    assert lasting(again) == lasting(whole)
    data = Noise(9)
    with pytest.raises(Stopped):
        evaluate(model, data, progress=False, should_stop=lambda: True)
    assert not data.asked


def test_leavings_go_and_a_full_disk_is_one_line(model, tmp_path: Path, monkeypatch):
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / ".part-0a1b.npz.0123abcd.part").write_text("half")
    os.utime(folder / ".part-0a1b.npz.0123abcd.part", (0, 0))
    real = files._Target.finish

    def finish(self, sync):
        if ".npz." in self.file.name:
            self.error = OSError(28, "No space left on device")
        real(self, sync)

    with monkeypatch.context() as patch:
        patch.setattr(files._Target, "finish", finish)
        words = rf"^cannot write {folder}/part-\w+.npz: No space left on device; it needs \d+ bytes, \d+ are "
        with pytest.raises(OSError, match=words):
            evaluate(model, Noise(2), progress=False, resume=folder)
    assert [path.name for path in folder.iterdir()] == ["state.json"]
    evaluate(model, Noise(2), progress=False, resume=folder)
