"""The PyTorch operators `fapn_zoo::deform_conv2d` and `fapn_zoo::deform_conv2d_backward`.

They are custom operators with kernels for each device: numba's on the CPU, Triton's on CUDA. They compile, export,
differentiate and count their products (`torch.utils.flop_counter`). Their first run imports the kernels' packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fapn_zoo.modules.deform_conv import backends
from fapn_zoo.modules.deform_conv.geometry import output_sizes
from fapn_zoo.modules.layers.conv import memory_format


def _triton_runs(device_type: str) -> bool:
    """Whether Triton computes on this device; on the CPU only its interpreter does, if asked to."""
    if device_type == "cpu":
        return backends.selected() == "triton" and backends.triton_interpreted()
    return device_type == "cuda"


def _kernels(device_type: str) -> ModuleType:
    if _triton_runs(device_type):
        from fapn_zoo.modules.deform_conv.cuda import launch as module
    else:
        from fapn_zoo.modules.deform_conv.cpu import launch as module
    return module


@torch.library.custom_op(
    "fapn_zoo::deform_conv2d",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, "
    "int[] stride, int[] padding, int[] dilation) -> Tensor",
)
def deform_conv2d_op(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *pairs: list[int]
) -> Tensor:
    """Deformable convolution of checked tensors of a dtype that the device's kernels take, all pairs given.

    The output is channels-last if the input is. Offset and mask may have dtypes of their own.
    """
    return _kernels(input.device.type).forward(input, offset, weight, bias, mask, pairs)


@deform_conv2d_op.register_fake
def _(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *pairs: list[int]
) -> Tensor:
    size = (input.shape[0], weight.shape[0], *output_sizes(input, weight, pairs))
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


@torch.library.custom_op(
    "fapn_zoo::deform_conv2d_backward",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, "
    "int[] stride, int[] padding, int[] dilation, bool[] needs) -> Tensor[]",
)
def deform_conv2d_backward_op(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *rest: list
) -> list[Tensor]:
    """Gradients of input, offset, weight, bias, mask where `needs` says so, an empty tensor elsewhere."""
    *pairs, needs = rest
    return _kernels(input.device.type).backward(grad, input, offset, weight, mask, pairs, needs)


@deform_conv2d_backward_op.register_fake
def _(grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *rest: list) -> list[Tensor]:
    def like(tensor: Tensor) -> Tensor:
        if _triton_runs(input.device.type):
            return torch.empty_like(tensor)
        layout = torch.contiguous_format if tensor is weight else memory_format(tensor)
        return torch.empty_like(tensor, memory_format=layout)

    tensors = [input, offset, weight, weight.new_empty(weight.shape[0]), input if mask is None else mask]
    return [like(tensor) if need else tensor.new_empty(0) for tensor, need in zip(tensors, rest[-1], strict=True)]


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, offset, weight, _, mask, *ctx.pairs = inputs
    ctx.save_for_backward(input, offset, weight, *([] if mask is None else [mask]))


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, offset, weight, *mask = ctx.saved_tensors
    needs = [bool(need) for need in ctx.needs_input_grad[:5]]
    grads = torch.ops.fapn_zoo.deform_conv2d_backward(
        grad, input, offset, weight, mask[0] if mask else None, *ctx.pairs, needs
    )
    return *(value if need else None for value, need in zip(grads, needs, strict=True)), None, None, None


deform_conv2d_op.register_autograd(_autograd_backward, setup_context=_setup_context)


def _product(output: Sequence[int], weight: Sequence[int]) -> int:
    """Operations of one product of the columns with the weight; like a convolution's, a multiply-add is two."""
    return 2 * output[0] * output[2] * output[3] * weight[0] * weight[1] * weight[2] * weight[3]


@register_flop_formula(torch.ops.fapn_zoo.deform_conv2d)
def _(input: Any, offset: Any, weight: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _product(out_shape, weight)


@register_flop_formula(torch.ops.fapn_zoo.deform_conv2d_backward)
def _(grad: Sequence[int], input: Any, offset: Any, weight: Sequence[int], mask: Any, *rest: Any, **_: Any) -> int:
    # One product gives the columns' gradient, from which input, offset and mask take theirs; one gives the weight's.
    need_input, need_offset, need_weight, _, need_mask = rest[3]
    return (bool(need_input or need_offset or need_mask) + bool(need_weight)) * _product(grad, weight)
