"""The one door to deformable convolution (DCN v1 and v2); backends stand behind it.

The environment variable FAPN_ZOO_DEFORM_CONV (auto, reference, numba or triton) chooses at import,
`deform_conv_backend` for a while. `auto` takes the fastest that works: numba on the CPU, Triton on CUDA for shapes that
fill its blocks, else torchvision's operator. In a graph that is exported `auto` is torchvision's operator, call by
call: calls beside it stay fast.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from fapn_zoo.modules.deform_conv import backends
from fapn_zoo.modules.deform_conv import ops as ops  # registers the operators
from fapn_zoo.modules.deform_conv.backends import active_backend, available_backends, deform_conv_backend
from fapn_zoo.modules.deform_conv.geometry import Pairs, output_sizes, useful_share
from fapn_zoo.modules.layers.conv import memory_format
from fapn_zoo.runtime.exporting import exporting, to_onnx

__all__ = ["ModulatedDeformConv", "active_backend", "available_backends", "deform_conv2d", "deform_conv_backend"]

# With more padding than this, torchvision's operator is as good.
_LEAST_USEFUL_SHARE = 0.25
_OPSET = 19  # the first of ONNX with DeformConv


def _pair(value: Any, name: str, least: int) -> list[int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(number, (int, torch.SymInt)) and number >= least for number in pair):
        raise ValueError(f"{name} must be an int or a pair of ints, each at least {least}; got {value!r}")
    return list(pair)


def _check_kinds(tensors: dict[str, Tensor | None]) -> None:
    """Refuse tensors that the operators would misread in silence; only the input must be given."""
    device = tensors["input"].device
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be of floating point, not {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but the input is on {device}")
        if unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{name} has a tangent, but deformable convolution has no forward-mode gradient")


def _check(tensors: dict[str, Tensor | None], pairs: Pairs) -> None:
    _check_kinds(tensors)
    input, offset, weight, bias, mask = tensors.values()
    for name, tensor in tensors.items():
        if name != "bias" and tensor is not None and tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions; got {tensor.dim()}")
    out_channels, group_channels, *kernel = weight.shape
    taps = kernel[0] * kernel[1]
    if taps == 0:
        raise ValueError(f"weight has a kernel of {kernel[0]}x{kernel[1]}")
    channels = input.shape[1]
    if group_channels == 0 or channels % group_channels:
        raise ValueError(f"input has {channels} channels, not a multiple of the weight's {group_channels} per group")
    groups = channels // group_channels
    if groups == 0 or out_channels % groups:
        raise ValueError(f"weight has {out_channels} output channels, not a multiple of its {groups} groups")
    offset_groups = offset.shape[1] // (2 * taps)
    if offset_groups == 0 or offset.shape[1] % (2 * taps):
        raise ValueError(f"offset has {offset.shape[1]} channels, not a multiple of 2 * {taps} kernel taps")
    if channels % offset_groups:
        raise ValueError(f"input has {channels} channels, not a multiple of the {offset_groups} offset groups")
    if mask is not None and mask.shape[1] != offset_groups * taps:
        raise ValueError(f"mask has {mask.shape[1]} channels, but the offset asks for {offset_groups * taps}")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != out_channels):
        raise ValueError(f"bias has shape {tuple(bias.shape)}, but the weight has {out_channels} output channels")
    size = output_sizes(input, weight, pairs)
    if size[0] <= 0 or size[1] <= 0:
        raise ValueError(f"input of {input.shape[2]}x{input.shape[3]} gives an output of {size[0]}x{size[1]}")
    for name, tensor in (("offset", offset), ("mask", mask)):
        if tensor is None:
            continue
        if tensor.shape[0] != input.shape[0]:
            raise ValueError(f"{name} has batch size {tensor.shape[0]}, but the input has {input.shape[0]}")
        if tensor.shape[2] != size[0] or tensor.shape[3] != size[1]:
            got = f"{tensor.shape[2]}x{tensor.shape[3]}"
            raise ValueError(f"{name} is {got}, but the output is {size[0]}x{size[1]}")


def _fills_blocks(input: Tensor, offset: Tensor, weight: Tensor) -> bool:
    """Whether Triton's blocks of channels would hold more than padding."""
    channels, (out_channels, group_channels, *kernel) = input.shape[1], weight.shape
    offset_groups = offset.shape[1] // (2 * kernel[0] * kernel[1])
    return useful_share(channels, channels // group_channels, offset_groups, out_channels) >= _LEAST_USEFUL_SHARE


def _backend(input: Tensor, offset: Tensor, weight: Tensor, dtype: torch.dtype) -> str:
    """The backend of one call.

    In a call that is exported `auto` means torchvision's operator, so that what leaves needs nothing of ours. A backend
    that was chosen stays where its operator can be stored, which is anywhere but in ONNX.
    """
    onnx_file = to_onnx(input)
    if onnx_file and torch.jit.is_tracing():
        _register_onnx()
    if onnx_file or (backends.selected() == "auto" and exporting(input)):
        return "reference"
    device = input.device
    well_filled = device.type == "cuda" and _fills_blocks(input, offset, weight)
    return backends.resolve(backends.selected(), device.type, device.index, dtype, well_filled)


@functools.cache
def _register_onnx() -> None:
    """Makes torchvision's operator known to the exporter that traces. The one on top of torch.export knows it."""
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

    torch.onnx.register_custom_op_symbolic("torchvision::deform_conv2d", deform_conv2d, _OPSET)


@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    # Not in line: PyTorch 2.11 cannot compile it. False for meta, which `is_autocast_enabled` refuses to answer for.
    return torch.amp.is_autocast_available(device_type)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution, the contract of `torchvision.ops.deform_conv2d`.

    Args:
        input: (B, C, H, W), floating point of any precision.
        offset: (B, 2 * G * kh * kw, Ho, Wo) in pixels of the input; G offset groups. For group g and tap k, channel
            2 * (g * kh * kw + k) moves the tap down and the next one moves it right.
        weight, bias: (O, C / groups, kh, kw) and (O,); `groups` follows from the weight's shape.
        stride, padding, dilation: an int or a (vertical, horizontal) pair.
        mask: (B, G * kh * kw, Ho, Wo), a factor for each sample.

    Returns:
        (B, O, Ho, Wo) in the dtype of `input`, under autocast in autocast's. Half precision is computed in float32,
        but for Triton, which multiplies it as it is and adds up in float32.

    Raises:
        ValueError: shapes do not fit, a tensor is not of floating point or is on another device than `input`, or the
            chosen backend cannot run.
        NotImplementedError: a tensor carries a tangent of forward-mode differentiation.
    """
    pairs = _pair(stride, "stride", 1), _pair(padding, "padding", 0), _pair(dilation, "dilation", 1)
    tensors = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    _check(tensors, pairs)
    device, dtype = input.device, input.dtype
    for tensor in (offset, weight, bias, mask):
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    backend = _backend(input, offset, weight, dtype)
    enabled = _has_autocast(device.type) and torch.is_autocast_enabled(device.type)
    autocast = dtype != torch.float64 and enabled
    result = torch.get_autocast_dtype(device.type) if autocast else input.dtype
    if backend != "reference" and dtype != torch.float64:
        # Offsets and masks go in as they are: the kernels compute with them in float32.
        compute = result if autocast else torch.promote_types(input.dtype, weight.dtype)
        if compute not in backends.NATIVE_DTYPES[backend]:
            compute = torch.float32
    else:
        compute = result if autocast else dtype
        if compute not in backends.NATIVE_DTYPES[backend]:
            compute = torch.promote_types(dtype, torch.float32)
        offset, mask = offset.to(compute), None if mask is None else mask.to(compute)
    input, weight, bias = input.to(compute), weight.to(compute), None if bias is None else bias.to(compute)
    if backend == "reference":
        # Autocast would hand bfloat16 to torchvision's CPU operator, which fails; a needless switch spoils exports.
        with torch.autocast(device.type, enabled=False) if enabled else contextlib.nullcontext():
            output = torchvision_deform_conv2d(input, offset, weight, bias, *pairs, mask=mask)
    else:
        output = torch.ops.fapn_zoo.deform_conv2d(input, offset, weight, bias, mask, *pairs)
    return output.to(result)


class ModulatedDeformConv(nn.Module):
    """A 3x3 modulated deformable convolution (DCNv2) whose offsets and masks are read from a second map.

    `forward(x, *moves(guide))`: both (N, in_channels, H, W) -> (N, channels, H, W); without `in_channels` they have
    `channels` too. In two steps, so that the guide's memory is free for what follows: the more a CPU's allocator gives
    back to the system, the more has to come from there again, slowly. The 27 * groups channels of the offset
    convolution are 18 * groups offsets in torchvision's order, then 9 * groups masks before their sigmoid. Offsets
    start at zero and masks at one half, so a new module is half a plain convolution. Raises ValueError where groups do
    not divide the input's channels.
    """

    def __init__(self, channels: int, groups: int = 8, *, in_channels: int | None = None, bias: bool = True) -> None:
        super().__init__()
        in_channels = channels if in_channels is None else in_channels
        if in_channels % groups:
            raise ValueError(f"{in_channels} channels cannot be split into {groups} deformable groups")
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.offset_mask = nn.Conv2d(in_channels, 27 * groups, 3, padding=1)
        bound = (9 * in_channels) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Gives a new module weights that return `x`: under masks of one half, twice the Dirac kernel."""
        nn.init.dirac_(self.weight).mul_(2)

    def moves(self, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (N, 18 * groups, H, W), and masks (N, 9 * groups, H, W) in 0..1."""
        offset, mask = self.offset_mask(guide).split((18 * self.groups, 9 * self.groups), dim=1)
        if mask.requires_grad or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return offset, mask.sigmoid()
        return offset, mask.sigmoid_()

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        y = deform_conv2d(x, offset, self.weight, self.bias, padding=1, mask=mask)
        return y.contiguous(memory_format=memory_format(x))  # what follows would otherwise leave channels-last
