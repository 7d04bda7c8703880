"""`fapn-zoo push` with the real client against a Hub on loopback: what goes up, what comes back, what goes wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from toys.hub.faults import Fault
from toys.hub.server import Hub

import fapn_zoo
from fapn_zoo.cli import main as fapn_zoo_command
from fapn_zoo.cli.common import EMBEDDED
from fapn_zoo.data.scenes import CLASSES, PALETTE, generate_scene
from fapn_zoo.export.push import push
from fapn_zoo.weights import failures
from fapn_zoo.weights.card import check_card, render_card
from fapn_zoo.weights.folder import read_config

pytestmark = pytest.mark.hub
FILES = {".gitattributes", "README.md", "config.json", "model.safetensors"}

# One process that pushes as often as it is asked to, because the client reads its environment when it is imported.
CLIENT = """
import contextlib, dataclasses, io, json, logging, os, sys, time
import fapn_zoo
from fapn_zoo.export import push
from fapn_zoo.cli import main
from safetensors.torch import save_file
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 50)  # the client waits for as long as half a minute
for line in sys.stdin:
    words, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None) if token is None else os.environ.update(HF_TOKEN=token)
    logging.root.handlers.clear()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            if words[0] == "load":
                save_file(fapn_zoo.create_model(words[1], pretrained=True).state_dict(), words[2])
                code = 0
            elif words[0] == "mixed up":
                package = push.prepare(words[1], words[2])
                push.upload(dataclasses.replace(package, sha256="0" * 64))
            else:
                code = main(words)
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


class Client:
    def __init__(self, endpoint: str, home: Path) -> None:
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __call__(self, *words: object, token: str | None = "hf_mine") -> tuple[int | str, str, str]:
        self.process.stdin.write(json.dumps([[str(word) for word in words], token]) + "\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))

    def error(self, *words: object, token: str | None = "hf_mine") -> str:
        """The one line that a failing command ends with."""
        code, out, err = self(*words, token=token)
        assert code == 1 and not out, (code, out, err)
        line = err.splitlines()[-1]
        assert line.startswith("error: ") and err.count("error: ") == 1, err
        return line

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    data = fapn_zoo.DataSpec(labels=tuple(CLASSES), palette=tuple(map(tuple, PALETTE)))
    model = fapn_zoo.create_model(
        "perpixel_fapn",
        backbone="resnet10t",
        num_classes=11,
        data=data,
        backbone_channels=(8, 8, 16, 16),
        neck_out_channels=16,
        neck_deform_groups=2,
    )
    return model.save(
        tmp_path_factory.mktemp("weights") / "streets",
        license="mit",
        text="Trained on a rainy day.",
        metrics={"town val mIoU": 41.5},
    )


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "streets"))


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with Hub() as hub:
        hub.tokens |= {"hf_mine": "me", "hf_yours": "you"}
        yield hub


