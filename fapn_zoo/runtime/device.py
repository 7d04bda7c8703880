"""Which device computes, what it is called in reports, and in which precision networks compute on it."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}


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


def check_amp(amp: str, allowed: Iterable[str] = AMP) -> None:
    """ValueError unless `amp` is one of `allowed`."""
    if amp not in allowed:
        raise ValueError(f"amp={amp!r}; expected {', '.join(allowed)}")


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """The context in which modules multiply in `amp`, a key of `AMP`, whatever autocast is around it."""
    dtype = AMP[amp]
    if dtype is None and not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def resolve_amp(amp: str, device: torch.device, weights: torch.dtype = torch.float32, *, training: bool = False) -> str:
    """ "bf16", "fp16" or "no", a key of `AMP`: what the network multiplies in; "no" is the precision of its weights.

    Args:
        amp: one of these, or "auto": bfloat16 for float32 weights where `device` is fast in it; for training on a CPU
            full precision, since it computes gradients in float32 anyway.

    Raises:
        ValueError: unknown, float16 on a CPU, or half precision of another kind than that of the weights.
    """
    check_amp(amp, ("auto", *AMP))
    if amp == "auto":
        slow = training and device.type != "cuda"
        return "bf16" if weights == torch.float32 and not slow and fast_bfloat16(device) else "no"
    if amp == "fp16" and device.type == "cpu":
        raise ValueError("amp='fp16' needs a GPU; a CPU takes amp='bf16' or amp='no'")
    if {AMP[amp], weights} == {torch.bfloat16, torch.float16}:
        kind = str(weights).removeprefix("torch.")
        raise ValueError(f"amp={amp!r} does not go with weights in {kind}; take amp='no' or model.float()")
    return amp


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware.

    Intel Cooper Lake, and Sapphire Rapids and its successors; AMD from Zen 4, NVIDIA from Ampere on.
    """
    if device.type == "cuda":
        return not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_has_bfloat16()


@functools.cache
def _cpu_has_bfloat16() -> bool:
    # PyTorch has no public name for this. Without oneDNN the instructions would not be used.
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    found = any(getattr(torch.cpu, name, lambda: False)() for name in tests)
    return found and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
