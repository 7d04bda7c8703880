"""`pretrained=True` of official models, end to end: the real gdown over TLS, to the releases' hosts on loopback."""

from __future__ import annotations

import json
import logging
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.hub.faults import Fault
from toys.hub.official_toys import (
    DRIVE,
    DRIVE_ID,
    HTTPS,
    Toys,
    as_pkl,
    as_pth,
    assert_whole,
    cached,
    official_state,
    parts,
    predict,
    released,
    zoo_tensors,
)
from toys.hub.release_server import ReleaseServer

import fapn_zoo
from fapn_zoo.convert import official, to_zoo
from fapn_zoo.zoo import registry

pytestmark = pytest.mark.hub

CONTENT = "confirm=t"  # the request to Google Drive that brings the file


@pytest.mark.parametrize("name", [HTTPS, DRIVE])
def test_one_line_from_release_to_prediction(
    name: str, toys: Toys, releases: ReleaseServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, data, state = toys[name]
    model = fapn_zoo.create_model(name, pretrained=True)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in zoo_tensors(toys[name]).items())
    stem = model.state_dict()["backbone.body.conv1.weight"]
    assert torch.equal(stem, state["backbone.stem.conv1.weight"])
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 64, 64))

    weights, folder = spec.weights["paper"], cached(tmp_path, name)
    shown = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    terms = "licence cc-by-nc-4.0" if name == HTTPS else "no licence stated"
    assert len(shown) == 1 and terms in shown[0] and weights.page in shown[0]
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors", "record.json"]
    assert parts(tmp_path) == []  # the download is of no further use
    config = json.loads((folder / "config.json").read_text())
    assert config["license"] == weights.license and config["metrics"] == weights.metrics
    assert official.address(weights) in config["source"] or weights.location in config["source"]
    record = json.loads((folder / "record.json").read_text())
    assert record["url"] == official.address(weights) and record["fapn_zoo"] == fapn_zoo.__version__

    asked = len(releases.requests)
    caplog.clear()
    again = fapn_zoo.create_model(name, pretrained=True)  # the second call: the cache, and no word
    assert len(releases.requests) == asked and not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    from_folder = fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    assert all(torch.equal(v, from_folder.state_dict()[k]) for k, v in model.state_dict().items())


AT_FULL_SIZE = [
    "perpixel_fpn_resnet50_ade20k",
    "maskformer_fapn_resnet101_cocostuff10k",
    "faster_rcnn_fapn_resnet50_coco",
    "mask_rcnn_fpn_resnet101_coco",
]


