"""Runs that end before their last step, and the weights that they leave."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fapn_zoo.train import ending, loop
from fapn_zoo.train.checkpoint import load_checkpoint
from fapn_zoo.train.ending import Ending, out_of_patience
from fapn_zoo.train.loop import train
from fapn_zoo.train.optim import learning_rate_factor
from fapn_zoo.train.settings import Settings

pytestmark = pytest.mark.train


class Clock:
    """In place of the module `time`: every look at it takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def monotonic(self) -> float:
        self.now += self.seconds
        return self.now


def rates(folder: Path) -> list[float]:
    return [json.loads(line)["lr"] for line in (folder.parent / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_warm_up_stable_decay() -> None:
    s = Settings(schedule="wsd", steps=100, cooldown=0.25, warmup_steps=10)
    factors = [learning_rate_factor(step, s) for step in range(101)]
    assert factors[9:76] == [1.0] * 67 and factors[0] == 0.1
    assert factors[100] == 0 and factors[79] == pytest.approx(1 - 0.4) and factors[84] == pytest.approx(0.4)
    assert factors[75:] == sorted(factors[75:], reverse=True)
    assert {learning_rate_factor(n, s.replace(cooldown=0.0)) for n in range(10, 100)} == {1.0}
    assert learning_rate_factor(0, s.replace(steps=0, warmup_steps=0)) == 1


def test_hours_end_with_a_rate_that_has_fallen(tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    caplog.set_level(logging.INFO)
    run = tiny.replace(steps=1000, max_hours=20 / 3600, cooldown=0.2, schedule="cosine", val_data="none")
    monkeypatch.setattr(ending, "time", Clock(1.0))
    whole = train(run)
    found = rates(whole)
    cooling = load_checkpoint(next((whole.parent / "checkpoint").glob("step-*")))["cooling"]
    assert f"lr falls from step {cooling[0]} on and ends at {cooling[1]}" in caplog.text
    assert len(found) == cooling[1] < 25 and cooling[1] - cooling[0] in (2, 3, 4)
    assert found[cooling[0]] / found[0] > 0.99 and found[-1] < 0.5 * found[0]
    assert found == [run.lr * learning_rate_factor(step, run, cooling) for step in range(len(found))]

    # killed in the fall, on another clock: what was decided stays so
    real = loop.Run.update

    def update(self: loop.Run, *arguments: object) -> object:
        if self.step == cooling[0] + 1:
            raise MemoryError
        return real(self, *arguments)

    again = run.replace(out=str(tmp_path / "again"))
    monkeypatch.setattr(ending, "time", Clock(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "update", update)
        with pytest.raises(MemoryError):
            train(again)
    monkeypatch.setattr(ending, "time", Clock(0.001))
    resumed = train(again.replace(resume="auto"))
    assert rates(resumed) == found
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    assert "nothing left to train" not in caplog.text
    train(again.replace(resume="auto"))
    assert f"nothing left to train: step {cooling[1]} of {cooling[1]}" in caplog.text


def test_hours_that_are_enough_change_nothing(tiny: Settings, tmp_path: Path):
    folders = [train(tiny.replace(max_hours=hours, out=str(tmp_path / str(hours)))) for hours in (0.0, 1.0)]
    assert rates(folders[0]) == rates(folders[1])
    assert all(torch.equal(value, weights(folders[1])[name]) for name, value in weights(folders[0]).items())


@pytest.mark.parametrize("spent, left", [(0.0, 0), (3600.0, 1), (7200.0, 1), (3599.0, 1)])
def test_what_is_left_of_the_time(spent: float, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "time", Clock(0.0))
    found = Ending(Settings(max_hours=1.0, steps=10**6))
    found.spent = spent
    assert found.rest(100) == left and found.rest(0) == 0
    found.cooling = (99, 101)
    assert found.rest(100) == 0 and found.last == 101


def test_patience(tiny: Settings, tmp_path: Path, caplog):
    assert not out_of_patience({}, 1, 5) and not out_of_patience({1: 0.5}, 1, 5)
    assert out_of_patience({1: 0.5, 2: 0.5}, 1, 5) and not out_of_patience({1: 0.5, 2: 0.6}, 1, 5)
    assert not out_of_patience({1: 0.5, 2: 0.4}, 1, 1) and not out_of_patience({1: 0.5, 2: 0.4}, 0, 2)
    assert out_of_patience({1: None, 2: None, 3: 0.1, 4: None, 5: 0.0}, 2, 9)
    caplog.set_level(logging.INFO)
    still = {"lr": 0.0, "freeze": "backbone,neck,head.mask_features", "eval_every": 2, "patience": 2, "steps": 40}
    still["model_args"] = {**tiny.model_args, "head_dropout": 0.0, "neck_norm": "gn"}
    run = tiny.replace(checkpoint_every=3, **still)
    folder = train(run)
    assert len(rates(folder)) == 6 and "step 6: no better score for patience=2 evaluations" in caplog.text
    caplog.clear()
    train(run.replace(resume="auto"))  # it does not go on
    assert "nothing left" in caplog.text and len(rates(folder)) == 6


def test_the_best_weights_are_those_that_are_kept(tiny: Settings, monkeypatch: pytest.MonkeyPatch, caplog):
    caplog.set_level(logging.INFO)
    run = tiny.replace(steps=12, eval_every=2, checkpoint_every=4, best=True, ema=0.9, lr=2e-2)
    real, kept = loop.Run.evaluate, {}

    def evaluate(self: loop.Run, final: bool = False) -> object:
        kept.setdefault(self.step, {name: value.clone() for name, value in self.ema.means.items()})
        return real(self, final)

    monkeypatch.setattr(loop.Run, "evaluate", evaluate)
    folder = train(run)
    lines = (folder.parent / "metrics.csv").read_text().splitlines()[1:]
    scores = {int(line.split(",")[0]): float(line.split(",")[1]) for line in lines}
    best = max(scores, key=lambda step: (scores[step], step))
    assert list(scores) == [2, 4, 6, 8, 10, 12]
    told = json.loads((folder / "config.json").read_text())
    assert told["training"]["best_step"] == best and f"best evaluation: step {best} of 12" in caplog.text
    assert json.loads((folder.parent / "eval.json").read_text())["miou"] == pytest.approx(scores[best], abs=1e-6)
    held = {name: value for name, value in weights(folder).items() if name in kept[best]}
    assert held and all(torch.equal(value, kept[best][name]) for name, value in held.items())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"patience": 2}, "patience=2 and best=False go by evaluations: give eval_every="),
        ({"best": True, "eval_every": 2, "checkpoint_every": 0}, "best=true goes back to a checkpoint"),
        ({"max_hours": -1.0}, "max_hours must be at least 0"),
        ({"cooldown": 1.5}, "cooldown must be in 0..1"),
    ],
)
def test_what_does_not_go_together(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


def test_patience_without_validation(tiny: Settings) -> None:
    with pytest.raises(ValueError, match="go by evaluations, and there is no validation set"):
        train(tiny.replace(patience=1, eval_every=1, val_data="none"))
