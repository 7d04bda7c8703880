"""Which backend of deformable convolution runs: the choice, what can run here, and which dtypes each takes."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import torch

from fapn_zoo.runtime import compilers

NAMES = ("auto", "reference", "numba", "triton")
# What a backend takes as it is; the door turns everything else into float32.
NATIVE_DTYPES = {
    "reference": (torch.float32, torch.float64),
    "numba": (torch.float32, torch.float64, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}
_CHOSEN_BY = "chosen by FAPN_ZOO_DEFORM_CONV or deform_conv_backend"
_selected = os.environ.get("FAPN_ZOO_DEFORM_CONV", "auto")


def _check_name(name: str) -> str:
    if name not in NAMES:
        raise ValueError(
            f"unknown deformable convolution backend {name!r} ({_CHOSEN_BY}); choose one of {', '.join(NAMES)}"
        )
    return name


@functools.cache
def triton_works() -> bool:
    """Whether Triton can be imported and takes our kernels; tried once."""

    def load() -> bool:
        import triton  # noqa: F401

        from fapn_zoo.modules.deform_conv.cuda import kernels  # noqa: F401

        return True

    return compilers.usable("triton", load)


def triton_interpreted() -> bool:
    """Whether Triton's interpreter (TRITON_INTERPRET=1) runs the kernels, which it does on CPU tensors."""
    if not triton_works():
        return False
    from fapn_zoo.modules.deform_conv.cuda import launch

    return launch.INTERPRETED


def _suits_triton(index: int | None) -> bool:
    """Whether the CUDA device `index` (None: the current one) is one that Triton's kernels are written for."""
    if not torch.cuda.is_available() or torch.version.hip or not triton_works() or triton_interpreted():
        return False
    return torch.cuda.get_device_capability(index) >= (8, 0) and compilers.triton_starts()


def available_backends() -> list[str]:
    """Names that `deform_conv_backend` accepts and that can run here, 'auto' first."""
    works = {"numba": compilers.numba_works, "triton": lambda: torch.cuda.is_available() and _suits_triton(None)}
    return [name for name in NAMES if name not in works or works[name]()]


@torch.compiler.assume_constant_result
def resolve(
    name: str, device_type: str, index: int | None = None, dtype: torch.dtype = torch.float32, well_filled: bool = True
) -> str:
    """The backend that `name` means for tensors of a device and of `dtype`, before any conversion.

    `well_filled`: blocks of channels hold more than padding; where they do not, `auto` avoids Triton.
    """
    _check_name(name)
    if name == "auto":
        if device_type == "cpu":
            return "numba" if compilers.numba_works() else "reference"
        if device_type == "cuda" and well_filled and dtype in NATIVE_DTYPES["triton"] and _suits_triton(index):
            return "triton"
        return "reference"
    wrong = f"deformable convolution backend {name!r}, {_CHOSEN_BY},"
    if name == "numba" and not compilers.numba_works():
        raise ValueError(f"{wrong} cannot run: numba is missing, broken or switched off")
    if name == "numba" and device_type not in ("cpu", "meta"):
        raise ValueError(f"{wrong} runs on cpu, not on {device_type}")
    if name == "triton":
        interpreted = triton_works() and triton_interpreted()
        if not triton_works() or (device_type == "cuda" and not interpreted and not compilers.triton_starts()):
            raise ValueError(f"{wrong} cannot run: triton is missing or broken")
        if device_type not in ("cpu" if interpreted else "cuda", "meta"):
            raise ValueError(f"{wrong} runs on cuda, not on {device_type}")
        if dtype not in NATIVE_DTYPES["triton"]:
            raise ValueError(f"{wrong} takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}")
    return name


def selected() -> str:
    """The name chosen by the environment variable or `deform_conv_backend`."""
    return _selected


def active_backend(device: str | torch.device = "cpu") -> str:
    """Name of the backend that a call on `device` takes now: 'reference', 'numba' or 'triton'."""
    device = torch.device(device)
    return resolve(_selected, device.type, device.index)


@contextlib.contextmanager
def deform_conv_backend(name: str) -> Iterator[None]:
    """Use the backend `name` inside the block. Exports hold torchvision's operator unless another one is chosen here.

    The choice holds for the whole process, so that threads of data or gradients follow it.
    Raises ValueError where `name` is none of auto, reference, numba, triton.
    """
    global _selected
    before, _selected = _selected, _check_name(name)
    try:
        yield
    finally:
        _selected = before
