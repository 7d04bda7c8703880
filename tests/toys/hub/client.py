"""Child processes that download, since the Hub's client reads its environment when it is imported."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from toys.hub.server import Hub

MB = 10**6
WEIGHTS = "model.safetensors"
FILES = {"config.json": b'{"format": 1}', "README.md": b"---\nlicense: mit\n---\nStreets.\n"}
# The client writes in pieces of 10 MiB, so only a part larger than that is there to go on from.
SMALL, LARGE = (random.Random(0).randbytes(size) for size in (3 * MB, 30 * MB))

CHILD = """
import json, sys
from fapn_zoo.weights import failures, hub
name, arguments, setup = json.loads(sys.argv[1])
failures.FIRST_PAUSE, failures.LONGEST_PAUSE, failures.PATIENCE = 0.05, 5.0, 5.0
def attempt():
    try:
        return {"folder": str(hub.download(name, **arguments))}
    except ValueError as error:
        return {"error": str(error)}
exec(setup)
print(json.dumps(attempt()))
"""


def serve(data: bytes = SMALL, xet: bool = False) -> Hub:
    """A Hub with me/streets, whose weights are just bytes, and two accounts, one of them with leave for gated files."""
    hub = Hub()
    hub.xet = xet
    hub.tokens |= {"hf_reader": "reader", "hf_stranger": "stranger"}
    hub.add("me/streets", FILES | {WEIGHTS: data})
    hub.repositories["me/streets"].granted.add("reader")
    return hub


def environment(url: str, root: Path, **more: str) -> dict[str, str]:
    """Of a child: the Hub at this address, caches below `root`, little patience, nothing of the Hub from our own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    return (
        inherited
        | {
            "HF_ENDPOINT": url,
            "HF_HOME": str(root / "home"),
            "FAPN_ZOO_CACHE": str(root / "own"),
            "NO_PROXY": "*",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",  # telemetry asks the Hub something, too
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "50ms",
            "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
            "HF_XET_CLIENT_READ_TIMEOUT": "2s",
        }
        | more
    )


def start(
    name: str,
    hub: Hub,
    root: Path,
    arguments: dict[str, Any] | None = None,
    setup: str = "",
    before: tuple[str, ...] = (),
    **more: str,
) -> subprocess.Popen:
    """Begins `hub.download(name, **arguments)`, by default into `root / "cache"`; `setup` is run before it.

    `before` is the beginning of a command line that runs another one, `more` of the environment.
    """
    arguments = {"cache_dir": str(root / "cache")} | (arguments or {})
    command = [*before, sys.executable, "-c", CHILD, json.dumps([name, arguments, setup])]
    return subprocess.Popen(
        command, env=environment(hub.url, root, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> tuple[dict[str, str], str]:
    """What it answered, `{"folder": ...}` or `{"error": ...}`, and what it logged."""
    try:
        out, log = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, log
    return json.loads(out), log


def is_right(answer: dict[str, str], data: bytes = SMALL) -> bool:
    """Whether the answer is a folder with the right files."""
    return "folder" in answer and all(
        Path(answer["folder"], name).read_bytes() == content for name, content in (FILES | {WEIGHTS: data}).items()
    )


def look(root: Path, data: bytes = SMALL) -> tuple[set[str], list[str], list[str]]:
    """Names of whole and of damaged files in the cache's snapshots, and of partial files anywhere."""
    truth, whole, damaged = FILES | {WEIGHTS: data}, set(), []
    for path in root.glob("cache/models--*/snapshots/*/*"):
        if path.exists() and path.read_bytes() == truth[path.name]:
            whole.add(path.name)
        else:
            damaged.append(path.name)
    return whole, damaged, [path.name for path in root.rglob("*.incomplete")]
