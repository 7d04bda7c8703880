"""The batch on which a run lost its numbers, kept and shown again."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fapn_zoo.cli import main
from fapn_zoo.train import loop
from fapn_zoo.train.loop import train
from fapn_zoo.train.replay import FILE, replay
from fapn_zoo.train.settings import Settings

pytestmark = pytest.mark.train
MASKS = {"neck_out_channels": 32, "head_num_queries": 6, "head_layers": 2}
BOXES = {"neck_out_channels": 16, "head_hidden": 16, "head_region_samples": 16, "head_anchor_samples": 16}


def broken_at(step: int, monkeypatch: pytest.MonkeyPatch, name: str = "head.", value: float = math.nan) -> None:
    """A weight becomes NaN before a step, as one of a frozen part might in the forward pass of another framework."""
    real = loop.Run.update

    def update(self: loop.Run, *arguments: object) -> object:
        if self.step == step:
            weights = dict(self.plain.named_parameters())
            with torch.no_grad():
                next(weight for key, weight in weights.items() if key.startswith(name)).flatten()[0] = value
        return real(self, *arguments)

    monkeypatch.setattr(loop.Run, "update", update)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "ce+dice", "class_weights": (1.0, 2.0, 3.0), "freeze": "backbone", "channels_last": True},
        {"model": "maskformer_fpn", "model_args": MASKS},
        {"model": "faster_rcnn_fpn", "model_args": BOXES, "data": "scenes:8@64x96", "crop": (64, 96)},
    ],
    ids=["per_pixel", "maskformer", "rcnn"],
)
def test_it_is_shown_again(tiny: Settings, monkeypatch: pytest.MonkeyPatch, changes: dict, capsys):
    """The losses of the replay are those of the step, dropout and drawn points included."""
    run = tiny.replace(micro_batch=3, val_data="none", **changes)
    real, seen = loop.Run.losses, []

    def losses(self: loop.Run, *arguments: object) -> dict:
        found = real(self, *arguments)
        if self.step == 2:
            seen.append(found["loss"].item())
        return found

    def overflow(self: loop.Run, *arguments: object) -> tuple:
        found = everywhere(self, *arguments)
        if self.step == 2:
            raise ValueError("step 2: something is wrong")
        return found

    everywhere = loop.Run._everywhere
    monkeypatch.setattr(loop.Run, "losses", losses)
    monkeypatch.setattr(loop.Run, "_everywhere", overflow)
    with pytest.raises(
        ValueError, match=r"^step 2: something is wrong; images: \S+, .*; `fapn-zoo replay .*run` shows"
    ):
        train(run)
    assert main(["replay", run.out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "step 2: something is wrong; images: " in lines[0] and lines[-1] == "all gradients are finite"
    found = [float(re.search(r": loss (\S+)", line)[1].rstrip(",")) for line in lines[1:-1]]
    assert found == pytest.approx(seen, rel=1e-5) and len(found) == 2
    assert lines[1].count(", ") >= 2 and "dice" in lines[1] if run.loss != "ce" else True


def test_a_weight_that_is_nan(tiny: Settings, monkeypatch: pytest.MonkeyPatch):
    broken_at(3, monkeypatch)
    with pytest.raises(ValueError, match="perpixel_fpn, step 3: the loss is not finite: .*; images: ") as caught:
        train(tiny)
    path = Path(tiny.out) / FILE
    lines = list(replay(path))
    assert lines[0] == f"{path}: {str(caught.value).partition('; `fapn-zoo')[0]}"
    assert re.fullmatch("the weights hold NaN in head.* before the step", lines[1])
    assert "loss nan" in lines[2] and re.match(r"head\.\S+ \(\w+\) makes NaN in output of finite inputs", lines[3])
    assert lines[-1].startswith("gradients that are not finite: ")
    monkeypatch.undo()
    train(tiny.replace(overwrite=True))  # and then it is gone
    assert not path.exists()


def test_a_number_that_overflows_between_finite_ones(tiny: Settings, monkeypatch: pytest.MonkeyPatch):
    broken_at(1, monkeypatch, "neck.", 3e38)
    with pytest.raises(ValueError, match="step 1: the loss is not finite"):
        train(tiny.replace(model_args=tiny.model_args | {"neck_norm": "none"}))
    lines = list(replay(tiny.out))
    assert "the weights hold" not in "".join(lines)
    assert any(re.match(r"(neck|head)\.\S+ \(\w+\) makes (inf|NaN)", line) for line in lines)


def test_what_is_no_such_file(tmp_path: Path, capsys):
    with pytest.raises(FileNotFoundError, match="a training writes it when its loss"):
        list(replay(tmp_path))
    for data in (b"", b"nonsense", b"PK\x03\x04"):
        (tmp_path / FILE).write_bytes(data)
        assert main(["replay", str(tmp_path)]) == 1
        assert "is no batch that a run has kept" in capsys.readouterr().err
    save_file({"images": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(ValueError, match="is no batch that a run has kept: KeyError"):
        list(replay(tmp_path))


def test_a_disk_that_is_full_hides_no_error(tiny: Settings, monkeypatch: pytest.MonkeyPatch):
    broken_at(1, monkeypatch)
    monkeypatch.setattr("fapn_zoo.train.run.keep_batch", lambda *a: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(ValueError, match="step 1: the loss is not finite: .*; images: [^;]*$"):
        train(tiny)


def test_what_it_holds(tiny: Settings, monkeypatch: pytest.MonkeyPatch):
    broken_at(0, monkeypatch)
    with pytest.raises(ValueError, match="step 0"):
        train(tiny)
    with safe_open(Path(tiny.out) / FILE, framework="pt") as file:
        facts, names = json.loads(file.metadata()["fapn_zoo"]), set(file.keys())
        assert file.get_tensor("images").shape == (4, 3, 32, 48)
    assert {"images", "sizes", "targets.labels", "targets.seeds", "totals.pixels"} < names
    assert len(facts["names"]) == 4 and facts["step"] == 0 and facts["frozen"] == [] and facts["size"] == 4
