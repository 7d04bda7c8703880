"""`hf-hub:` names through the real Hub client, against a server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub.server import Hub

import fapn_zoo
from fapn_zoo import _load

pytestmark = pytest.mark.hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = fapn_zoo.create_model(
        "perpixel_fapn", backbone="resnet10t", num_classes=3, backbone_channels=(8, 8, 16, 16), neck_out_channels=16,
        neck_deform_groups=2,
    )
    return model.save(tmp_path_factory.mktemp("hub") / "streets", license="mit")


@pytest.fixture
def hub(folder):
    with Hub() as server:
        server.add("me/streets", folder, tags=("v2",))
        yield server


def download(hub: Hub, cache: Path, name: str = "me/streets", more: str = "", **environment: str):
    """Runs the download in a process of its own, because the client reads its environment when it is imported."""
    code = f"from fapn_zoo import _hub\ntry:\n    print(_hub.download({name!r}, cache_dir={str(cache)!r}{more}))\n"
    code += "except ValueError as error:\n    print('error:', error)\n"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    environment.pop("HF_HUB_OFFLINE", None) if "HF_HUB_OFFLINE" not in environment else None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_repository_becomes_a_model_bit_for_bit(hub, folder, tmp_path):
    commit = hub.repositories["me/streets"].branches["main"]
    for name in ("me/streets", "me/streets@v2", f"me/streets@{commit}"):
        path = Path(download(hub, tmp_path, name))
        assert path.name == commit
    state = fapn_zoo.create_model(f"local-dir:{path}", pretrained=True).state_dict()
    expected = _load.read_tensors(folder / "model.safetensors")
    assert state.keys() == expected.keys() and all(torch.equal(state[k], v) for k, v in expected.items())
    assert hub.count("^GET .*model.safetensors") == 1  # the second and third name came from the cache


def test_the_description_alone(hub, tmp_path):
    path = Path(download(hub, tmp_path, more=", weights=False"))
    assert sorted(p.name for p in path.iterdir()) == ["README.md", "config.json"]


def test_offline_with_a_warm_and_a_cold_cache(hub, tmp_path):
    path = download(hub, tmp_path)
    before = len(hub.requests)
    assert download(hub, tmp_path, HF_HUB_OFFLINE="1") == path
    cold = download(hub, tmp_path / "cold", HF_HUB_OFFLINE="1")
    assert cold.startswith("error: cannot fetch 'me/streets' from the Hub:") and "\n" not in cold
    assert len(hub.requests) == before


@pytest.mark.parametrize("name, words", [
    ("me/other", "cannot fetch 'me/other'"), ("me/streets@v9", "cannot fetch 'me/streets@v9'"),
    ("streets", "expected 'owner/name'"),
])
def test_what_is_not_there_is_one_line(hub, tmp_path, name, words):
    answer = download(hub, tmp_path, name)
    assert answer.startswith("error: ") and words in answer and "\n" not in answer


def test_a_wrong_digest_is_named(hub, tmp_path):
    answer = download(hub, tmp_path, more=", sha256='ab' * 32")
    assert "model.safetensors has sha256" in answer and "expected abab" in answer
