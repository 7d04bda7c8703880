"""A host name without an address, as on a machine without a network, is answered at once: nobody asks again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdown  # noqa: F401 - so that no import is timed
import pytest
import timm  # noqa: F401
from huggingface_hub import HfApi

from fapn_zoo import ModelSpec, WeightsSpec, create_model
from fapn_zoo.convert import official
from fapn_zoo.export import push
from fapn_zoo.weights import failures

pytestmark = pytest.mark.hub

HOST = "https://nothing.invalid"


@pytest.fixture(autouse=True)
def no_network(ask_hub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Hub has a name without an address, every cache is empty."""
    ask_hub(HOST)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert failures.FIRST_PAUSE == 1 and HfApi().endpoint == HOST


def release(_: Path) -> None:
    weights = WeightsSpec("official", f"{HOST}/model_final_012345.pkl", license="mit", page=f"{HOST}/page")
    spec = ModelSpec("toy", "perpixel", "fapn", "resnet10t", 2, weights={"paper": weights})
    official.fetch(spec, weights)


def upload(_: Path) -> None:
    push.upload(push.Package("me/streets", None, "toy", {"README.md": b"-"}, ""))


def backbone(name: str, **overlay: Any) -> Callable[[Path], object]:
    options = {"backbone_pretrained_cfg_overlay": overlay} if overlay else {}
    return lambda cache: create_model(
        "perpixel_fapn", backbone=name, num_classes=2, pretrained_backbone=True, cache_dir=cache, **options
    )


CALLS: dict[str, Callable[[Path], object]] = {
    "official release": release,
    "model of the Hub": lambda cache: create_model("hf-hub:me/streets", pretrained=True, cache_dir=cache),
    "upload": upload,
    "backbone": backbone("resnet10t"),
    "backbone whose other weights have a format of their own": backbone("resnetv2_50x1_bit.goog_in21k"),
    "backbone of another repository": backbone("resnet10t", hf_hub_id="me/weights"),
    "backbone by its name on the Hub": backbone("hf-hub:me/weights"),
    "backbone by its URL": backbone("resnet10t", hf_hub_id=None, url=f"{HOST}/resnet10t-01234567.pth"),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_name_without_an_address_is_answered_at_once(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin = time.monotonic()
    with pytest.raises(ValueError if what == "model of the Hub" else ConnectionError) as caught:
        CALLS[what](tmp_path / "cache")
    assert time.monotonic() - begin < 10  # waiting for a network takes a minute
    line = str(caught.value)
    assert "[Errno " in line and "\n" not in line and "again in" not in caplog.text
    assert "nothing.invalid" in line or what == "backbone by its URL"
