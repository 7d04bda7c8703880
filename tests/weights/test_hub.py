"""Models by `hf-hub:` names, and backbones with timm's weights, through the real Hub client against loopback."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save
from torch import Tensor
from toys.hub.client import WEIGHTS, environment, finish, start
from toys.hub.faults import Fault
from toys.hub.server import Hub

import fapn_zoo
from fapn_zoo.weights import digests, failures
from fapn_zoo.weights import hub as hub_module
from fapn_zoo.weights.folder import read_tensors

pytestmark = pytest.mark.hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = fapn_zoo.create_model(
        "perpixel_fapn",
        backbone="resnet10t",
        num_classes=3,
        backbone_channels=(8, 8, 16, 16),
        neck_out_channels=16,
        neck_deform_groups=2,
    )
    return model.save(tmp_path_factory.mktemp("hub") / "streets", license="mit")


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with Hub() as server:
        server.add("me/streets", folder, tags=("v2",))
        yield server


def run(code: str, *arguments: str, hub: Hub, root: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(hub.url, root),
        cwd=root,
    )


def test_a_repository_becomes_a_model_bit_for_bit(hub: Hub, folder: Path, tmp_path: Path) -> None:
    commit = hub.repositories["me/streets"].branches["main"]
    for name in ("me/streets", "me/streets@v2", f"me/streets@{commit}"):
        path = Path(finish(start(name, hub, tmp_path))[0]["folder"])
        assert path.name == commit
    state = fapn_zoo.create_model(f"local-dir:{path}", pretrained=True).state_dict()
    expected = read_tensors(folder / WEIGHTS)
    assert state.keys() == expected.keys() and all(torch.equal(state[k], v) for k, v in expected.items())
    assert hub.count("^GET .*model.safetensors") == 1  # the second and third name came from the cache


def test_a_branch_moves_and_a_pin_does_not(hub: Hub, folder: Path, tmp_path: Path) -> None:
    first = hub.repositories["me/streets"].branches["main"]
    finish(start("me/streets", hub, tmp_path))
    second = hub.add("me/streets", {path.name: path.read_bytes() for path in folder.iterdir()} | {"README.md": b"new"})
    answers = [finish(start(name, hub, tmp_path))[0]["folder"] for name in ("me/streets", f"me/streets@{first}")]
    assert [Path(answer).name for answer in answers] == [second.id, first]
    assert Path(answers[0], "README.md").read_bytes() == b"new"
    assert hub.count("^GET .*model.safetensors") == 1  # the same content is one file in the cache
    offline = finish(start("me/streets", hub, tmp_path, HF_HUB_OFFLINE="1"))[0]["folder"]
    assert Path(offline).name == second.id


def test_a_failed_update_leaves_the_old_state_usable(hub: Hub, folder: Path, tmp_path: Path) -> None:
    first = finish(start("me/streets", hub, tmp_path))[0]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("me/streets", files | {WEIGHTS: files[WEIGHTS][::-1]})
    hub.faults = [Fault("wrong")]
    assert "was damaged" in finish(start("me/streets", hub, tmp_path))[0]["error"]
    assert finish(start("me/streets", hub, tmp_path, HF_HUB_OFFLINE="1"))[0] == first


def test_the_description_alone(hub: Hub, tmp_path: Path) -> None:
    path = Path(finish(start("me/streets", hub, tmp_path, {"weights": False}))[0]["folder"])
    assert sorted(p.name for p in path.iterdir()) == ["README.md", "config.json"]
    assert "folder" in finish(start("me/streets", hub, tmp_path, {"weights": False}, HF_HUB_OFFLINE="1"))[0]
    whole = finish(start("me/streets", hub, tmp_path, HF_HUB_OFFLINE="1"))[0]
    assert "HF_HUB_OFFLINE is set and model.safetensors is not in the cache" in whole["error"]


def test_a_repository_without_a_card(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.add("me/bare", {name: (folder / name).read_bytes() for name in ("config.json", WEIGHTS)})
    assert "folder" in finish(start("me/bare", hub, tmp_path))[0]
    hub.add("me/empty", {"README.md": b""})
    assert "me/empty holds no config.json" in finish(start("me/empty", hub, tmp_path))[0]["error"]


@pytest.mark.parametrize("name", ["streets", "me/streets/x", "me/streets@", "me/streets@../../x", "me/streets@/v2"])
def test_malformed_names(name: str) -> None:
    with pytest.raises(ValueError, match="expected 'owner/name' or 'owner/name@revision'"):
        fapn_zoo.create_model(f"hf-hub:{name}")


CLI = """
import contextlib, io, json, sys
from fapn_zoo import cli
from fapn_zoo.weights import failures
failures.FIRST_PAUSE = 0.05
seen = {}
for name in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        seen[name] = cli.main(["predict", "photo.png", "--model", f"hf-hub:{name}", "--out", "out", "--device", "cpu"])
    seen[name] = [seen[name], [line for line in err.getvalue().splitlines() if line.startswith("error: ")]]
