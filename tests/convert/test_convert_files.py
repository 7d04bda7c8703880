"""Checkpoints on disk -> weights folders: which model it is, what is written, what is kept, what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys.tiny_official import BY_NAME, first_version, official_state, write

import fapn_zoo
from fapn_zoo import cli
from fapn_zoo.convert import convert, convert_file, files, to_zoo
from fapn_zoo.convert.reading import read_checkpoint
from fapn_zoo.model import ZooModel
from fapn_zoo.runtime import files as writing
from fapn_zoo.weights.folder import read_config
from fapn_zoo.zoo import registry
from fapn_zoo.zoo.spec import ModelSpec, WeightsSpec

pytestmark = pytest.mark.unit
METRICS = {"Toys val mIoU": 44.5, "Toys val mIoU multi-scale": 46.7}


@pytest.fixture(autouse=True)
def only_these(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The converter finds the models that a test registers, and no others, which take time to compare."""
    monkeypatch.setattr(registry, "_registered", {})
    if "official" not in request.node.name:
        monkeypatch.setattr(files, "list_models", lambda: list(registry._registered))


def register(spec: ModelSpec, location: str = "", **kwargs: Any) -> ModelSpec:
    weights = WeightsSpec(
        source="official",
        location=location or f"https://example.org/{spec.name}.pkl",
        license="cc-by-nc-4.0",
        metrics=METRICS,
        page="https://example.org/zoo",
        note="reported by their authors",
    )
    return fapn_zoo.register_model(dataclasses.replace(spec, weights={"paper": weights}, **kwargs))


def with_md5(path: Path) -> Path:
    """The file under a release's name, with the beginning of its md5."""
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    return path.rename(path.with_name(f"model_final_{digest[:6]}{path.suffix}"))


def assert_folder(folder: Path, spec: ModelSpec, state: dict[str, torch.Tensor]) -> dict:
    expected, _ = to_zoo(state, spec)
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[key], expected[key]) for key in expected)
    loaded = fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_file(tmp_path: Path, suffix: str, version: int) -> None:
    spec = register(BY_NAME["maskformer_fapn"])
    state = official_state(spec)
    named = first_version(state) if version == 1 else state
    path = write(tmp_path / f"x{suffix}", named)
    folder = convert_file(path, spec, tmp_path / "deep" / "out", weights=spec.weights["paper"])
    assert folder == tmp_path / "deep" / "out"
    config = assert_folder(folder, spec, state)
    assert config["license"] == "cc-by-nc-4.0" and config["metrics"] == METRICS
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert config["source"] == f"https://example.org/tiny_maskformer_fapn.pkl, sha256 {sha256}"
    assert config["probe"]["outputs"]
    assert "Reported by their authors." in (folder / "README.md").read_text()
    assert [p.name for p in folder.parent.iterdir()] == ["out"], "nothing else is left"


def test_labels_travel(tmp_path: Path) -> None:
    spec = register(BY_NAME["perpixel"], label_set="camvid", num_classes=11)
    convert_file(write(tmp_path / "x.pkl", official_state(spec)), spec, tmp_path / "out")
    data = fapn_zoo.create_model(f"local-dir:{tmp_path / 'out'}").data
    assert len(data.labels) == len(data.palette) == 11 and data.labels == fapn_zoo.create_model(spec.name).data.labels


@pytest.mark.parametrize(
    "damage", ["cut weights", "no weights", "no config", "other config", "other model", "other file"]
)
def test_a_folder_is_written_again(tmp_path: Path, damage: str) -> None:
    spec = register(BY_NAME["perpixel"])
    state = official_state(spec)
    path, out = write(tmp_path / "x.pkl", state), tmp_path / "out"
    convert(path, out, spec.name)
    (out / "notes.txt").write_text("mine")
    weights, config = out / "model.safetensors", out / "config.json"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        config.unlink()
    elif damage == "other config":
        config.write_text(config.read_text().replace('"neck_out_channels": 32', '"neck_out_channels": 64'))
    elif damage == "other model":
        other = register(dataclasses.replace(spec, name="tiny_other"))
        convert(write(tmp_path / "y.pkl", official_state(other)), out, other.name)
    else:
        state["sem_seg_head.predictor.bias"] = state["sem_seg_head.predictor.bias"] + 1
        write(path, state)
    convert(path, out, spec.name)
    assert (out / "notes.txt").read_text() == "mine", "only files of the three names are replaced"
    (out / "notes.txt").unlink()
    assert_folder(out, spec, state)


