"""Deformable convolution on CUDA: the launches of the Triton kernels and what they are planned by.

How the kernels work, and why so, is said in docs/deformable-convolution.md. An input that is not channels-last is
transposed once into an NHWC copy; all other tensors are used where they lie. float32 multiplies exactly, or in TF32
where `torch.backends.cuda.matmul` says so. With TRITON_INTERPRET=1 set before the first import, everything here runs on
CPU tensors, slowly: that is how it is tested without a GPU.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fapn_zoo.modules.deform_conv.cuda import kernels
from fapn_zoo.modules.deform_conv.cuda.tuning import Config, run
from fapn_zoo.modules.deform_conv.geometry import Geometry, Pairs, channel_blocks, output_sizes
from fapn_zoo.modules.layers.conv import memory_format

INTERPRETED = not isinstance(kernels.forward_kernel, triton.JITFunction)

# Triton's default for products followed by sums depends on its version; fused they are faster and more exact.
_OPTIONS = {"enable_fp_fusion": True}
_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _strides(name: str, tensor: Tensor | None) -> dict[str, int]:
    """The strides of a NCHW tensor as arguments of a kernel; zeros if there is none."""
    b, c, y, x = (0, 0, 0, 0) if tensor is None else tensor.stride()
    return {f"{name}_b": b, f"{name}_c": c, f"{name}_y": y, f"{name}_x": x}


def _extent(tensor: Tensor) -> int:
    """How far apart elements of one image can lie."""
    steps = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
    return sum((size - 1) * stride for size, stride in steps)


def _dense_planes(tensor: Tensor) -> bool:
    return tensor.stride(2) == tensor.shape[3] * tensor.stride(3)


def _copy(source: Tensor, target: Tensor) -> None:
    """Copy NCHW tensors of one shape but different strides and dtypes; transposes through shared memory."""
    if not (_dense_planes(source) and _dense_planes(target)):
        target.copy_(source)
        return
    batch, channels, height, width = source.shape
    pixels = height * width
    index = tl.int64 if max(_extent(source), _extent(target)) >= 2**31 else tl.int32
    steps = {
        f"{name}_{axis}": value
        for name, tensor in (("source", source), ("target", target))
        for axis, value in zip("bcp", (tensor.stride(0), tensor.stride(1), tensor.stride(3)), strict=True)
    }
    grid = (triton.cdiv(pixels, 64) * batch, triton.cdiv(channels, 64))
    sizes = {"channels": channels, "pixels": pixels, "INDEX": index, "P": 64, "C": 64}
    kernels.copy_kernel[grid](source, target, **steps, **sizes, **_OPTIONS)


def _nhwc(tensor: Tensor, dense: bool = False) -> Tensor:
    """`tensor` or a copy with channels one apart; `dense`: and nothing between its pixels."""
    if tensor.stride(1) == 1 and (not dense or tensor.is_contiguous(memory_format=torch.channels_last)):
        return tensor
    copy = torch.empty_like(tensor, memory_format=torch.channels_last)
    _copy(tensor, copy)
    return copy


def _packed(weight: Tensor) -> Tensor:
    """(O, C / groups, kh, kw) -> (O, taps, C / groups) contiguous; no copy if the weight is channels-last."""
    return weight.permute(0, 2, 3, 1).contiguous()


class _Call:
    """What follows from sizes, strides and dtypes alone: geometry, arguments, and the key that choices go by."""

    def __init__(self, named: dict[str, Tensor | None], weight: Tensor, pairs: Pairs) -> None:
        image, offset, mask = named["image"], named["offset"], named["mask"]
        self.geometry = geo = Geometry.of(image, offset, weight, pairs)
        self.dtype, self.device = image.dtype, image.device
        tensors = [tensor for tensor in named.values() if tensor is not None]
        wide = any(_extent(tensor) >= 2**31 for tensor in tensors)
        # The interpreter multiplies the bits of bfloat16, not the numbers.
        operand = tl.float32 if INTERPRETED else _DTYPES[image.dtype]
        self.sizes = {name: getattr(geo, name) for name in ("height", "width", "out_height", "out_width")}
        for name, tensor in named.items():
            self.sizes |= _strides(name, tensor)
        del self.sizes["image_c"]
        self.constants = {
            "HAS_MASK": mask is not None, "INDEX": tl.int64 if wide else tl.int32, "OPERAND": operand,
            "PRECISION": "tf32" if _tf32(image) else "ieee", "KERNEL_X": geo.kernel[1], "TAPS": geo.taps,
            "STRIDE_Y": geo.stride[0], "STRIDE_X": geo.stride[1], "PAD_Y": geo.padding[0], "PAD_X": geo.padding[1],
            "DILATION_Y": geo.dilation[0], "DILATION_X": geo.dilation[1], "GROUPS": geo.groups,
            "GROUP_IN": geo.channels // geo.groups, "GROUP_OUT": geo.out_channels // geo.groups,
            "OFFSET_IN": geo.channels // geo.offset_groups,
        }  # fmt: skip
        layouts = tuple((name, None if t is None else (t.dtype, t.stride(1) == 1)) for name, t in named.items())
        size = (geo.batch * geo.pixels).bit_length()
        self.key = (self.device, size, layouts, *self.constants.values())
        self._blocks = {}

    def blocks(self, config: Config) -> dict[str, Any]:
        """All arguments but tensors and flags, for a configuration."""
        if config not in self._blocks:
            geo = self.geometry
            run, samples, width = channel_blocks(geo.channels, geo.groups, geo.offset_groups, config.channels)
            tiles_x = triton.cdiv(geo.out_width, config.tile[1])
            sizes = {"tiles_x": tiles_x, "tiles": tiles_x * triton.cdiv(geo.out_height, config.tile[0])}
            constants = {"RUN": run, "S": samples, "R": width, "TILE_Y": config.tile[0], "TILE_X": config.tile[1]}
            constants |= {"BLOCK_N": config.block_n, "CACHE": config.cache, "num_warps": config.warps}
            constants |= {"num_stages": config.stages, "maxnreg": config.registers}
            self._blocks[config] = {**self.sizes, **sizes, **self.constants, **constants, **_OPTIONS}
        return self._blocks[config]


_calls = {}


def _call(named: dict[str, Tensor | None], weight: Tensor, pairs: Pairs) -> _Call:
    """The `_Call` of these tensors, remembered: building it takes Python longer than a small launch."""
    facts = tuple((name, t is not None and (t.shape, t.stride(), t.dtype)) for name, t in named.items())
    image = named["image"]
    key = (image.device, _tf32(image), weight.shape, *map(tuple, pairs), facts)
    call = _calls.get(key)
    if call is None:
        if len(_calls) >= 1024:
            _calls.clear()
        call = _calls[key] = _Call(named, weight, pairs)
    return call


def _tf32(image: Tensor) -> bool:
    if image.dtype != torch.float32:
        return False
    matmul = torch.backends.cuda.matmul
    # Where PyTorch has the newer setting, the older must not be read once somebody has set the newer.
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, pairs: Pairs
) -> Tensor:
    """Deformable convolution of checked tensors, all pairs given; the output has the input's memory format.

    input and weight of one dtype, float32, bfloat16 or float16; the others of any of these.
    """
    size = (input.shape[0], weight.shape[0], *output_sizes(input, weight, pairs))
    output = torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))
    if output.numel() == 0:
        return output
    with _on(input.device):
        named = {"image": _nhwc(input), "offset": offset, "mask": mask, "output": output}
        call = _call(named, weight, pairs)
        geo = call.geometry
        tensors = {**named, "mask": offset if mask is None else mask, "weight": _packed(weight)}
        tensors["bias"] = weight if bias is None else bias.contiguous()

        def launch(config: Config) -> None:
            blocks = call.blocks(config)
            programs = blocks["tiles"] * geo.batch * geo.groups * triton.cdiv(blocks["GROUP_OUT"], config.block_n)
            kernels.forward_kernel[(programs,)](
                **tensors, **blocks, HAS_BIAS=bias is not None, PREFETCH=config.prefetch
            )

        run("forward", call, launch)
    return output


def backward(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, pairs: Pairs, needs: list[bool]
) -> list[Tensor]:
    """Gradients of input, offset, weight, bias, mask where `needs` says so, an empty tensor elsewhere.

    Each has the dtype and memory format of its tensor.
    """
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    wanted = [(input, need_input), (offset, need_offset), (weight, need_weight)]
    grads = [torch.empty_like(tensor) if need else tensor.new_empty(0) for tensor, need in wanted]
    # Inside a region of autocast, a sum that names no dtype is one of float32.
    grads.append(grad.sum((0, 2, 3), dtype=weight.dtype) if need_bias else weight.new_empty(0))
    grads.append(torch.empty_like(mask) if need_mask else input.new_empty(0))
    if grad.numel() == 0:
        return [value.zero_() for value in grads]
    with _on(input.device):
        named = {"grad": grad, "image": _nhwc(input, dense=True), "offset": offset, "mask": mask}
        if need_input or need_offset or need_mask:
            _data_gradients(named, weight, pairs, grads, needs)
        if need_weight:
            _weight_gradient(named, weight, pairs, grads[2])
    return grads


def _data_gradients(
    named: dict[str, Tensor | None], weight: Tensor, pairs: Pairs, grads: list[Tensor], needs: list[bool]
) -> None:
    need_input, need_offset, _, _, need_mask = needs
    grad_input, grad_offset, _, _, grad_mask = grads
    image, offset, mask = named["image"], named["offset"], named["mask"]
    written = (("grad_offset", grad_offset, need_offset), ("grad_mask", grad_mask, need_mask))
    named = named | {name: grad if need else None for name, grad, need in written}
    call = _call(named, weight, pairs)
    geo, total = call.geometry, image
    if need_input:
        _alert_not_deterministic(image.device)
        total = torch.zeros_like(image, dtype=torch.float32)
    tensors = named | {"mask": offset if mask is None else mask, "weight": _packed(weight), "grad_image": total}
    tensors |= {"grad_offset": grad_offset, "grad_mask": grad_mask}
    wanted = {"NEED_IMAGE": need_input, "NEED_OFFSET": need_offset, "NEED_MASK": need_mask}

    def launch(config: Config) -> None:
        blocks = call.blocks(config)
        owners = geo.offset_groups // blocks["S"]
        kernels.backward_data_kernel[(blocks["tiles"] * geo.batch * owners,)](**tensors, **blocks, **wanted)

    # Timing adds to the sum, so it starts anew afterwards.
    run("backward_data", call, launch, total.zero_ if need_input else None, tuple(wanted.values()))
    if need_input:
        _copy(total, grad_input)


def _weight_gradient(named: dict[str, Tensor | None], weight: Tensor, pairs: Pairs, grad_weight: Tensor) -> None:
    call = _call(named, weight, pairs)
    geo, mask = call.geometry, named["mask"]
    tensors = {**named, "mask": named["offset"] if mask is None else mask}

    def launch(config: Config) -> Tensor:
        blocks = call.blocks(config)
        run, width = blocks["RUN"], blocks["S"] * blocks["R"]
        programs = geo.groups * triton.cdiv(blocks["GROUP_OUT"], config.block_n)
        programs *= blocks["GROUP_IN"] // run * triton.cdiv(run, width) * geo.taps
        all_tiles = geo.batch * blocks["tiles"]
        share = triton.cdiv(all_tiles, min(all_tiles, triton.cdiv(config.programs, programs)))
        parts = triton.cdiv(all_tiles, share)
        size = (parts, geo.out_channels, geo.taps, blocks["GROUP_IN"])
        total = torch.empty(size, dtype=torch.float32, device=weight.device)
        kernels.backward_weight_kernel[(programs * parts,)](
            **tensors, **blocks, grad_weight=total, all_tiles=all_tiles, share=share
        )
        return total

    total = run("backward_weight", call, launch)
    # (parts, O, taps, C / groups) -> (O, C / groups, kh, kw)
    grad_weight.copy_(total.sum(0).unflatten(1, geo.kernel).permute(0, 3, 1, 2))


def _alert_not_deterministic(device: torch.device) -> None:
    if device.type != "cuda" or not torch.are_deterministic_algorithms_enabled():
        return
    text = (
        "the gradient of deform_conv2d's input is added up by atomic adds, in no fixed order; "
        "torch.use_deterministic_algorithms(True, warn_only=True) lets it run"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(text)
    warnings.warn(text, stacklevel=2)