@pytest.fixture(scope="module")
def client(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(server.url, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.repositories.clear()
    server.objects.clear()
    server.faults.clear()
    server.requests.clear()
    return server


def held(hub: Hub, name: str = "me/streets", revision: str = "main") -> dict[str, bytes]:
    return {path: blob.data for path, blob in hub.repositories[name].resolve(revision).files.items()}


def test_what_was_pushed_comes_back_bit_for_bit(hub: Hub, client: Client, folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / ".hidden").mkdir()
    code, out, err = client("push", folder, "me/streets")
    assert code == 0, err
    files = held(hub)
    assert set(files) == FILES and out.strip().startswith(f"{hub.url}/me/streets/commit/")
    assert hub.count("^POST .*/commit/") == 1
    assert all(files[name] == (folder / name).read_bytes() for name in ("config.json", "model.safetensors"))
    card = files["README.md"].decode()
    check_card(card)
    assert 'create_model("hf-hub:me/streets", pretrained=True)' in card and "Trained on a rainy day." in card
    assert (folder / "README.md").read_text() != card  # the folder's own card speaks of the folder, and stays
    assert client("load", "hf-hub:me/streets", tmp_path / "back.safetensors")[0] == 0
    back, sent = load_file(tmp_path / "back.safetensors"), load_file(folder / "model.safetensors")
    assert back.keys() == sent.keys() and all(torch.equal(back[key], sent[key]) for key in sent)


def test_pushed_again(hub: Hub, client: Client, folder: Path) -> None:
    assert client("push", folder, "me/streets")[0] == 0
    first = hub.repositories["me/streets"].resolve("main").id
    code, out, _ = client("push", folder, "me/streets")
    assert code == 0 and out.strip().endswith(first) and hub.count("^POST .*/commit/") == 1  # nothing has changed
    assert client("push", folder, "me/streets", "--license", "apache-2.0", "--message", "Other terms")[0] == 0
    head = hub.repositories["me/streets"].resolve("main")
    assert head.id != first and head.title == "Other terms"
    assert (
        json.loads(held(hub)["config.json"])["license"] == "apache-2.0"
        and "license: apache-2.0" in held(hub)["README.md"].decode()
    )
    assert json.loads((folder / "config.json").read_text())["license"] == "mit"  # the folder is left alone
    assert hub.count("^PUT /lfs/") == 1  # the weights went up once
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text())))
    assert client("push", folder, "me/streets")[0] == 0
    assert json.loads(held(hub)["config.json"])["license"] == "mit"


def test_private_branch_and_example(hub: Hub, client: Client, folder: Path, tmp_path: Path) -> None:
    photo = Image.fromarray(generate_scene(3, (900, 1600)).image)
    exif = Image.Exif()
    exif[270] = "home"  # ImageDescription
    photo.save(tmp_path / "photo.jpg", exif=exif)
    assert b"home" in (tmp_path / "photo.jpg").read_bytes()
    code, _, err = client(
        "push", folder, "me/streets", "--private", "--branch", "v2", "--example", tmp_path / "photo.jpg"
    )
    assert code == 0, err
    assert hub.repositories["me/streets"].private and set(held(hub)) == {".gitattributes"}
    files = held(hub, revision="v2")
    assert set(files) == FILES | {"example.jpg", "overlay.png"}
    example, overlay = (Image.open(io.BytesIO(files[name])) for name in ("example.jpg", "overlay.png"))
    assert example.size == overlay.size == (1280, 720) and not example.getexif() and b"home" not in files["example.jpg"]
    card = files["README.md"].decode()
    assert f"src: {hub.url}/me/streets/resolve/v2/example.jpg" in card and "hf-hub:me/streets@v2" in card
    assert client("load", "hf-hub:me/streets@v2", tmp_path / "back.safetensors")[0] == 0


@pytest.mark.parametrize(
    "repo_id, token, words",
    [
        ("me/streets", None, "no Hub token; run `hf auth login` or set HF_TOKEN"),
        ("me/streets", "hf_wrong", "does not accept the token (401); run `hf auth login`"),
        ("you/streets", "hf_mine", "may not write to you/streets (403: "),
        ("you/gated", "hf_mine", "may not write to you/gated (403: "),
        ("you/new", "hf_mine", "may not write to you/new (403: "),
    ],
)
def test_without_the_right_to(
    hub: Hub,
    client: Client,
    folder: Path,
    record_property: Callable[[str, Any], None],
    repo_id: str,
    token: str | None,
    words: str,
) -> None:
    hub.add("you/streets", {"README.md": b"# yours\n"})
    hub.add("you/gated", {"README.md": b"# yours\n"}, gated=True)
    line = client.error("push", folder, repo_id, token=token)
    assert words in line
    assert set(hub.repositories) == {"you/streets", "you/gated"}
    assert all(set(held(hub, name)) == {"README.md"} for name in hub.repositories)
    fault = f"push to {repo_id} " + {None: "without a token", "hf_wrong": "with a wrong token"}.get(token, "of another")
    record_property("row of Faults of an upload", {"fault": fault, "outcome": line})


