"""OUT: nothing in it is lost unasked, one training writes to it, and a run goes on with the data that it had."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fapn_zoo import create_model
from fapn_zoo.runtime.claim import claimed
from fapn_zoo.train import loop
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings

pytestmark = pytest.mark.train


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Name -> time of change and bytes of every file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def short(tiny: Settings) -> Settings:
    return tiny.replace(steps=2, val_data="none")


@pytest.fixture
def finished(short: Settings) -> Settings:
    """A run that has ended, and the user's own files beside its own."""
    train(short)
    out = Path(short.out)
    (out / "notes.txt").write_text("mine")
    (out / "model/notes.txt").write_text("mine")
    for name in ("step-mine", "step-00000002-backup", ".step-mine"):
        (out / "checkpoint" / name).mkdir()
        (out / "checkpoint" / name / "state.pt").write_text("mine")
    return short


def refused(settings: Settings, match: str) -> str:
    """The one line of a refusal that changed nothing in OUT."""
    before = contents(Path(settings.out))
    with pytest.raises((ValueError, OSError), match=match) as error:
        train(settings)
    assert contents(Path(settings.out)) == before and "\n" not in str(error.value)
    return str(error.value)


def test_a_finished_run_without_checkpoint_is_kept(finished: Settings, tmp_path: Path):
    out = Path(finished.out)
    shutil.rmtree(out / "checkpoint")
    for _ in range(2):
        found = refused(finished.replace(resume="auto"), rf"{out} holds a finished run \(model\) but no checkpoint")
        assert f"checkpoint_path={out}/model out=NEW" in found
        (out / "checkpoint").mkdir(exist_ok=True)  # empty is as good as none
    train(finished.replace(checkpoint_path=str(out / "model"), out=str(tmp_path / "new")))  # what the line says
    assert (tmp_path / "new/model/model.safetensors").is_file()
    shutil.rmtree(out / "model")
    (out / "eval.json").write_text("{}")
    refused(finished.replace(resume="auto"), r"holds results \(log.jsonl, eval.json\) but no checkpoint")


def test_a_run_that_died_before_its_first_checkpoint_starts_again(finished: Settings, caplog):
    out = Path(finished.out)
    shutil.rmtree(out / "checkpoint")
    shutil.rmtree(out / "model")
    refused(finished, r"holds a run \(log.jsonl\); use resume=auto")
    train(finished.replace(resume="auto"))
    assert f"{out} holds a run (log.jsonl) without checkpoint: starting at step 0" in caplog.messages
    assert (out / "notes.txt").read_text() == "mine" and len((out / "log.jsonl").read_text().splitlines()) == 2


def test_overwrite_takes_away_what_the_run_wrote_and_nothing_else(finished: Settings):
    out = Path(finished.out)
    (out / "checkpoint/mine").mkdir()
    (out / "checkpoint/step-00000001").mkdir()
    train(finished.replace(overwrite=True, steps=1))
    assert json.loads((out / "settings.json").read_text())["steps"] == 1
    assert {p.name for p in (out / "model").iterdir()} == {"config.json", "model.safetensors", "README.md", "notes.txt"}
    assert "step-00000001" in {p.name for p in (out / "checkpoint").iterdir()} and (out / "notes.txt").is_file()
    own = {"settings.json", "data.json", "log.jsonl", "checkpoint", "model"}
    assert {p.name for p in out.iterdir()} == own | {"notes.txt"}  # nor is a lock left, or what was moved aside