@pytest.mark.parametrize("name", AT_FULL_SIZE)
def test_registered_models_at_full_size(
    name: str, toys: Toys, releases: ReleaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = registry.get_spec(name)[0]
    (weights,) = spec.weights.values()
    state = official_state(spec)
    if weights.location.startswith("gdrive:"):
        monkeypatch.setitem(releases.drive, weights.location.removeprefix("gdrive:"), as_pth(state))
    else:  # the name promises the md5 of the real file, and the file server has another
        data = as_pkl(state)
        spec = released(spec, data, run="full")
        monkeypatch.setitem(releases.files, spec.weights["paper"].location, data)
    model = fapn_zoo.create_model(name, pretrained=True)
    found, expected = model.state_dict(), to_zoo(state, spec)[0]
    assert found.keys() == expected.keys() and all(torch.equal(found[key], value) for key, value in expected.items())
    asked = len(releases.requests)
    fapn_zoo.create_model(name, pretrained=True)
    assert len(releases.requests) == asked


def always(kind: str, match: str = "", **more: Any) -> list[Fault]:
    return [Fault(kind, match=match, **more)]


def once(kind: str, match: str = "", times: int = 1, **more: Any) -> list[Fault]:
    return [Fault(kind, match=match, times=times, **more)]


SURVIVED = [
    ("500 twice, then fine", HTTPS, once("status", times=2)),
    ("429, then fine", HTTPS, once("status", status=429)),
    ("Drive: 500, then fine", DRIVE, once("status", "drive.google.com")),
    ("connection cut at 40 %", HTTPS, once("cut")),
    ("Drive: connection cut at 40 %", DRIVE, once("cut", CONTENT)),
    ("connection stalls at 40 %", HTTPS, once("stall", seconds=2.5)),
    ("cut, and the server ignores Range", HTTPS, once("cut") + always("ignore-range")),
    ("wrong bytes once", HTTPS, once("wrong")),
    ("Drive: wrong bytes once", DRIVE, once("wrong", CONTENT)),
    ("Drive: too short once", DRIVE, once("short", CONTENT)),
]


@pytest.mark.parametrize("title, name, faults", SURVIVED, ids=[row[0] for row in SURVIVED])
def test_faults_that_end_in_the_right_weights(
    title: str,
    name: str,
    faults: list[Fault],
    toys: Toys,
    releases: ReleaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: Callable[[str, str], None],
) -> None:
    if faults[0].kind == "stall":
        monkeypatch.setattr(official, "TIMEOUT", (15, 1))
    releases.faults += faults
    spec = toys[name][0]
    folder = official.fetch(spec, spec.weights["paper"])
    assert_whole(folder, toys[name])
    assert parts(tmp_path) == []
    resumed = [r for r in releases.requests if r.range and r.status == 206]
    assert bool(resumed) == (faults[0].kind in ("cut", "stall") and len(faults) == 1)
    row(
        title,
        "right weights, resumed"
        if resumed
        else "right weights, downloaded again"
        if sum(r.sent > 0 for r in releases.requests) > 1
        else "right weights, asked again",
    )


REFUSED = [
    ("404", HTTPS, always("status", status=404), "answers HTTP 404", 1),
    ("403", HTTPS, always("status", status=403), "answers HTTP 403", 1),
    ("500 for ever", HTTPS, always("status"), "HTTP 500 Internal Server Error; try again later", 4),
    ("cut at 40 % for ever", HTTPS, always("cut"), "the next call goes on from there", None),
    ("wrong bytes under the right length", HTTPS, always("wrong"), "while its name promises", 2),
    ("a web page", HTTPS, always("page"), "damaged, or a page of a proxy", 2),
    ("Drive: too many accesses", DRIVE, always("quota"), "Google Drive's daily quota for this file is used up", 1),
    ("Drive: no such file", DRIVE, always("page"), "Google Drive shows a page instead of the file", None),
    ("Drive: too short for ever", DRIVE, always("short", CONTENT), "is a damaged or cut-off torch file", None),
]


@pytest.mark.parametrize("title, name, faults, words, asked", REFUSED, ids=[row[0] for row in REFUSED])
def test_faults_that_end_in_one_line(
    title: str,
    name: str,
    faults: list[Fault],
    words: str,
    asked: int | None,
    toys: Toys,
    releases: ReleaseServer,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    row: Callable[[str, str], None],
) -> None:
    releases.faults += faults
    line = refused(photo, name, tmp_path, capsys)
    assert words in line and f"fapn-zoo convert FILE --model {name} --out DIR" in line
    assert official.address(toys[name][0].weights["paper"]) in line
    assert asked in (None, len(releases.requests))
    kept = sum(p.stat().st_size for p in parts(tmp_path))
    assert bool(kept) == (faults[0].kind == "cut")
    releases.reset()
    assert predict(photo, name, tmp_path) == 0  # the clean run that follows
    assert_whole(cached(tmp_path, name), toys[name])
    resumed = [r for r in releases.requests if r.range]
    assert bool(resumed) == bool(kept)
    row(title, f"exit 1: {line}")


def refused(photo: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs the command line, which must end with exit code 1 and one line of error, and leave no folder."""
    capsys.readouterr()
    assert predict(photo, name, tmp_path) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and not cached(tmp_path, name).exists()
    return lines[0]


def test_no_network(
    toys: Toys,
    releases: ReleaseServer,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    row: Callable[[str, str], None],
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    line = refused(photo, HTTPS, tmp_path, capsys)
    assert "Connection refused" in line and toys[HTTPS][0].weights["paper"].location in line
    assert releases.requests == []
    row("no network", f"exit 1: {line}")


def test_an_unknown_certificate_is_not_trusted(
    releases: ReleaseServer,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    row: Callable[[str, str], None],
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.delenv("CURL_CA_BUNDLE")
    line = refused(photo, HTTPS, tmp_path, capsys)
    assert "certificate" in line and releases.bytes_sent == 0
    row("certificate of an unknown authority", f"exit 1: {line}")


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["pkl", "pkl, beside the model", "pth, in the trainer's state", "Drive"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(
    place: str,
    toys: Toys,
    releases: ReleaseServer,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    row: Callable[[str, str], None],
) -> None:
    marker = tmp_path / "ran"
    name = DRIVE if place == "Drive" else HTTPS
    spec, data, state = toys[name]
    if place == "pkl":
        evil = pickle.dumps({"model": {"backbone.stem.conv1.weight": Runs(marker)}})
    elif place == "pkl, beside the model":
        evil = pickle.dumps(pickle.loads(as_pkl(state)) | {"__author__": Runs(marker)})
    else:
        path = tmp_path / "evil.pth"
        torch.save({"model": state, "optimizer": Runs(marker)}, path)
        evil = path.read_bytes()
    try:
        fake = released(spec, evil, DRIVE_ID if name == DRIVE else None, run="fake")
        releases.files[fake.weights["paper"].location] = evil
        releases.drive[DRIVE_ID] = evil
        line = refused(photo, name, tmp_path, capsys)
    finally:
        releases.drive[DRIVE_ID] = toys[DRIVE][1]
        registry._registered[name] = spec
    assert "the downloaded file is refused: it asks for" in line and not marker.exists()
    assert parts(tmp_path) == []
    row(f"malicious pickle ({place})", f"exit 1, nothing run: {line}")
    pickle.loads(pickle.dumps(Runs(marker)))
    assert marker.exists()  # it does run where pickles are trusted


@pytest.mark.parametrize("stage", ["downloading", "converting"])
def test_disk_full(
    stage: str,
    toys: Toys,
    releases: ReleaseServer,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    row: Callable[[str, str], None],
) -> None:
    spec, data, _ = toys[HTTPS]
    if stage == "converting":  # the download is there, whole, as after a kill
        work = tmp_path / "cache" / "official" / f".{HTTPS}.paper.partial"
        source = official.source_file(work, spec.weights["paper"])
        source.parent.mkdir(parents=True)
        source.write_bytes(data)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, before[1]))  # the file system takes no more than 2 MiB
    try:
        line = refused(photo, HTTPS, tmp_path, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ("no room for downloading" in line and "FAPN_ZOO_CACHE" in line) or "cannot write" in line
    releases.reset()
    assert predict(photo, HTTPS, tmp_path) == 0
    assert_whole(cached(tmp_path, HTTPS), toys[HTTPS])
    if stage == "converting":
        assert releases.requests == []  # what was whole is not downloaded again
    else:
        assert any(r.range for r in releases.requests)
    row(f"disk full while {stage}", f"exit 1: {line}")
