"""A training that is stopped in the middle of a step and goes on, beside one that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fapn_zoo.train import loop
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings


def losses_of(settings: Settings) -> list[dict[str, Any]]:
    """The loss and its terms, of every line of a run's log."""
    rows = [json.loads(line) for line in (Path(settings.out) / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("step", "lr", "img_s", "data_wait")} for row in rows]


def check_resumes(whole: Settings, stopped_at: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights to the bit, and the same log from there on."""
    stopped, real = whole.replace(out=str(folder / "stopped")), loop.Run.update

    def update(self: loop.Run, *arguments: Any) -> Any:
        if self.step == stopped_at:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "update", update)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    a, b = (load_file(train(s) / "model.safetensors") for s in (whole, stopped.replace(resume="auto")))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert losses_of(stopped)[stopped_at:] == losses_of(whole)[stopped_at:]
