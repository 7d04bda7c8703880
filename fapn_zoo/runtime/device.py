"""Which device computes: finding it, and what it is called in reports."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device, or where none is named this process's GPU, or the CPU where there is none.

    Raises ValueError where it is misspelt or not there.
    """
    try:
        default = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        found = torch.device(device or default)
        torch.empty(1, device=found).cpu()
        return found
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's words for either
        raise ValueError(f"device {device!s}: {str(error).splitlines()[0]}") from error


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()} ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def processor() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
