"""Pictures of a run, and what trackers of others are told of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from PIL import Image
from safetensors.torch import load_file

from fapn_zoo.train import watching
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings
from fapn_zoo.train.watching import draw_curves

pytestmark = pytest.mark.train


def test_curves_and_pictures_change_no_weight(tiny: Settings, tmp_path: Path):
    plain = train(tiny)
    run = tiny.replace(out=str(tmp_path / "watched"), curves=True, eval_every=4, eval_pictures=2, resume="auto")
    watched = train(run)
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, watched))
    assert all(torch.equal(one[key], other[key]) for key in one)
    out = Path(run.out)
    assert np.asarray(Image.open(out / "progress.png")).std() > 10
    for step in (4, 8):
        folder = out / "evaluations" / f"step-{step:08d}"
        names = sorted(path.name for path in (folder / "pictures").iterdir())
        assert names == ["01_000.png", "02_002.png"] and (folder / "report.json").is_file()
        assert not (folder / "worst").exists()
        with Image.open(folder / "pictures" / names[0]) as picture:
            assert picture.width > 2 * picture.height  # prediction, truth, errors
    train(run.replace(eval_pictures=0, eval_every=0, resume="no", overwrite=True, curves=False))
    assert not (out / "evaluations").exists() and not (out / "progress.png").exists()


def test_curves_of_strange_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    (tmp_path / "log.jsonl").write_text("")
    draw_curves(tmp_path)
    assert not (tmp_path / "progress.png").exists()
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.0, "lr": 0.1, "img_s": 1}\n')
    (tmp_path / "metrics.csv").write_text("step,miou,pixel_acc\n1,,0.5\n")
    draw_curves(tmp_path)
    assert (tmp_path / "progress.png").stat().st_size > 1000
    caplog.set_level("INFO", logger=watching.__name__)
    monkeypatch.setattr(watching, "require_matplotlib", lambda: (_ for _ in ()).throw(ValueError("plots need it")))
    draw_curves(tmp_path)
    assert "no progress.png: plots need it" in caplog.text


def test_a_tracker_of_accelerate(tiny: Settings, monkeypatch: pytest.MonkeyPatch):
    told: list[tuple] = []

    class Tracker(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "trackio", False, None

        def __init__(self, run_name: str, **options: object) -> None:
            super().__init__()
            told.append((run_name, options))

        def store_init_configuration(self, values: dict) -> None:
            told.append(("config", values))

        def log(self, values: dict, step: int | None = None, **_: object) -> None:
            told.append((step, values))

        def finish(self) -> None:
            told.append(("end", {}))

    with pytest.raises(ValueError, match="log_with=trackio needs the package trackio: pip install trackio"):
        train(tiny.replace(log_with="trackio"))
    assert not Path(tiny.out).exists()
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", Tracker)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TRACKIO])
    train(tiny.replace(log_with="trackio", steps=4, eval_every=2))
    assert told[0] == ("fapn-zoo", {"name": "run"}) and told[1][1]["crop"] == "[32, 48]" and told[-1][0] == "end"
    lines = [json.loads(line) for line in (Path(tiny.out) / "log.jsonl").read_text().splitlines()]
    losses = [(step, values["loss"]) for step, values in told if "loss" in values and isinstance(step, int)]
    assert losses == [(line["step"], line["loss"]) for line in lines]
    scores = [(step, values) for step, values in told if "val/mIoU" in values]
    assert [step for step, _ in scores] == [2, 4] and 0 <= scores[0][1]["val/mIoU"] <= 100
