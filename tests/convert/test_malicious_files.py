"""Files that run a command when they are unpickled, in every place that a file can be given: refused, nothing run."""

from __future__ import annotations

import copyreg
import functools
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys.hub.server import Hub
from toys.malicious import MAGIC, call, in_a_model, named, payloads, text, torch_legacy, torch_tar, torch_zip

import fapn_zoo
from fapn_zoo import cli
from fapn_zoo.convert import read_checkpoint

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore")]

Note = Callable[[str, str], None]  # where, and the line

NAMES = list(payloads(Path("x")))
# names with dots are followed from protocol 4 on only, names of Python 2 only before protocol 3
ONLY = {"pathlib": 5, "numpy.ndarray.tofile": 5, "eval by its name in Python 2": 2}
TINY = {"backbone": "resnet10t", "backbone_channels": (8, 8, 16, 16), "neck_out_channels": 16, "neck_deform_groups": 2}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """The file that a command makes if it is run."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "a command was run"


def runs(load: Callable[[], object], canary: Path) -> None:
    """The same bytes read the ordinary way: what is refused below is really dangerous."""
    try:
        load()
    except Exception:
        pass  # whatever else is wrong with them
    for _ in range(500):
        if canary.exists():
            break
        time.sleep(0.01)  # a process of its own
    assert canary.exists(), "this file is harmless"
    canary.unlink()


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    line = str(error.value)
    assert str(path) in line and "\n" not in line and "nothing was run" in line, line
    return line


# every way to run something, in every container


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_pickles(tmp_path: Path, canary: Path, name: str, protocol: int) -> None:
    data = in_a_model(payloads(canary)[name], protocol)
    if ONLY.get(name, protocol) == protocol:
        runs(lambda: pickle.loads(data), canary)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(data)
    assert "is refused: it asks for " in refusal(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
def test_torch_files(tmp_path: Path, canary: Path, name: str, write: Callable[[Path, bytes], Path]) -> None:
    path = write(tmp_path / "model_final.pth", in_a_model(payloads(canary)[name], ONLY.get(name, 2)))
    runs(lambda: torch.load(path, weights_only=False), canary)
    assert "is refused: it asks for " in refusal(path)


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_every_pickle_of_an_old_torch_file(tmp_path: Path, canary: Path, place: int) -> None:
    path = torch_legacy(tmp_path / "m.pth", b"\x80\x02" + payloads(canary)["os.system"] + b".", place)
    runs(lambda: torch.load(path, weights_only=False), canary)
    if place == 0:  # then it is no torch file any more
        path = path.rename(tmp_path / "m.pkl")
    assert "asks for os.system" in refusal(path)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_torch_files_of_other_protocols(tmp_path: Path, canary: Path, protocol: int) -> None:
    command = f"touch {canary}"

    class Reduced:
        def __reduce__(self) -> tuple[Any, ...]:
            import os

            return os.system, (command,)

    for zipped in (True, False):
        path = tmp_path / f"m{zipped}.pth"
        torch.save({"model": {"w": Reduced()}}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        runs(lambda path=path: torch.load(path, weights_only=False), canary)
        expected = "the operation " if protocol > 3 else f"{os.system.__module__}.system"
        assert f"is refused: it asks for {expected}" in refusal(path)


def test_tar_files(tmp_path: Path, canary: Path) -> None:
    """The oldest torch files; one of them begins as the next older kind does."""
    evil = in_a_model(payloads(canary)["os.system"], 2)
    plain = torch_tar(tmp_path / "m.pth", evil)
    disguised = torch_tar(tmp_path / "n.pth", evil, first=MAGIC.decode("latin-1"))
    assert disguised.read_bytes().startswith(MAGIC)
    for path in (plain, disguised):
        runs(lambda path=path: torch.load(path, weights_only=False), canary)
    assert "is no checkpoint" in refusal(plain)
    assert "is damaged, cut off or holds more than weights" in refusal(disguised)


def test_zips_that_are_not_what_they_seem(tmp_path: Path, canary: Path) -> None:
    evil = in_a_model(payloads(canary)["os.system"], 2)
    for number, names in enumerate([("a/data.pkl", "b/data.pkl"), ("m/data.pkl", "m/constants.pkl"), ("evil.pkl",)]):
        path = torch_zip(tmp_path / f"{number}.pth", evil, names)
        with pytest.raises(ValueError, match="no torch file: it has not one data.pkl|TorchScript program"):
            read_checkpoint(path)


def test_registered_extensions(tmp_path: Path, canary: Path) -> None:
    """A pickle may name a global by a number that a program has registered."""
    for code, number in ((b"\x82\xf0", 240), (b"\x83\xf0\x01", 496), (b"\x84\xf0\x01\x01\x00", 66032)):
        data = in_a_model(call(code, text(f"touch {canary}")), 2)
        copyreg.add_extension("os", "system", number)
        try:
            runs(lambda data=data: pickle.loads(data), canary)
            (tmp_path / "x.pkl").write_bytes(data)
            assert "asks for the operation EXT" in refusal(tmp_path / "x.pkl")
            refusal(torch_zip(tmp_path / "x.pth", data))
        finally:
            copyreg.remove_extension("os", "system", number)
            copyreg.clear_extension_cache()


@pytest.mark.parametrize(
    "payload",
    [
        b"P1\n",
        text("1") + b"Q",
        text("storage") + b"\x85Q",
        b"\x97",
        b"\x90\x8f",
        b"\x8f",
        b"}b",
        b")R",
        b"](R",
        named("numpy.dtype") + b"}" + text("__setstate__") + b"K\x01sb",
        named("numpy.ndarray") + b")\x81",
        named("numpy.ndarray") + b")}\x92",
        named("collections.OrderedDict") + b")\x81",
        b"(" + named("numpy.dtype") + b"o",
        b"(inumpy\ndtype\n",
        call(named("numpy._core.multiarray._reconstruct"), b"}", b"K\x00\x85", text("b")),
        call(named("_codecs.encode"), text("x"), text("bz2")),
        call(named("builtins.bytes"), b"J\xff\xff\xff\x7f"),
        named("numpy.ndarray.__class__"),
        named("numpy.dtype.__init__.__globals__"),
    ],
    ids=range(20),
)
def test_operations_and_arguments_that_arrays_do_not_need(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(in_a_model(payload))
    with pytest.raises(ValueError, match="x.pkl is (refused|a damaged)"):
        read_checkpoint(path)


def test_stand_ins_cannot_be_changed(tmp_path: Path) -> None:
    """A pickle may give a state to whatever is on the stack, functions and classes too. Ours must stay as they are."""
    good = pickle.dumps({"w": np.ones(3, np.float32)})
    state = b"N}" + text("__setstate__") + named("_codecs.encode") + b"s\x86b"
    for name in ("numpy.ndarray", "numpy.dtype", "_codecs.encode", "numpy._core.multiarray._reconstruct"):
        path = tmp_path / "x.pkl"
        for write in (Path.write_bytes, torch_zip):
            write(path, in_a_model(named(name) + state, 2))
            pytest.raises(ValueError, read_checkpoint, path)
        path.write_bytes(good)
        assert torch.equal(read_checkpoint(path)["w"], torch.ones(3))


# every place that a file can be given


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder that is in order."""
    model = fapn_zoo.create_model("perpixel_fapn", num_classes=11, **TINY)  # as many as generated scenes have
    return model.save(tmp_path_factory.mktemp("weights") / "good", license="mit")


