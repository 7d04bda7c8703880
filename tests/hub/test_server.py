"""The loopback Hub against the real client: what is uploaded is stored as the Hub stores it, and comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toys.hub.server import Hub

pytestmark = pytest.mark.hub

UPLOADS = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
api, folder, seen = HfApi(), Path(sys.argv[1]), {}
seen["user"] = api.whoami()["name"]
api.create_repo("me/streets", private=True)
api.create_repo("me/streets", exist_ok=True)
first = api.upload_folder(folder_path=folder, repo_id="me/streets", commit_message="first")
again = api.upload_folder(folder_path=folder, repo_id="me/streets", commit_message="again")
seen["unchanged is no commit"] = first.oid == again.oid
api.create_tag("me/streets", tag="v1")
api.create_branch("me/streets", branch="dev")
api.upload_file(path_or_fileobj=b"abc", path_in_repo="notes/a.txt", repo_id="me/streets", revision="dev")
api.delete_file("config.json", "me/streets")
refs = api.list_repo_refs("me/streets")
seen["refs"] = sorted(ref.name for ref in [*refs.branches, *refs.tags])
seen["files"] = {revision: api.list_repo_files("me/streets", revision=revision) for revision in ("main", "dev", "v1")}
sizes = api.get_paths_info("me/streets", ["README.md", "model.safetensors"])
seen["large"] = {file.path: file.lfs is not None for file in sizes}
back = Path(snapshot_download("me/streets", revision="v1", cache_dir=folder.parent / "cache"))
seen["same"] = all((back / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
for what, call in {
    "another's name": lambda: api.create_repo("you/streets"),
    "a repository that is not there": lambda: api.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id="me/no"),
    "a parent that is not the head": lambda: api.upload_file(
        path_or_fileobj=b"a", path_in_repo="a", repo_id="me/streets", parent_commit=first.oid),
}.items():
    try:
        call()
        seen[what] = None
    except HfHubHTTPError as error:
        seen[what] = error.response.status_code
(folder / "README.md").write_text("---\\nlicense: [mit]\\n---\\n")
try:
    api.upload_folder(folder_path=folder, repo_id="me/streets", allow_patterns="README.md")
except ValueError as error:
    seen["card"] = str(error)
print(json.dumps(seen))
"""


def test_the_real_client_uploads_and_gets_the_same_back(tmp_path: Path) -> None:
    folder = tmp_path / "streets"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\nStreets.\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    with Hub() as hub:
        hub.tokens["hf_mine"] = "me"
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_mine",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", UPLOADS, str(folder)], capture_output=True, text=True, env=environment, timeout=120
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        repository = hub.repositories["me/streets"]
        asked_cdn = [r for r in hub.requests if r.path.startswith("/cdn/")]
    assert seen["user"] == "me" and seen["unchanged is no commit"] and seen["same"]
    assert seen["refs"] == ["dev", "main", "v1"]
    all_files = [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert seen["files"] == {
        "v1": all_files,
        "dev": [*all_files, "notes/a.txt"],
        "main": [".gitattributes", "README.md", "model.safetensors"],
    }
    assert seen["large"] == {"README.md": False, "model.safetensors": True}
    assert seen["another's name"] == 403 and seen["a repository that is not there"] == 404
    assert seen["a parent that is not the head"] == 412
    assert '"license" must be a string' in seen["card"]
    assert repository.private and repository.resolve("v1").title == "first"
    assert repository.resolve("v1").files["model.safetensors"].lfs
    assert asked_cdn and not any("authorization" in r.headers for r in asked_cdn)
