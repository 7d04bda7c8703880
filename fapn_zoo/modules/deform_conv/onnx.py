"""Torchvision's operator for the ONNX exporter that traces (`torch.onnx.export(dynamo=False)`).

The exporter on top of torch.export knows it by itself. Both write DeformConv, which ONNX has from opset 19 on.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

OPSET = 19


@functools.cache
def register() -> None:
    """Makes the operator known to the tracing exporter."""
    from torch.onnx.symbolic_helper import parse_args

    # `parse_args` reads the names: each number needs one.
    @parse_args(*"vvvvv", *"iiiiiiii", "b")
    def deform_conv2d(
        g: Any, input: Any, weight: Any, offset: Any, mask: Any, bias: Any,
        sy: int, sx: int, py: int, px: int, dy: int, dx: int, groups: int, offset_groups: int, use_mask: bool,
    ) -> Any:  # fmt: skip
        return g.op(
            "DeformConv",
            *(input, weight, offset, bias, *([mask] if use_mask else [])),
            strides_i=(sy, sx),
            pads_i=(py, px, py, px),
            dilations_i=(dy, dx),
            group_i=groups,
            offset_group_i=offset_groups,
        )

    torch.onnx.register_custom_op_symbolic("torchvision::deform_conv2d", deform_conv2d, OPSET)
