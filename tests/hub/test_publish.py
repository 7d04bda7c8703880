"""`python -m hub.publish`: cards of the whole zoo, what stops them, and an upload to a Hub on loopback."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys.hub.server import Hub

import fapn_zoo
from fapn_zoo.cli.common import EMBEDDED
from fapn_zoo.weights.card import check_card
from fapn_zoo.weights.digests import file_digest
from fapn_zoo.zoo.registry import get_spec, list_models, resolve

pytestmark = pytest.mark.hub
ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / "hub" / "cards"
PAGE = "https://example.org/release"
Own = tuple[str, Path, Callable[..., None]]


@pytest.fixture(scope="module")
def publish() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("publish_under_test", ROOT / "hub" / "publish.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Adds models to the zoo for one test."""
    models: dict[str, fapn_zoo.ModelSpec] = {}
    monkeypatch.setattr("fapn_zoo.zoo.registry._registered", models)

    def register(name: str, weights: fapn_zoo.WeightsSpec, **more: fapn_zoo.WeightsSpec) -> str:
        models[name] = fapn_zoo.ModelSpec(
            name, "maskformer", "fpn", "resnet50", 150, label_set="ade20k", weights={"paper": weights} | more
        )
        return name

    return register


def released(**changes: Any) -> fapn_zoo.WeightsSpec:
    weights = fapn_zoo.WeightsSpec(
        "official",
        "https://example.org/model_final_abcdef.pkl",
        license="cc-by-nc-4.0",
        metrics={"ADE20K val mIoU": 44.5},
        note="reported by its authors",
        page=PAGE,
    )
    return dataclasses.replace(weights, **changes)