@pytest.fixture(params=["pickle", "torch file", "older torch file"])
def evil(request: pytest.FixtureRequest, tmp_path: Path, canary: Path) -> Path:
    """A malicious file with the ending that the place expects, decided by its user: the name says nothing anyway."""
    data = in_a_model(payloads(canary)["os.system"], 2)
    path = tmp_path / "evil"
    if request.param == "pickle":
        path.write_bytes(data)
        runs(lambda: pickle.loads(data), canary)
    else:
        (torch_zip if request.param == "torch file" else torch_legacy)(path, data)
        runs(lambda: torch.load(path, weights_only=False), canary)
    return path


@pytest.fixture
def evil_folder(tmp_path: Path, folder: Path, evil: Path) -> Path:
    """A weights folder with the file in place of its weights."""
    copy = tmp_path / "folder"
    copy.mkdir()
    for name in ("config.json", "README.md"):
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "model.safetensors").write_bytes(evil.read_bytes())
    return copy


@pytest.fixture
def outcome(
    request: pytest.FixtureRequest, record_property: Callable[[str, Any], None], capsys: pytest.CaptureFixture[str]
) -> Note:
    """Checks that an error is one line, and puts it into the table at the end of the run."""

    def note(place: str, line: str) -> None:
        assert line and "\n" not in line, line
        container = request.node.callspec.params["evil"]
        shown = line.replace(str(request.getfixturevalue("tmp_path")), "...")
        record_property(
            "row of malicious files: place, container and outcome",
            {"place": place, "container": container, "nothing run, and": shown},
        )

    return note


