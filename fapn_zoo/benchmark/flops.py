"""How much a model computes: parameters and multiply-adds of one forward pass, counted on shapes without any data.

PyTorch's counter has the formulas of convolutions, matrix products and attention; norms, activations and resizing are
not counted, as in the tables of papers. Deformable convolution is added here.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fapn_zoo.zoo.spec import ModelSpec

Shape = tuple[int, ...]
PARTS = ("backbone", "neck", "head")


def deform_conv_flops(input_shape: Shape, weight_shape: Shape, out_shape: Shape, modulated: bool) -> int:
    """Operations of a deformable convolution, two per multiply-add.

    The matrix product of a convolution of the same shape, and before it one bilinear sample (four multiply-adds) for
    every input channel, tap and output pixel, which a mask multiplies once more (counted as a fifth).
    """
    batch, out_channels, height, width = out_shape
    _, group_channels, *kernel = weight_shape
    pixels = batch * height * width
    product = pixels * out_channels * group_channels * prod(kernel)
    samples = pixels * input_shape[1] * prod(kernel) * (5 if modulated else 4)
    return 2 * (product + samples)


# Formulas get the shapes of an operator's arguments, in its order, and the arguments that are no tensors as they are.


def _torchvision_formula(x: Shape, weight: Shape, *rest: Any, out_shape: Shape, **_: Any) -> int:
    return deform_conv_flops(x, weight, out_shape, modulated=bool(rest[-1]))  # the last one is use_mask


def _own_formula(x: Shape, offset: Shape, w: Shape, bias: Any, mask: Any, *_: Any, out_shape: Shape, **__: Any) -> int:
    return deform_conv_flops(x, w, out_shape, modulated=mask is not None)


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which prints nothing and knows both operators of deformable convolution."""
    import torchvision  # noqa: F401  (registers its operator)

    from fapn_zoo.modules.deform_conv import ops  # noqa: F401  (registers ours)

    own, theirs = torch.ops.fapn_zoo.deform_conv2d, torch.ops.torchvision.deform_conv2d
    return FlopCounterMode(display=False, custom_mapping={own: _own_formula, theirs: _torchvision_formula})


def count(spec: ModelSpec, size: tuple[int, int], batch: int = 1) -> dict[str, int]:
    """Counts the model of a complete description, built on the meta device, where nothing is computed.

    Args:
        size: (H, W) of the normalised, padded input in pixels.
        batch: N.

    Returns:
        `params`; `macs`, the multiply-adds of a forward pass; and `macs_backbone`, `macs_neck` (with the encoder, if
        there is one), `macs_head`.
    """
    from fapn_zoo.model import build  # not above: timm takes seconds

    with torch.device("meta"):
        model = build(spec).eval().requires_grad_(False)  # the counter trips over gradients of views
        x = torch.empty(batch, spec.in_chans, *size)
    with torch.no_grad(), flop_counter() as counter:
        model(x)
    table = counter.get_flop_counts()
    name = type(model).__name__
    found = {f"macs_{part}": sum(table.get(f"{name}.{part}", {}).values()) // 2 for part in PARTS}
    found["macs_neck"] += sum(table.get(f"{name}.encoder", {}).values()) // 2
    params = sum(p.numel() for p in model.parameters())
    return {"params": params, "macs": counter.get_total_flops() // 2, **found}
