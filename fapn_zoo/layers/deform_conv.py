"""The one door to deformable convolution (DCN v1 and v2); backends stand behind it.

The environment variable FAPN_ZOO_DEFORM_CONV (auto, reference or numba) chooses at import, `deform_conv_backend` for a
while. `auto` takes the fastest that works: numba on the CPU where it is installed, else torchvision's operator.
"""

import contextlib
import os
import warnings

import torch
from torch import Tensor

from . import _deform_reference

_NAMES = ("auto", "reference", "numba")
_selected = os.environ.get("FAPN_ZOO_DEFORM_CONV", "auto")
_numba_works = None


def _check_name(name):
    if name not in _NAMES:
        raise ValueError(f"unknown deformable convolution backend {name!r}; choose one of {', '.join(_NAMES)}")
    return name


def _numba_imports():
    """Whether numba can be used; tried once, since a broken installation shows only when it is imported."""
    global _numba_works
    if _numba_works is None:
        try:
            import numba

            # Switched off (NUMBA_DISABLE_JIT), it would interpret the kernels.
            _numba_works = not numba.config.DISABLE_JIT
        except ModuleNotFoundError:
            _numba_works = False
        except Exception as error:
            warnings.warn(f"numba cannot be imported, so deformable convolution will be slow: {error}", stacklevel=2)
            _numba_works = False
    return _numba_works


def available_backends() -> list[str]:
    """Names that `deform_conv_backend` accepts and that can run here, 'auto' first."""
    return [name for name in _NAMES if name != "numba" or _numba_imports()]


@torch.compiler.assume_constant_result
def _resolve(name, device_type):
    _check_name(name)
    if name == "auto":
        # A Triton backend for CUDA belongs here.
        return "numba" if device_type == "cpu" and _numba_imports() else "reference"
    if name == "numba" and not _numba_imports():
        raise ValueError(
            "deformable convolution backend 'numba' was asked for, but numba is missing, broken or switched off"
        )
    if name == "numba" and device_type not in ("cpu", "meta"):
        raise ValueError(f"deformable convolution backend 'numba' runs on cpu, not on {device_type}")
    return name


def active_backend(device: str | torch.device = "cpu") -> str:
    """Name of the backend that a call on `device` takes now: 'reference' or 'numba'."""
    return _resolve(_selected, torch.device(device).type)


@contextlib.contextmanager
def deform_conv_backend(name: str):
    """Use the backend `name` inside the block; 'reference' puts torchvision's operator in exports.

    The choice holds for the whole process, so that threads of data or gradients follow it.

    Raises:
        ValueError: `name` is none of auto, reference, numba.
    """
    global _selected
    before, _selected = _selected, _check_name(name)
    try:
        yield
    finally:
        _selected = before


def _pair(value, name, least):
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name} must be an int or a pair of ints, each at least {least}; got {value!r}")
    return list(pair)


def _check_shapes(input, offset, weight, bias, mask, stride, padding, dilation):
    four = {"input": input, "offset": offset, "weight": weight, "mask": mask}
    for name, tensor in four.items():
        if tensor is not None and tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions; got {tensor.dim()}")
    out_channels, group_channels, *kernel = weight.shape
    taps = kernel[0] * kernel[1]
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
    size = [
        (length + 2 * pad - spread * (taps_along - 1) - 1) // step + 1
        for length, taps_along, step, pad, spread in zip(
            input.shape[2:], kernel, stride, padding, dilation, strict=True
        )
    ]
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
        weight: (O, C / groups, kh, kw); `groups` follows from its shape.
        bias: (O,).
        stride, padding, dilation: an int or a (vertical, horizontal) pair.
        mask: (B, G * kh * kw, Ho, Wo), a factor for each sample.

    Returns:
        (B, O, Ho, Wo). Half precision is computed in float32 and returned in the dtype of `input`; under autocast
        the result has autocast's dtype.

    Raises:
        ValueError: shapes do not fit, or the chosen backend cannot run.
    """
    stride, padding = _pair(stride, "stride", 1), _pair(padding, "padding", 0)
    dilation = _pair(dilation, "dilation", 1)
    _check_shapes(input, offset, weight, bias, mask, stride, padding, dilation)
    device_type = input.device.type
    backend = _resolve(_selected, device_type)
    compute = input.dtype
    for tensor in (offset, weight, bias, mask):
        if tensor is not None:
            compute = torch.promote_types(compute, tensor.dtype)
    if compute in (torch.float16, torch.bfloat16):
        compute = torch.float32
    result = input.dtype
    if compute != torch.float64 and _deform_reference.autocast_enabled(device_type):
        result = torch.get_autocast_dtype(device_type)
    tensors = [None if t is None else t.to(compute) for t in (input, offset, weight, bias, mask)]
    if backend == "numba":
        from . import _deform_numba  # noqa: F401  (registers the operator)

        output = torch.ops.fapn_zoo.deform_conv2d(*tensors, stride, padding, dilation)
    else:
        output = _deform_reference.deform_conv2d(*tensors, stride, padding, dilation)
    return output.to(result)
