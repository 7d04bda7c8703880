"""The model that most tests of evaluation share, and processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.evaluation import small_model


@pytest.fixture(scope="session")
def model() -> torch.nn.Module:
    return small_model()


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts Python code that reads JSON from its first argument, on its own or on several processes."""
    running: list[subprocess.Popen] = []

    def run(code: str, values: Any, processes: int = 1) -> subprocess.Popen:
        script = tmp_path / "run.py"
        script.write_text(code)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        words = [sys.executable, *(launcher if processes > 1 else []), str(script), json.dumps(values)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.wait()
        process.stderr.close()