seen["converters"] = [name for name in sys.modules if name.startswith("fapn_zoo.convert")]
print(json.dumps(seen), flush=True)
sys.exit(cli.main(["predict", "photo.png", "--model", "hf-hub:me/gated"]))
"""


def test_the_command_line_says_it_in_one_line_and_exits_with_1(
    hub: Hub, folder: Path, tmp_path: Path, photo: Path
) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("gated", "private", "busy", "damaged"):
        hub.add(f"me/{name}", files, gated=name == "gated", private=name == "private")
    hub.faults = [
        Fault("status", "me/busy", status=429, headers={"Retry-After": "300"}),
        Fault("wrong", "cdn/me/damaged"),
    ]
    expected = {
        "me/none": "no repository me/none",
        "me/streets@v9": "no revision 'v9'",
        "me/gated": "accept its terms at",
        "me/private": "set HF_TOKEN",
        "me/busy": "wait 300 s",
        "me/damaged": "was damaged",
    }
    done = run(CLI, "me/streets", *expected, hub=hub, root=tmp_path)
    seen = json.loads(done.stdout)
    assert seen.pop("me/streets") == [0, []]
    assert seen["converters"] == []  # what reads pickles is loaded by those who ask for it only
    assert (tmp_path / "out" / "summary.json").is_file()
    for name, words in expected.items():
        code, lines = seen[name]
        assert code == 1 and len(lines) == 1 and words in lines[0], (name, seen[name])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: cannot fetch 'me/gated' from the Hub: me/gated is gated; ")
    assert "Traceback" not in done.stderr


def build_backbone(name: str, cache: Path, **overlay: Any) -> dict[str, Tensor]:
    """What it loads of its own weights; `overlay` replaces what timm says of them."""
    options = {"pretrained_backbone": True, "cache_dir": cache, "num_classes": 2}
    options |= {"backbone_pretrained_cfg_overlay": overlay} if overlay else {}
    return fapn_zoo.create_model("perpixel_fapn", backbone=name, **options).backbone.body.state_dict()


def test_timm_weights_of_a_backbone(
    ask_hub: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the Hub like our own: verified, in the given cache, and with one line where they cannot be had."""
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.05)
    torch.manual_seed(0)
    expected = timm.create_model("resnet10t").state_dict()
    with Hub() as hub:
        ask_hub(hub.url)
        for name in ("timm/resnet10t.c3_in1k", "timm/resnet26t.ra2_in1k"):
            hub.add(name, {"config.json": b"{}", WEIGHTS: save(expected)})
        hub.faults = [Fault("wrong", "cdn/timm/resnet26t")]
        # Once more as if the weights that timm has elsewhere were of another format.
        for overlay in ({}, {"custom_load": True}):
            state = build_backbone("resnet10t", tmp_path, **overlay)
            assert all(torch.equal(value, expected[key]) for key, value in state.items())
        assert hub.count("^GET .*resnet10t") == 1
        for name, overlay, words in (
            ("resnet14t", {}, "no repository timm/resnet14t.c3_in1k"),
            ("resnet26t", {}, "was damaged"),
            ("resnet34", {"hf_hub_id": "timm/resnet26t.ra2_in1k"}, "was damaged"),
        ):
            with pytest.raises(ConnectionError, match=f"^no ImageNet weights for backbone '{name}") as error:
                build_backbone(name, tmp_path, **overlay)
            line = str(error.value)
            assert words in line and "\n" not in line
            assert line.endswith("pretrained_backbone=False goes on without them")
    assert list(tmp_path.glob("models--timm--resnet10t.c3_in1k/snapshots/*/model.safetensors"))
    assert not list(tmp_path.glob("models--timm--resnet26t*/blobs/*"))