def test_overwrite_where_model_is_a_link(finished: Settings, tmp_path: Path):
    out = Path(finished.out)
    (out / "model").rename(tmp_path / "elsewhere")
    (out / "model").symlink_to(tmp_path / "elsewhere")
    train(finished.replace(overwrite=True, steps=1))
    assert (tmp_path / "elsewhere/config.json").is_file() and (out / "model/notes.txt").read_text() == "mine"
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rare_classes": (0, 7), "rare_prob": 0.5}, "rare_classes=7: the data has no such class; it has 0 ground, 1"),
        ({"class_weights": (1.0, 1.0)}, "class_weights has 2 values"),
        ({"freeze": "backbone,neck,head"}, "no trainable parameter is left"),
        ({"data": "no/such/folder"}, "no/such/folder"),
        ({"model_args": {"neck_width": 3}}, "neck_width"),
        ({"val_data": "scenes:2@32x32"}, "classes"),
        ({"checkpoint_path": "{out}/model"}, "checkpoint_path=.*/model lies in out=.*; use another out="),
        ({"checkpoint_path": "{out}/model/model.safetensors"}, "lies in out="),
        ({"model": "local-dir:{out}/../run/model"}, "model=local-dir:.* lies in out="),
    ],
)
def test_what_overwrite_would_replace_waits_until_all_else_is_sure(finished: Settings, changes: dict, message: str):
    filled = {k: v.format(out=finished.out) if isinstance(v, str) else v for k, v in changes.items()}
    refused(finished.replace(overwrite=True, **filled), message)


@pytest.mark.parametrize("name", ["settings.json", "model/config.json", "model/README.md"])
def test_files_of_others_with_the_names_of_a_run_are_kept(short: Settings, name: str):
    file = Path(short.out) / name
    file.parent.mkdir(parents=True)
    file.write_text('{"editor.tabSize": 4}')
    words = "not of a training run" if name == "settings.json" else "of something else than fapn-zoo"
    for way in ({}, {"overwrite": True}, {"resume": "auto"}):
        refused(short.replace(**way), words)


def test_files_where_folders_are_to_be(short: Settings, tmp_path: Path):
    for name in ("model", "checkpoint"):
        out = tmp_path / f"with-{name}"
        out.mkdir()
        (out / name).write_text("mine")
        refused(short.replace(out=str(out), overwrite=True), f"{name}.* is a file")
    (tmp_path / "file").write_text("mine")
    refused(short.replace(out=str(tmp_path / "file")), "is a file")


def test_damaged_settings_and_what_overwrite_does_with_them(finished: Settings):
    file = Path(finished.out) / "settings.json"
    file.write_text("{")
    for way in ({}, {"resume": "auto"}):
        refused(finished.replace(**way), r"settings\.json is not readable JSON: .*another out= or overwrite=true")
    train(finished.replace(overwrite=True))
    file.unlink()
    assert "checkpoint_path=" in refused(finished.replace(resume="auto"), r"it has no settings\.json; use overwrite")
    train(finished.replace(overwrite=True))


def test_a_longer_run_is_told_how(finished: Settings):
    found = refused(finished.replace(steps=12, resume="auto"), r"steps \(was 2, now 12\)")
    assert found.endswith(f"or train on from its weights: checkpoint_path={finished.out}/model out=NEW")
    shutil.rmtree(Path(finished.out) / "model")
    assert "or once it is finished train on" in refused(finished.replace(steps=12, resume="auto"), "steps")


def test_of_two_trainings_at_once_the_second_touches_nothing(short: Settings, monkeypatch: pytest.MonkeyPatch):
    inside, go_on = threading.Event(), threading.Event()
    real = loop.Run.update

    def update(self, *arguments):
        inside.set()
        assert go_on.wait(60)
        return real(self, *arguments)

    monkeypatch.setattr(loop.Run, "update", update)
    first = threading.Thread(target=train, args=[short])
    first.start()
    try:
        assert inside.wait(60)
        for way in ({}, {"overwrite": True}, {"resume": "auto"}, {"steps": 5, "overwrite": True}):
            refused(short.replace(**way), "is in use by another training")
    finally:
        go_on.set()
        first.join()
    assert (Path(short.out) / "model/config.json").is_file() and not list(Path(short.out).glob(".*"))


def test_several_processes_are_refused_together(short: Settings, start):
    with claimed(Path(short.out), "training"):
        group = start(short, processes=2)
        errors = group.communicate(timeout=120)[1]
        assert group.returncode != 0 and "is in use by another training" in errors
        assert [path.name for path in Path(short.out).iterdir()] == [".lock"]


