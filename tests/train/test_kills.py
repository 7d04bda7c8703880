"""Runs that are killed again and again end with the bits of one that was not, on a disk for four checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("FAPN_ZOO_KILLS", "10"))


@pytest.mark.train
def test_kills_at_any_moment_change_no_bit(pictures: Path, tmp_path: Path, environment: dict[str, str]):
    script = Path(__file__).with_name("kills.py")
    own = ["unshare", "-rm"]  # a tmpfs of one's own, which root needs not allow everywhere
    mounting = (
        subprocess.run([*own, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True).returncode == 0
    )
    words = [*(own if mounting else []), sys.executable, str(script), str(pictures), str(tmp_path), str(KILLS)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == KILLS and found["at writes"] == KILLS // 2, found
    assert not found["different"] and not found["failed"] and found["runs"], (found, done.stderr)
    assert (found["room"] is not None) == mounting
