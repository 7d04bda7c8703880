"""A host name without an address, as on a machine without a network, is answered at once: nobody asks again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toys.hub.client import environment

pytestmark = pytest.mark.hub

# One process, because the clients read their environment when they are imported; which is not counted.
PROGRAM = """
import json, logging, time
import gdown, huggingface_hub.hf_api, timm
from fapn_zoo import ModelSpec, WeightsSpec, create_model, register_model
from fapn_zoo.convert import official
from fapn_zoo.export import push
URL = "https://nothing.invalid/{}.pth"
release = WeightsSpec("official", URL.format("model_final_012345"), license="mit", page=URL.format("page"))
register_model(ModelSpec("toy", "perpixel", "fapn", "resnet10t", 2, weights={"paper": release}))
def backbone(name, **overlay):
    options = {"backbone_pretrained_cfg_overlay": overlay} if overlay else {}
    return create_model("perpixel_fapn", backbone=name, num_classes=2, pretrained_backbone=True, **options)
calls = {
    "official": lambda: create_model("toy", pretrained=True),
    "Hub": lambda: create_model("hf-hub:me/streets", pretrained=True),
    "upload": lambda: push.upload(push.Package("me/streets", None, "toy", {"README.md": b"-"}, "")),
    "backbone": lambda: backbone("resnet10t"),
    "backbone in another format": lambda: backbone("resnetv2_50x1_bit.goog_in21k"),
    "backbone of another repository": lambda: backbone("resnet10t", hf_hub_id="me/weights"),
    "backbone by its Hub name": lambda: backbone("hf-hub:me/weights"),
    "backbone by its URL": lambda: backbone("resnet10t", hf_hub_id=None, url=URL.format("resnet10t-01234567")),
}
seen = {}
for name, call in calls.items():
    begin = time.monotonic()
    try:
        call()
    except (ValueError, OSError) as error:
        seen[name] = [time.monotonic() - begin, type(error).__name__, str(error)]
print(json.dumps(seen))
"""


def test_a_name_without_an_address_is_answered_at_once(tmp_path: Path) -> None:
    more = {"HF_TOKEN": "hf_mine", "TORCH_HOME": str(tmp_path / "torch")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment("https://nothing.invalid", tmp_path, **more),
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])  # torch tells what it fetches
    assert len(seen) == 8 and "again in" not in done.stderr
    for name, (seconds, kind, line) in seen.items():
        assert seconds < 2, (name, seconds)
        assert kind == ("ValueError" if name == "Hub" else "ConnectionError")
        assert "nothing.invalid" in line or "by its URL" in name
        assert "[Errno " in line and "\n" not in line