@pytest.fixture
def data(pictures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "data"))


@pytest.fixture
def stopped(short: Settings, data: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A run on `data` that has a checkpoint and was killed before its end; to be resumed."""
    settings = short.replace(data=str(data), steps=4, checkpoint_every=2)
    real = loop.Run.update

    def update(self, *arguments):
        if self.step == 3:
            raise KeyError("killed")
        return real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(loop.Run, "update", update)
        train(settings)
    return settings.replace(resume="auto")


def test_changed_data_is_refused_and_named(stopped: Settings, data: Path):
    again = "; give it the same data again, or use overwrite=true or another out="
    label = data / "train/labels/003.png"
    kept = label.read_bytes()
    Image.fromarray(np.zeros_like(np.asarray(Image.open(label)))).save(label)
    found = refused(stopped, "was run on other data: changed: train/labels/003.png")
    assert found.endswith(again)
    label.unlink()
    (data / "train/images/003.png").unlink()
    found = "24 files then, 22 now; missing: train/images/003.png, train/labels/003.png"
    refused(stopped, f"was run on other data: {found}")
    label.write_bytes(kept)
    shutil.copy(data / "train/images/002.png", data / "train/images/003.png")
    refused(stopped, "changed: train/images/003.png")


def test_changed_classes_are_refused(stopped: Settings, data: Path):
    (data / "classes.json").write_text(json.dumps({"names": ["ground", "sign", "tree"]}))
    refused(stopped, r"was run on other data: names \[.*\] then, \['ground', 'sign', 'tree'\] now")
    (data / "classes.json").write_text(json.dumps({"names": ["ground", "tree", "sign"], "white_level": 4095}))
    refused(stopped, "was run on other data: white_level None then, 4095 now")


def test_the_same_data_elsewhere_goes_on_to_the_same_weights(stopped: Settings, data: Path, tmp_path: Path):
    moved = tmp_path / "another name"
    data.rename(moved)
    for file in moved.rglob("*.png"):
        os.utime(file, (1, 1))
    folder = train(stopped.replace(data=str(moved)))
    whole = train(stopped.replace(data=str(moved), out=str(tmp_path / "whole"), resume="no"))
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_other_validation_data_is_said(stopped: Settings, data: Path, pictures: Path, caplog):
    scored = stopped.replace(val_data=str(data))
    label = data / "val/labels/000.png"
    train(scored)
    Image.fromarray(np.zeros_like(np.asarray(Image.open(label)))).save(label)
    train(scored)
    told = (
        "other validation data than before (changed: val/labels/000.png): older rows of metrics.csv cannot be compared"
    )
    assert told in caplog.messages


def test_runs_that_did_not_note_their_data(stopped: Settings, data: Path, tmp_path: Path, caplog):
    note = Path(stopped.out) / "data.json"
    note.write_text('{"no": 1}')
    refused(stopped, r"data\.json: it does not describe a data set; without this file the run goes on")
    note.unlink()
    data.rename(tmp_path / "moved")
    refused(stopped.replace(data=str(tmp_path / "moved")), r"other settings: data \(was")  # nobody can tell
    (tmp_path / "moved").rename(data)
    train(stopped)
    assert any("has no data.json: whether the data is still the same cannot be told" in m for m in caplog.messages)


def test_a_saved_model_replaces_only_models(tmp_path: Path):
    model = create_model("perpixel_fpn", backbone="test_efficientnet", num_classes=2)
    model.save(tmp_path / "mine")
    model.save(tmp_path / "mine")
    (tmp_path / "mine/config.json").unlink()  # a write that was killed
    model.save(tmp_path / "mine")
    for name in ("README.md", "config.json", "model.safetensors"):
        folder = tmp_path / f"other-{name}"
        folder.mkdir()
        (folder / name).write_text('{"model_type": "bert"}')
        with pytest.raises(ValueError, match=f"holds {name} of something else than fapn-zoo; move them or write else"):
            model.save(folder)
        assert [path.name for path in folder.iterdir()] == [name]
