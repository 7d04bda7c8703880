"""Deformable convolution by torchvision's operator, the reference for every other backend and the one ONNX knows."""

import contextlib

import torch
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d


def deform_conv2d(input, offset, weight, bias, mask, stride, padding, dilation):
    """torchvision's operator on float32 or float64 tensors of one dtype.

    Autocast is switched off inside: torchvision's CPU operator fails when autocast hands it bfloat16.
    """
    device_type = input.device.type
    available = torch.amp.is_autocast_available(device_type)  # not so on the meta device
    with torch.autocast(device_type, enabled=False) if available else contextlib.nullcontext():
        return torchvision_deform_conv2d(
            input, offset, weight, bias, stride=stride, padding=padding, dilation=dilation, mask=mask
        )