def test_models_of_other_libraries_are_not_replaced(tmp_path: Path) -> None:
    spec = register(BY_NAME["perpixel"])
    path, out = write(tmp_path / "x.pkl", official_state(spec)), tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "maskformer"}')
    (out / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds config.json, model.safetensors of something else than fapn-zoo"):
        convert(path, out, spec.name)
    assert (out / "model.safetensors").read_bytes() == b"mine" and len(list(out.iterdir())) == 2


def test_a_failure_leaves_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = register(BY_NAME["perpixel"])
    state = official_state(spec)
    path, out = write(tmp_path / "x.pkl", state), tmp_path / "out"
    convert(path, out, spec.name)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    other = write(tmp_path / "y.pkl", {key: value * 0.99 for key, value in state.items()})
    for name, error in (
        ("_compare", ValueError("differs")),
        ("move_files", OSError("disk full")),
        ("save_model", OSError(28, "No space left on device")),
    ):
        with monkeypatch.context() as patch:
            place = files.folders if name == "save_model" else files
            patch.setattr(place, name, lambda *a, error=error, **k: (_ for _ in ()).throw(error))
            with pytest.raises((ValueError, OSError), match=r"^differs$|^disk full$|^\[Errno 28\] No space"):
                convert(other, out, spec.name)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "x.pkl", "y.pkl"]