def test_weights_of_a_backbone_load_without_a_word(
    ask_hub: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """timm would name tensors behind the last feature map and the classifier's as unexpected."""
    file = tmp_path / WEIGHTS
    file.write_bytes(save(timm.create_model("mobilenetv4_conv_small").state_dict()))
    with Hub() as hub:
        hub.add("timm/mobilenetv4_conv_small.e2400_r224_in1k", {WEIGHTS: file.read_bytes()})
        ask_hub(hub.url)
        capfd.readouterr()
        with caplog.at_level(logging.DEBUG):
            for overlay in ({}, {"file": str(file)}):
                build_backbone("mobilenetv4_s", tmp_path / "cache", **overlay)
    assert not [record for record in caplog.records if record.name.startswith("timm")]
    assert "".join(capfd.readouterr()) == ""


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAPN_ZOO_CACHE", str(tmp_path / "own"))
    path = tmp_path / "weights"
    path.write_bytes(bytes(2 * digests.REMEMBERED))
    (right,) = digests.digests(path, 64)
    reads = []
    monkeypatch.setattr(digests, "digests", lambda *a, digests=digests.digests: reads.append(a) or digests(*a))
    assert [digests.has_digest(path, right) for _ in range(3)] == [True] * 3 and len(reads) == 1
    assert [digests.has_digest(path, "ab" * 32) for _ in range(2)] == [False] * 2 and len(reads) == 3
    now = time.time_ns()
    os.utime(path, ns=(now, now))
    assert digests.has_digest(path, right) and len(reads) == 4
    content = bytearray(path.read_bytes())
    content[7] = 1
    path.write_bytes(content)
    assert not digests.has_digest(path, right)
    copy = tmp_path / "copy"
    copy.write_bytes(content)
    assert not digests.has_digest(copy, right)  # the note is of one place


def test_small_files_are_named_by_git(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"hello\n")
    assert digests.has_digest(path, "ce013625030ba8dba906f756967f9e9ca394464a")  # git hash-object
    assert digests.has_digest(path, "f572d396fae9206628714fb2ce00f72e94f2258f")  # sha1sum
    assert not digests.has_digest(path, "0" * 40)
    with pytest.raises(ValueError, match="12 hexadecimal digits; expected 64"):
        digests.has_digest(path, "0" * 12)


def test_damaged_weights_of_a_backbone_are_named_offline(
    ask_hub: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as hub:
        hub.add(
            "timm/resnet10t.c3_in1k", {"config.json": b"{}", WEIGHTS: save(timm.create_model("resnet10t").state_dict())}
        )
        ask_hub(hub.url)
        build_backbone("resnet10t", tmp_path)
        (file,) = tmp_path.glob("models--timm--resnet10t*/snapshots/*/model.safetensors")
        whole = file.read_bytes()
        for content in (b"", whole[:-1], whole[::-1]):
            file.resolve().write_bytes(content)
            with monkeypatch.context() as offline:
                offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
                with pytest.raises(ConnectionError, match="no ImageNet weights for backbone 'resnet10t") as error:
                    build_backbone("resnet10t", tmp_path)
            line = str(error.value)
            assert f"{file}, in the cache, is damaged ({len(content)} bytes with digest " in line and "\n" not in line
            assert (
                "and HF_HUB_OFFLINE is set; unset it to fetch the file again" in line and "not in the cache" not in line
            )
            assert file.read_bytes() == content
            build_backbone("resnet10t", tmp_path)
            assert file.read_bytes() == whole
        assert not list(tmp_path.rglob("*.incomplete"))


def test_a_file_that_cannot_be_read_is_fetched_again(
    ask_hub: Callable[[str], None], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, digest: str) -> bool:
        if path.name == WEIGHTS and not seen:
            seen.append(path)
            raise PermissionError(13, "Permission denied")
        return digests.has_digest(path, digest)

    seen: list[Path] = []
    monkeypatch.setattr(hub_module, "has_digest", refuse)
    with Hub() as hub:
        hub.add("me/streets", {path.name: path.read_bytes() for path in folder.iterdir()})
        ask_hub(hub.url)
        seen.append(folder)
        first = hub_module.download("me/streets", cache_dir=tmp_path)
        seen.clear()
        assert hub_module.download("me/streets", cache_dir=tmp_path) == first and len(seen) == 1
        assert hub.count("^GET .*model.safetensors") == 2
        seen.clear()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(
            ValueError, match=r"model.safetensors, in the cache, cannot be read \(Permission denied\), and"
        ):
            hub_module.download("me/streets", cache_dir=tmp_path)


def test_two_processes_mend_a_damaged_cache(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (path,) = (Path(finish(start("me/streets", hub, tmp_path))[0]["folder"]) / name for name in (WEIGHTS,))
    path.resolve().write_bytes(bytes(7))
    processes = [start("me/streets", hub, tmp_path) for _ in range(2)]
    for answer, log in map(finish, processes):
        assert answer == {"folder": str(path.parent)} and "Traceback" not in log
    assert path.read_bytes() == (folder / WEIGHTS).read_bytes() and not list(tmp_path.rglob("*.incomplete"))
