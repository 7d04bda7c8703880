"""A data set on the Hub, with a revision, a licence and names of its classes, and the same one offline."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image
from toys.hub.server import Hub

pytestmark = pytest.mark.hub
READ = """
import json, sys
from fapn_zoo.data.sources import open_dataset
data = open_dataset(sys.argv[1], "train")
sample = data.sample(0)
print(json.dumps([data.name, data.facts, data.labels.names, len(data), int(sample.labels.sum())]))
"""


def png(pixels: np.ndarray) -> dict[str, bytes | None]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def folder(root: Path, value: int) -> Path:
    image, mask = np.zeros((8, 12, 3), np.uint8), np.full((8, 12), value, np.uint8)
    rows = {"image": [png(image)] * 2, "mask": [png(mask)] * 2}
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows).to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    (root / "id2label.json").write_text(json.dumps({"0": "road", "1": "car"}))
    (root / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Streets\n")
    return root


def read(name: str, **environment: str) -> list:
    command = [sys.executable, "-c", READ, name]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_revision_licence_names_and_offline(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    with Hub() as hub:
        hub.tokens["hf_mine"] = "me"
        api = HfApi(endpoint=hub.url, token="hf_mine")
        api.create_repo("me/streets")  # this server has one kind of repository
        revisions = []
        for value in (0, 1):
            done = api.upload_folder(repo_id="me/streets", folder_path=folder(tmp_path / "set", value))
            revisions.append(done.oid)
        online = home | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_mine"}
        new, old = read("hf:me/streets", **online), read(f"hf:me/streets@{revisions[0]}", **online)
        elsewhere = online | {"HF_HOME": str(tmp_path / "streamed")}
        streamed = read(f"hf:me/streets@{revisions[0]}?streaming=true", **elsewhere)
    assert streamed[1].pop("shuffle") == "in blocks of up to 500 rows" and streamed == old
    assert not [file for file in (tmp_path / "streamed").rglob("*") if file.suffix in (".parquet", ".arrow")]
    facts = {"revision": revisions[1], "license": "cc0-1.0"}
    assert new == [f"hf:me/streets@{revisions[1][:12]}", facts, ["road", "car"], 2, 96]
    assert old[1]["revision"] == revisions[0] and old[4] == 0
    away = home | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.url}
    assert read(f"hf:me/streets@{revisions[0]}", **away) == old
    with pytest.raises(AssertionError, match=f"newest copy .* is of commit {revisions[0]}, not of {revisions[1]}"):
        read("hf:me/streets", **away)  # main, of which the library would give the older rows
    with pytest.raises(AssertionError, match=f"is of commit {revisions[0]}, not of {'f' * 40}"):
        read(f"hf:me/streets@{'f' * 40}", **away)