def test_a_full_disk_is_one_line_with_the_place_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = register(BY_NAME["perpixel"])
    path, out = write(tmp_path / "x.pkl", official_state(spec)), tmp_path / "out"
    real = writing._Target.finish

    def finish(self: Any, sync: bool) -> None:
        self.error = OSError(28, "No space left on device")
        real(self, sync)

    monkeypatch.setattr(writing._Target, "finish", finish)
    assert cli.main(["convert", str(path), "--model", spec.name, "--out", str(out)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(rf"error: cannot write {out}/model.safetensors: No space left.*; it needs \d+ bytes, .*", last)
    assert os.listdir(tmp_path) == ["x.pkl"]


def test_leavings_of_a_killed_conversion_go_with_the_next(tmp_path: Path) -> None:
    spec = register(BY_NAME["perpixel"])
    path = write(tmp_path / "x.pkl", official_state(spec))
    (tmp_path / ".out.0123abcd.part").mkdir()
    (tmp_path / ".out.0123abcd.part/model.safetensors").write_text("half")
    os.utime(tmp_path / ".out.0123abcd.part", (0, 0))
    writing._SWEPT.clear()
    convert(path, tmp_path / "out", spec.name)
    assert sorted(os.listdir(tmp_path)) == ["out", "x.pkl"]


def test_what_was_written_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that changes one value, and one whose network computes something else, are found out."""
    spec = register(BY_NAME["perpixel"])
    path, real = write(tmp_path / "x.pkl", official_state(spec)), files.folders.save_model

    def wrong_value(network: ZooModel, folder: Path, **kwargs: Any) -> None:
        real(network, folder, **kwargs)
        tensors = load_file(folder / "model.safetensors")
        tensors["head.predictor.bias"] = tensors["head.predictor.bias"] + 1e-6
        save_file(tensors, folder / "model.safetensors")

    def wrong_probe(network: ZooModel, folder: Path, **kwargs: Any) -> None:
        real(network, folder, **kwargs)
        config = json.loads((folder / "config.json").read_text())
        config["probe"]["outputs"][0]["values"][3] += 1
        (folder / "config.json").write_text(json.dumps(config))

    for writer, words in (
        (wrong_value, r"does not hold what was written or read, in head\.predictor\.bias"),
        (wrong_probe, "no longer computes its stored outputs"),
    ):
        monkeypatch.setattr(files.folders, "save_model", writer)
        with pytest.raises(ValueError, match=words):
            convert(path, tmp_path / "out", spec.name)
        assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    spec = register(BY_NAME["perpixel"])
    state = official_state(spec)
    for value in (torch.tensor([0.0, 1, torch.nan, 3, 4]), torch.arange(5)):
        path = write(tmp_path / "x.pkl", state | {"sem_seg_head.predictor.bias": value})
        with pytest.raises(
            ValueError,
            match=r"x\.pkl holds values that are no finite floating-point numbers, in head\."
            r"predictor\.bias$",
        ):
            convert(path, tmp_path / "out", spec.name)


# which model


def test_found_by_the_name_of_the_file(tmp_path: Path) -> None:
    """Two models with tensors alike: only the name of the file tells which it is."""
    state = official_state(BY_NAME["perpixel"])
    path = with_md5(write(tmp_path / "x.pkl", state))
    register(BY_NAME["perpixel"])
    spec = register(dataclasses.replace(BY_NAME["perpixel"], name="tiny_named"), f"https://example.org/a/{path.name}")
    assert convert(path, tmp_path / "out") == (path, "tiny_named", tmp_path / "out")
    assert_folder(tmp_path / "out", spec, state)


def test_a_name_that_promises_another_md5(tmp_path: Path) -> None:
    path = write(tmp_path / "model_final_0123ab.pkl", official_state(BY_NAME["perpixel"]))
    spec = register(BY_NAME["perpixel"], f"https://example.org/{path.name}")
    for model in (None, spec.name, f"{spec.name}.paper"):
        with pytest.raises(ValueError, match=r"ab\.pkl has md5 [0-9a-f]{32}, but its name promises 0123ab"):
            convert(path, tmp_path / "out", model)
    with pytest.raises(ValueError, match="promises 0123ab"):
        convert_file(path, spec, tmp_path / "out")
    assert convert_file(path, spec, tmp_path / "out", weights=spec.weights["paper"]), "checked by who passes weights"


def test_a_file_that_is_not_the_released_one_gets_no_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reported scores and terms are those of the release, not of somebody's own training of the same structure."""
    path = write(tmp_path / "mine.pkl", official_state(BY_NAME["perpixel"]))
    spec = register(BY_NAME["perpixel"], "https://example.org/model_final_0123ab.pkl")
    convert(path, tmp_path / "out", spec.name)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    assert f"has md5 {digest}, the released file 0123ab...: it is converted without" in caplog.text
    config = read_config(tmp_path / "out")
    assert config["metrics"] == {} and config["license"] == "unknown" and "example.org" not in config["source"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Converted from a file with md5 {digest}, which has the structure of a release but is not its file" in card


def test_a_release_without_checksums_is_taken_at_ones_word(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.pkl", official_state(BY_NAME["perpixel"]))
    spec = register(BY_NAME["perpixel"], "gdrive:1abc")
    convert(path, tmp_path / "out", spec.name)
    assert read_config(tmp_path / "out")["metrics"] == dict(spec.weights["paper"].metrics)
    assert "states no checksum" in (tmp_path / "out" / "README.md").read_text()


def test_a_file_that_nobody_has_released_asks_for_the_model(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pkl", official_state(BY_NAME["perpixel"]))
    with pytest.raises(
        ValueError, match=r"x\.pkl is no released file that is known by its name or md5; name the model"
    ):
        convert(path, tmp_path / "out")


def test_a_renamed_file_of_several_releases_keeps_its_own(tmp_path: Path) -> None:
    spec = BY_NAME["perpixel"]
    path = with_md5(write(tmp_path / "x.pkl", official_state(spec)))
    terms = {"license": "cc-by-sa-3.0", "page": "https://example.org/zoo"}
    locations = {"3x": "https://example.org/long_abcdef.pkl", "1x": f"https://example.org/{path.name}"}
    weights = {
        tag: WeightsSpec("official", where, metrics={"Toys val mIoU": float(tag[0])}, **terms)
        for tag, where in locations.items()
    }
    fapn_zoo.register_model(dataclasses.replace(spec, weights=weights))
    found = convert(path.rename(tmp_path / "renamed.pkl"), tmp_path / "out")
    assert read_config(found.folder)["metrics"] == {"Toys val mIoU": 1.0}


def test_models_that_cannot_be(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pkl", official_state(BY_NAME["perpixel"]))
    for name, words in (
        ("perpixel_fapn_resnet5O", "unknown model 'perpixel_fapn_resnet5O'; nearest: "),
        ("perpixel_fapn", "'perpixel_fapn' is an architecture: pass backbone="),
        ("perpixel_fapn_resnet18", "has no label set: pass num_classes="),
        ("perpixel_fapn_resnet50_ade20k", "the tensors are not those of 'perpixel_fapn_resnet50_ade20k': "),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            convert(path, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


# folders of many, and the command line


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; name the checkpoint file"):
        convert(tmp_path, tmp_path / "out", "perpixel_fapn")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    spec = register(BY_NAME["maskformer_fapn"])
    path = write(tmp_path / "model.pth", official_state(spec))
    arguments = ["convert", str(path), "--model", f"{spec.name}.paper", "--out", str(tmp_path / "out")]
    with caplog.at_level(logging.INFO):
        assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: {spec.name} from {path}\n"
    assert "model.pth: 6 dropped, a second name of another tensor" in caplog.text
    assert "model.pth: 1 dropped, a constant of the training loss" in caplog.text
    assert_folder(tmp_path / "out", spec, official_state(spec))
    path.write_bytes(b"<html>quota</html>")
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {path} is a web page, not a checkpoint")
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(path)])
    assert stop.value.code == 2


def test_the_output_cannot_be_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = register(BY_NAME["perpixel"])
    path = write(tmp_path / "x.pkl", official_state(spec))
    (tmp_path / "out").write_text("mine")
    assert cli.main(["convert", str(path), "--model", spec.name, "--out", str(tmp_path / "out")]) == 1
    assert (tmp_path / "out").read_text() == "mine"
    assert len(capsys.readouterr().err.strip().splitlines()[-1:]) == 1


def test_safetensors_of_official_names(tmp_path: Path) -> None:
    spec = register(BY_NAME["perpixel"])
    state = official_state(spec)
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "x.safetensors")
    convert(tmp_path / "x.safetensors", tmp_path / "out", spec.name)
    assert_folder(tmp_path / "out", spec, state)


def test_memory(tmp_path: Path) -> None:
    """Reading a pickle holds each array once: what the reader keeps of the file goes as tensors are made."""
    arrays = {f"w{i}": np.full((1000, 500), i, np.float32) for i in range(20)}
    size = sum(array.nbytes for array in arrays.values())
    for protocol in (2, 4):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
        tracemalloc.start()
        found = read_checkpoint(tmp_path / "x.pkl")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(value.nbytes for value in found.values()) == size
        assert peak < 1.3 * size