def command_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error of a command that must fail."""
    assert cli.main([str(word) for word in words]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_convert(evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], outcome: Note) -> None:
    model = "perpixel_fpn_resnet50_ade20k"
    line = command_line(capsys, "convert", evil, "--model", model, "--out", tmp_path / "out")
    assert "is refused: it asks for os.system, which weights do not need; nothing was run" in line
    outcome("fapn-zoo convert FILE --model NAME", line)
    (tmp_path / "many").mkdir()
    evil.rename(tmp_path / "many" / "evil.pth")
    line = command_line(capsys, "convert", tmp_path / "many", "--out", tmp_path / "out")
    outcome("fapn-zoo convert FOLDER", line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.pkl"])
def test_checkpoint_path(evil: Path, tmp_path: Path, outcome: Note, name: str) -> None:
    path = evil.rename(tmp_path / name)
    with pytest.raises(ValueError, match="only safetensors are loaded") as error:
        fapn_zoo.create_model("perpixel_fapn", num_classes=3, checkpoint_path=path, **TINY)
    if name == "model.safetensors":
        outcome("create_model(checkpoint_path=FILE)", str(error.value))


def test_weights_folders(evil_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, outcome: Note) -> None:
    with pytest.raises(ValueError, match="only safetensors are loaded") as error:
        fapn_zoo.create_model(f"local-dir:{evil_folder}", pretrained=True)
    outcome("create_model('local-dir:FOLDER')", str(error.value))
    with pytest.raises(ValueError, match="only safetensors are loaded"):
        fapn_zoo.create_model(f"local-dir:{evil_folder}", pretrained=True, num_classes=7)
    with pytest.raises(ValueError, match="only safetensors are loaded"):
        fapn_zoo.create_model("perpixel_fapn", num_classes=3, checkpoint_path=evil_folder, **TINY)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(photo)
    for place, words in {
        "fapn-zoo predict --model FOLDER": ("predict", photo, "--model", evil_folder, "--out", tmp_path / "out"),
        "fapn-zoo eval FOLDER": ("eval", evil_folder, "--data", "scenes:2"),
        "fapn-zoo push FOLDER": ("push", evil_folder, "me/mine", "--dry-run"),
    }.items():
        line = command_line(capsys, *words)
        assert "only safetensors are loaded" in line
        outcome(place, line)


def test_files_where_a_model_is_expected(
    evil: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, outcome: Note
) -> None:
    for place, words in {
        "fapn-zoo eval FILE": ("eval", evil, "--data", "scenes:2"),
        "fapn-zoo predict --model FILE": ("predict", evil, "--model", evil, "--out", tmp_path / "out"),
        "fapn-zoo predict --model local-dir:FILE": ("predict", evil, "--model", f"local-dir:{evil}"),
        "fapn-zoo info FILE": ("info", evil),
    }.items():
        outcome(place, command_line(capsys, *words))


def test_files_where_a_photo_is_expected(
    evil: Path, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, outcome: Note
) -> None:
    """Photos are decoded by Pillow, from their content."""
    photo = evil.rename(tmp_path / "photo.jpg")
    assert cli.main(["predict", str(photo), "--model", str(folder), "--out", str(tmp_path / "out")]) == 1
    (failed,) = json.loads((tmp_path / "out" / "summary.json").read_text())["failed"]
    outcome("fapn-zoo predict FILE", str(failed["error"]))


def recipe(tmp_path: Path, **settings: object) -> Path:
    path = tmp_path / "recipe.py"
    arguments = {
        "data": "scenes:4",
        "crop": (32, 48),
        "steps": 2,
        "batch_size": 2,
        "val_data": "none",
        "threads": 1,
        "model": "perpixel_fapn",
        "model_args": {k: v for k, v in TINY.items() if k != "backbone"},
        "backbone": TINY["backbone"],
        "out": str(tmp_path / "run"),
    } | settings
    path.write_text(
        f"from fapn_zoo.train.settings import Settings\n\n\ndef recipe():\n    return Settings(**{arguments!r})\n"
    )
    return path


def test_training_that_starts_from_a_file(
    evil: Path, evil_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, outcome: Note
) -> None:
    line = command_line(capsys, "train", recipe(tmp_path), f"checkpoint_path={evil}")
    assert "only safetensors are loaded" in line
    outcome("fapn-zoo train RECIPE checkpoint_path=FILE", line)
    bare = recipe(tmp_path, model_args={}, backbone=None)
    line = command_line(capsys, "train", bare, f"model=local-dir:{evil_folder}", "pretrained=true")
    assert "only safetensors are loaded" in line
    outcome("fapn-zoo train RECIPE model=local-dir:FOLDER", line)


def test_training_that_is_resumed(
    evil: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, outcome: Note
) -> None:
    assert cli.main(["train", str(recipe(tmp_path))]) == 0
    capsys.readouterr()
    (state,) = (tmp_path / "run" / "checkpoint").glob("step-*/state.pt")
    state.write_bytes(evil.read_bytes())
    line = command_line(capsys, "train", recipe(tmp_path), "resume=auto")
    assert "state.pt is not a readable checkpoint" in line
    outcome("fapn-zoo train RECIPE resume=auto", line)


def test_backbones_of_ones_own(evil: Path, tmp_path: Path, outcome: Note) -> None:
    """timm reads these; it is asked for weights only."""
    local = tmp_path / "timm"
    local.mkdir()
    (local / "config.json").write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": {}}))
    create = functools.partial(fapn_zoo.create_model, "perpixel_fpn", num_classes=3, pretrained_backbone=True)
    for name in ("pytorch_model.bin", "model.safetensors"):
        (local / name).write_bytes(evil.read_bytes())
        with pytest.raises((ValueError, OSError)) as error:
            create(backbone=f"local-dir:{local}")
        outcome(f"create_model(backbone='local-dir:FOLDER') with {name}", str(error.value))
        (local / name).unlink()
    for ending in (".pth", ".safetensors"):
        path = tmp_path / f"backbone{ending}"
        path.write_bytes(evil.read_bytes())
        with pytest.raises((ValueError, OSError)) as error:
            create(backbone="resnet10t", backbone_pretrained_cfg_overlay={"file": str(path)})
        outcome(f"create_model(backbone_pretrained_cfg_overlay=) with {path.name}", str(error.value))


@pytest.mark.hub
def test_repositories(evil_folder: Path, tmp_path: Path, outcome: Note, ask_hub: Callable[[str], None]) -> None:
    with Hub() as hub:
        hub.add("me/mine", evil_folder)
        ask_hub(hub.url)
        with pytest.raises(ValueError, match="only safetensors are loaded") as error:
            fapn_zoo.create_model("hf-hub:me/mine", pretrained=True, cache_dir=tmp_path / "cache")
    outcome("create_model('hf-hub:OWNER/NAME')", str(error.value))
