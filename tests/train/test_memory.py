"""micro_batch=auto: as many images at once as the free memory has room for."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fapn_zoo.train import loop, memory
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings, parse_overrides

pytestmark = pytest.mark.train


def log(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder.parent / "log.jsonl").read_text().splitlines()]


def test_the_result_is_that_of_the_fixed_size(tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    """Trying a step changes no number of the run, and a run that goes on elsewhere spreads its batches as before."""
    caplog.set_level(logging.INFO)
    fixed = train(tiny.replace(micro_batch=2, out=str(tmp_path / "fixed")))
    monkeypatch.setattr(memory, "_kept", lambda run, part: 100)
    monkeypatch.setattr(memory, "_of_weights", lambda run: 0)
    monkeypatch.setattr(memory, "free_memory", lambda: 3.5 * 100 * memory.TEMPORARY / memory.HEADROOM)
    auto = tiny.replace(micro_batch="auto", checkpoint_every=4)
    real = loop.Run.update

    def update(self: loop.Run, *arguments: object) -> object:
        if self.step == 5:
            raise MemoryError
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "update", update)
        with pytest.raises(MemoryError):
            train(auto)
    assert "micro_batch=auto: 2 of 4 images at once" in caplog.text and "batch norms see 2 images, not 4" in caplog.text
    monkeypatch.setattr(memory, "free_memory", lambda: 10**12)
    folder = train(auto.replace(resume="auto"))
    one, other = (load_file(f / "model.safetensors") for f in (fixed, folder))
    assert log(folder) == log(fixed) and all(torch.equal(one[key], other[key]) for key in one)
    assert json.loads((folder / "config.json").read_text())["training"]["micro_batch"] == 2
    assert json.loads((folder.parent / "settings.json").read_text())["micro_batch"] == "auto"


@pytest.mark.parametrize("free, size", [(10**12, 4), (0, 1)])
def test_the_memory_of_one_image_is_measured(
    tiny: Settings, monkeypatch: pytest.MonkeyPatch, caplog, free: int, size: int
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    train(tiny.replace(micro_batch="auto", steps=1, crop=(0, 0), short_sides=(32,), max_side=64))
    assert f"micro_batch=auto: {size} of 4 images at once" in caplog.text


def test_what_autograd_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two maps of 1 MB, each of which two operations keep; weights are not counted."""
    net = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Sigmoid())
    x = torch.randn(2**14, 16)

    def step(run: object, part: torch.Tensor) -> None:
        net(part).square().sum().backward()

    monkeypatch.setattr(memory, "_step", step)
    assert memory._kept(SimpleNamespace(plain=net), x) == 2 * 2**20
    assert memory._sizes(6) == [6, 3, 2, 1] and memory._sizes(1) == [1]
    assert memory.free_memory() > 0


def test_words() -> None:
    assert parse_overrides(["micro_batch=auto"]).micro_batch == "auto"
    assert parse_overrides(["micro_batch=3"]).micro_batch == 3
    with pytest.raises(ValueError, match="micro_batch"):
        parse_overrides(["micro_batch=all"])
    with pytest.raises(ValueError, match="micro_batch must be at least 0"):
        Settings(micro_batch=-1)


@pytest.mark.parametrize("peak, fits", [(84, True), (86, False), (0, False)])
def test_a_gpu_is_tried(monkeypatch: pytest.MonkeyPatch, peak: int, fits: bool) -> None:
    """100 bytes are free or ours; a step takes `peak`, or raises."""
    cleared = []

    def step(run: object, part: object) -> None:
        if not peak:
            raise torch.OutOfMemoryError("CUDA out of memory")

    fakes = {"empty_cache": lambda: cleared.append(1), "reset_peak_memory_stats": lambda device: None}
    fakes |= {"mem_get_info": lambda device: (60, 1000), "memory_allocated": lambda device: 40}
    fakes |= {"max_memory_allocated": lambda device: peak}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(memory, "_step", step)
    run = SimpleNamespace(trainable=[], optimizer=SimpleNamespace(zero_grad=lambda: cleared.append(2)))
    part = SimpleNamespace(images=torch.zeros(1))
    assert memory._fits(run, part) == fits and cleared[-1] == 1 and (2 in cleared) == (not peak)
