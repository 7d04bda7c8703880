"""Peak memory of one inference. On the CPU it is measured in a process of its own, where nothing else used memory.

    python -m fapn_zoo.benchmark.memory < JOB.json

reads {"model": the description, "size", "batch", "dtype", "channels_last", "threads"} and prints the bytes as JSON.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fapn_zoo.benchmark.inference import prepare
from fapn_zoo.zoo.spec import ModelSpec

SMALL = (64, 64)  # of the first run, in which libraries are loaded and kernels compiled


def peak_memory(job: Mapping[str, Any]) -> int | None:
    """Bytes that a forward pass and its post-processing need at most: the weights, and what is in use beside them.

    None where the system does not tell (Windows) or the other process fails, which it says on stderr.
    """
    try:
        import resource  # noqa: F401
    except ImportError:
        return None
    command = [sys.executable, "-m", "fapn_zoo.benchmark.memory"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        print(f"peak memory could not be measured: {last}", file=sys.stderr)
        return None


def peak_memory_on_gpu(model: nn.Module, device: torch.device, once: Callable[[], Any]) -> int:
    """`peak_memory` of `once`, which runs a model that is on a CUDA device, in this process."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    once()
    return torch.cuda.max_memory_allocated(device) - before + weight_bytes(model)


def resident_peak() -> int:
    """Bytes of this process that have been in memory at once, since `forget_peak` where the system allows that."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Linux: lets the peak begin at what is in memory now. Elsewhere the small first run hardly raises it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _measure(job: Mapping[str, Any]) -> int:
    from fapn_zoo.model import build  # not above: timm takes seconds

    torch.set_num_threads(job["threads"])
    with torch.no_grad():
        model = build(ModelSpec.from_config(job["model"]))
        options = {"batch": job["batch"], "dtype": job["dtype"], "channels_last": job["channels_last"]}
        prepare(model, SMALL, **options)()
        run = prepare(model, tuple(job["size"]), **options)
        forget_peak()
        before = resident_peak()
        run()
        return resident_peak() - before + weight_bytes(model)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


if __name__ == "__main__":
    print(_measure(json.load(sys.stdin)))
