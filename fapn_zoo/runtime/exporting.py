"""Whether a call is being recorded by one of PyTorch's exporters: torch.export, torch.onnx or torch.jit.trace."""

from __future__ import annotations

import torch
from torch import Tensor

# torch 2.6 has no such mark; there `deform_conv_backend("reference")` is still for the user to choose.
_torch_exports = getattr(torch.compiler, "is_exporting", lambda: False)


def exporting(x: Tensor) -> bool:
    """Whether the call that `x` takes part in is recorded.

    PyTorch marks the whole process while torch.export runs. A thread beside it computes with plain tensors, the
    exporter with tensors of its own classes or inside the compiler. `torch.compile` does not count.
    """
    if torch.jit.is_tracing():
        return True
    return _torch_exports() and (torch.compiler.is_dynamo_compiling() or type(x) is not Tensor)


def to_onnx(x: Tensor) -> bool:
    """Whether it is recorded for an ONNX file."""
    return exporting(x) and torch.onnx.is_in_onnx_export()


def to_tensors_only(x: Tensor) -> bool:
    """Whether it is recorded for ONNX or TorchScript, whose graphs give tensors and no numbers."""
    return torch.jit.is_tracing() or to_onnx(x)