def error(publish: ModuleType, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a failing run ends with."""
    capsys.readouterr()
    assert publish.main([str(word) for word in words]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1
    return err.strip()


def test_every_card_is_in_step_with_the_facts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hub.publish", "--all", "--dry-run", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "HF_ENDPOINT"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    made, kept = (
        {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} for folder in (tmp_path, CARDS)
    )
    assert set(made) == {f"{name}.md" for name in list_models(pretrained=True)} and len(made) >= 25
    assert made == kept, "run python -m hub.publish --all"
    for name, card in made.items():
        check_card(card)
        ours = resolve(name.removesuffix(".md"), weights=True)[1].source == "embedded"
        assert ("No weights are kept here" not in card) == ours and ("widget:" in card) == ours
    lines = done.stdout.splitlines()
    assert len(lines) == len(made) and sum("whole: cc-by-nc-4.0, camvid test mIoU" in line for line in lines) == 1


def test_a_card_without_a_licence_stops_everything(
    publish: ModuleType,
    registered: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = []
    monkeypatch.setattr("fapn_zoo.export.push.upload", sent.append)
    for license in ("unknown", ""):
        name = registered("zz_unlicensed", released(license=license))
        assert error(publish, capsys, name, "--out", tmp_path) == "error: zz_unlicensed: the registry names no licence"
    for words in ([EMBEDDED, name], ["--all"]):
        line = error(publish, capsys, *words, "--upload", "--owner", "me", "--out", tmp_path)
        assert line == "error: zz_unlicensed: the registry names no licence"
    name = registered("zz_unlicensed", released(page=""))
    assert "names no web page" in error(publish, capsys, name, "--out", tmp_path)
    assert not sent and not list(tmp_path.iterdir())


def test_wrong_use(publish: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--all", EMBEDDED], [EMBEDDED, "--upload"], ["--all", "--upload", "--dry-run", "--owner", "me"]):
        with pytest.raises(SystemExit) as stop:
            publish.main(words)
        assert stop.value.code == 2
    capsys.readouterr()
    assert "nearest: perpixel_fapn" in error(publish, capsys, "perpixel_fapn_resnet18_slim_camvidd")
    assert "has no released weights" in error(publish, capsys, "perpixel_fpn_resnet18_slim_camvid")
    assert "Hub repository 'me/you/" in error(publish, capsys, EMBEDDED, "--owner", "me/you")


def test_only_rows_of_these_weights_count(
    publish: ModuleType, registered: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head = "model,weights,data,split,miou,params\n"
    (tmp_path / "semantic.csv").write_text(
        head
        + "".join(
            f"{model},{weights},ade20k,val,{miou},1\n"
            for model, weights, miou in [
                ("zz_model", "runs/x", 10),
                ("zz_model", "zz_model", 20),
                ("zz_model", "zz_model.other", 30),
                ("zz_model", "embedded", 40),
                ("another", "zz_model", 50),
                ("zz_model", "zz_model.paper", 44.38),
            ]
        )
    )
    (tmp_path / "speed.csv").write_text("model,weights,data,split,seconds\nzz_model,zz_model,ade20k,val,3\n")
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    registered("zz_model", released(), other=released(location="https://example.org/other.pkl"))
    card = publish.prepare_model("zz_model.paper", "me").card
    assert "| ADE20K | val | mIoU | 44.38 | `fapn-zoo eval` |" in card and "| mIoU | 44.50 | reported by" in card
    assert publish.prepare_model("zz_model", "me").card == card  # the first tag is the default
    other = publish.prepare_model("zz_model.other", "me")
    assert other.name == "zz_model.other" and "| 30.00 |" in other.card and "44.38" not in other.card


@pytest.fixture
def own(registered: Callable[..., str], tmp_path: Path, publish: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Own:
    """A model of ours with a folder of its own: (name, folder, change), change(config=..., weights=..., row=...)."""
    folder = Path(shutil.copytree(ROOT / "fapn_zoo" / "weights" / "embedded" / EMBEDDED, tmp_path / "weights"))
    spec, rows = get_spec(EMBEDDED)[0], tmp_path / "results"
    rows.mkdir()
    monkeypatch.setattr(publish, "RESULTS", rows)

    def change(
        config: dict | None = None, weights: dict | None = None, row: str = "zz_own,embedded,camvid,test,52.84"
    ) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
        (rows / "semantic.csv").write_text(f"model,weights,data,split,miou\n{row}\n")
        made = {"location": str(folder), "sha256": file_digest(folder / "model.safetensors")} | (weights or {})
        registered("zz_own", dataclasses.replace(spec.weights["zoo"], **made))

    change()
    return "zz_own", folder, change


def test_what_stops_weights_of_ours(
    publish: ModuleType, own: Own, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, folder, change = own
    config = json.loads((folder / "config.json").read_text())
    assert publish.main([name, "--out", str(tmp_path / "out")]) == 0

    def stopped(**changes: Any) -> str:
        change(**changes)
        line = error(publish, capsys, name, "--out", tmp_path / "out")
        change(config=config)
        return line

    assert "states the licence 'mit', the registry 'cc-by-nc-4.0'" in stopped(config={"license": "mit"})
    assert "states no licence" in stopped(config={"license": "unknown"}, weights={"license": "unknown"})
    assert "holds no stored outputs" in stopped(config={"probe": {}})
    assert "no row in" in stopped(row="zz_own,runs/x,camvid,test,52.84")
    assert "config.json says 52.84, the result row 52.94" in stopped(row="zz_own,embedded,camvid,test,52.94")
    assert "the registry " + "0" * 64 in stopped(weights={"sha256": "0" * 64})
    worse = json.loads(json.dumps(config["probe"]))
    worse["outputs"][0]["values"][0] += 1
    assert "no longer computes its stored outputs" in stopped(config={"probe": worse})
    assert publish.main([name, "--out", str(tmp_path / "out")]) == 0


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub client's transport
def test_upload(
    publish: ModuleType,
    ask_hub: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Hub() as hub:
        hub.tokens["hf_mine"] = "me"
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        ask_hub(hub.url)
        names = [EMBEDDED, "maskformer_fpn_resnet50_ade20k"]
        assert publish.main([*names, "--upload", "--owner", "me", "--out", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert set(hub.repositories) == {f"me/{EMBEDDED}"}  # nothing of an official release
        files = {path: blob.data for path, blob in hub.repositories[f"me/{EMBEDDED}"].resolve("main").files.items()}
        line = error(publish, capsys, EMBEDDED, "--upload", "--owner", "you", "--out", tmp_path / "denied")
    assert line.startswith(f"error: the token may not write to you/{EMBEDDED}")
    pictures = {"example.jpg", "overlay.png"}
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"} | pictures
    assert f"uploaded: {hub.url}/me/{EMBEDDED}/commit/" in out
    source = ROOT / "fapn_zoo" / "weights" / "embedded" / EMBEDDED
    folder = tmp_path / "back"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert files["config.json"] == (source / "config.json").read_bytes()
    model = fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    tensors = load_file(source / "model.safetensors")
    assert all(torch.equal(value, tensors[key].to(value.dtype)) for key, value in model.state_dict().items())
    assert files["README.md"].decode() == (tmp_path / f"{EMBEDDED}.md").read_text(encoding="utf-8")
