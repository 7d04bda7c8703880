"""Deformable convolution by torchvision's operator, the reference for every other backend and the one ONNX knows."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from fapn_zoo.modules.deform_conv.geometry import Pairs


@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    # Not in line: PyTorch 2.11 cannot compile it.
    return torch.amp.is_autocast_available(device_type)


def autocast_enabled(device_type: str) -> bool:
    """False also for devices that have no autocast, such as meta, which torch itself refuses to answer for."""
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, pairs: Pairs
) -> Tensor:
    """torchvision's operator on float32 or float64 tensors of one dtype.

    Autocast is switched off inside: torchvision's CPU operator fails when autocast hands it bfloat16.
    """
    if not autocast_enabled(input.device.type):
        # Without the switch an exported graph has the operator itself, not a subgraph.
        return torchvision_deform_conv2d(input, offset, weight, bias, *pairs, mask=mask)
    with torch.autocast(input.device.type, enabled=False):
        return torchvision_deform_conv2d(input, offset, weight, bias, *pairs, mask=mask)