FAULTS = {
    "card refused": (
        Fault("status", "^POST /api/validate-yaml", 1, 400),
        "the Hub refuses the upload to me/streets (card: Invalid metadata in README.md",
    ),
    "storage full": (Fault("status", "^POST .*/batch", 1, 413, message="too large"), "(413: too large)"),
    "commit in between": (Fault("status", "^POST .*/commit/", 1, 412), "by someone else at the same time (412); push"),
    "500 from the storage": (Fault("status", "^PUT /lfs/", None, 500), "the Hub answers 500"),
    "500 to the commit": (Fault("status", "^POST .*/commit/", None, 500), "answers 500 (500); nothing is half there"),
    "503 to the creation": (Fault("status", "^POST /api/repos/create", None, 503), "the Hub answers 503"),
    "connection cut": (Fault("cut", "^POST .*/preupload/", None, fraction=0.0), "or it broke (peer closed connection"),
    "500 twice to the creation": (Fault("status", "^POST /api/repos/create", 2, 500), None),
    "500 twice to the commit": (Fault("status", "^POST .*/commit/", 2, 500), None),
    "429 once": (Fault("status", "^POST .*/preupload/", 1, 429), None),
    "500 twice from the storage": (Fault("status", "^PUT /lfs/", 2, 500), None),
    "500 after the commit": (Fault("status", "^POST .*/paths-info/", 1, 500), None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_passes_or_leaves_everything_as_it_was(
    hub: Hub, client: Client, folder: Path, record_property: Callable[[str, Any], None], name: str
) -> None:
    fault, words = FAULTS[name]
    hub.faults.append(dataclasses.replace(fault))
    if words is None:
        code, out, err = client("push", folder, "me/streets")
        assert code == 0, err
        outcome = f"pushed: {out.strip().rpartition('/')[0]}/..."
    else:
        outcome = client.error("push", folder, "me/streets")
        assert words in outcome
        assert all(
            set(repository.resolve("main").files) == {".gitattributes"}  # made, but nothing in it
            for repository in hub.repositories.values()
        )
    record_property("row of Faults of an upload", {"fault": name, "outcome": outcome.replace(hub.url, "URL")})
    hub.faults.clear()
    assert client("push", folder, "me/streets")[0] == 0
    assert set(held(hub)) == FILES and len(hub.objects) == 1


def test_other_weights_on_the_hub_are_noticed(hub: Hub, client: Client, folder: Path) -> None:
    code, _, _ = client("mixed up", folder, "me/streets")
    assert code.startswith("OSError: me/streets now holds model.safetensors with sha256 ") and "0000" in code


def test_without_a_hub_and_offline(
    folder: Path, ask_hub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as gone:
        ask_hub(gone.url)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.01)
    for offline, words in ((False, f"no connection to {gone.url}"), (True, "HF_HUB_OFFLINE=1")):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        with pytest.raises(ConnectionError, match=re.escape(words)) as caught:
            push(folder, "me/streets")
        assert "\n" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    assert "license: mit" in push(folder, "me/streets", dry_run=True)


def test_dry_run_says_what_would_go_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fapn_zoo_command(["push", str(folder), "me/streets", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "perpixel_fapn -> me/streets" in out and "| town | val | mIoU | 41.50 |" in out
    listed = [line.split()[0] for line in out.split("\n\n")[0].splitlines()[1:4]]
    assert set(listed) == FILES - {".gitattributes"}
    check_card(out[out.index("---\n") :])


@pytest.mark.parametrize(
    "repo_id", ["streets", "me/", "a/b/c", "me/-x", "me/a b", "me/x.git", "me/a--b", "../x", "m\n/x"]
)
def test_wrong_repository_names(folder: Path, repo_id: str) -> None:
    with pytest.raises(ValueError, match="Hub repository") as caught:
        push(folder, repo_id, dry_run=True)
    assert "\n" not in str(caught.value)


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_folders_that_cannot_be_pushed(folder: Path, tmp_path: Path) -> None:
    def error(**arguments: Any) -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            push(folder, "me/streets", dry_run=True, **arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "branch '../x'" in error(revision="../x")
    for license in ("unknown", "", None, "none-stated"):
        change(folder, license=license)
        assert "states no licence" in error() and "--license apache-2.0" in error()
    assert "states no licence" in error(license=" ")
    assert "'house-rules' is no id that the Hub knows" in error(license="house rules")
    for license, line in (("house rules https://a.org/t", "license_name: house-rules"), ("MIT", "license: mit")):
        assert line in push(folder, "me/streets", license=license, dry_run=True)
    change(folder, license="mit", training={"pretrained": True, "model": EMBEDDED})
    assert "no such file" in error(example=tmp_path / "gone.jpg")
    tensors = load_file(folder / "model.safetensors")
    save_file({key: value * 1.01 for key, value in tensors.items()}, folder / "model.safetensors")
    assert f"{folder}: the model no longer computes its stored outputs" in error()
    (folder / "model.safetensors").write_bytes(b"\x80\x04 pickle")
    assert "is a pickle" in error()
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in error()
    (folder / "config.json").unlink()
    assert "has no config.json" in error()
    shutil.rmtree(folder)
    assert "no weights folder" in error()


def test_terms_of_what_training_started_from_are_called_to_mind(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(folder, training={"pretrained": True, "model": EMBEDDED})
    push(folder, "me/streets", dry_run=True)
    assert "started from weights under cc-by-nc-4.0, which the licence mit does not repeat" in caplog.text
    caplog.clear()
    push(folder, "me/streets", license="cc-by-nc-4.0", dry_run=True)
    assert "does not repeat" not in caplog.text


def test_weights_of_a_release_keep_its_terms(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = fapn_zoo.WeightsSpec(
        "official", "https://example.org/model_final_abcdef.pkl", license="cc-by-nc-4.0", page="https://example.org/zoo"
    )
    spec = fapn_zoo.ModelSpec("perpixel_fapn_there", "perpixel", "fapn", "resnet10t", 11, weights={"paper": weights})
    monkeypatch.setattr("fapn_zoo.zoo.registry._registered", {spec.name: spec})
    config = json.loads((folder / "config.json").read_text())
    config["model"]["name"] = spec.name
    change(folder, model=config["model"], source=weights.location, license="cc-by-nc-4.0")
    assert "license: cc-by-nc-4.0" in push(folder, "me/streets", dry_run=True)
    with pytest.raises(ValueError, match="https://example.org/zoo under cc-by-nc-4.0; they cannot be pushed under 'm"):
        push(folder, "me/streets", license="mit", dry_run=True)
    nothing = fapn_zoo.WeightsSpec("official", weights.location, license="none-stated", page=weights.page)
    spec = fapn_zoo.ModelSpec(spec.name, "perpixel", "fapn", "resnet10t", 11, weights={"paper": nothing})
    monkeypatch.setattr("fapn_zoo.zoo.registry._registered", {spec.name: spec})
    for license in (None, "mit", "none-stated"):
        with pytest.raises(ValueError, match="states no licence, so they cannot be passed on"):
            push(folder, "me/streets", license=license, dry_run=True)


def test_own_words_survive_and_a_hand_made_card_is_replaced(folder: Path) -> None:
    config = read_config(folder)
    (folder / "README.md").write_text(render_card(config, "Second edition.\n\n| a | b |"))
    assert "<!-- own words -->\nSecond edition.\n\n| a | b |\n<!-- end" in push(folder, "me/streets", dry_run=True)
    (folder / "README.md").unlink()
    assert "own words" not in push(folder, "me/streets", dry_run=True)
