"""Shapes, tensors and comparisons shared by the tests of deformable convolution."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor

from fapn_zoo.modules.deform_conv.conv import deform_conv2d

TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-10}, torch.float32: {"rtol": 1e-4, "atol": 1e-4}}


class Shape(NamedTuple):
    """One call: B, C, O, H, W, weight groups, offset groups, and the pairs."""

    size: tuple[int, int, int, int, int]
    groups: int = 1
    offset_groups: int = 1
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    @property
    def arguments(self) -> dict[str, tuple[int, int]]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


SHAPES = {
    "plain": Shape((2, 16, 8, 9, 11), offset_groups=2),
    "many_tiles": Shape((1, 8, 8, 33, 41), offset_groups=8),
    "many_tiles_groups": Shape((1, 16, 8, 25, 24), groups=2, offset_groups=4),
    "one_offset_group": Shape((1, 32, 8, 12, 12)),
    "many_pieces": Shape((1, 128, 40, 5, 13), offset_groups=2),
    "wide_groups": Shape((2, 32, 48, 6, 7), groups=2),
    "groups": Shape((1, 16, 8, 9, 11), groups=2, offset_groups=4),
    "fewer_offset_groups": Shape((2, 24, 12, 9, 7), groups=4, offset_groups=2),
    "groups_across": Shape((1, 12, 6, 8, 8), groups=3, offset_groups=2),
    "depthwise": Shape((1, 8, 8, 7, 7), groups=8, offset_groups=2),
    "stride_dilation": Shape((1, 16, 4, 15, 14), offset_groups=2, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "even_kernel": Shape((3, 6, 6, 7, 8), groups=3, offset_groups=2, kernel=(2, 2)),
    "long_kernel": Shape((1, 4, 4, 9, 9), kernel=(1, 5), padding=(0, 2)),
    "pointwise": Shape((2, 16, 4, 6, 6), offset_groups=2, kernel=(1, 1), padding=(0, 0)),
    "no_padding": Shape((1, 4, 4, 6, 6), padding=(0, 0)),
    "one_pixel": Shape((1, 8, 4, 1, 1), offset_groups=2),
}
OFFSETS = {
    "random": lambda offset: offset * 2,
    "zero": lambda offset: offset * 0,
    "whole": lambda offset: (offset * 2).round(),
    "far": lambda offset: offset * 50,
    "tiny": lambda offset: offset * 1e-6,
}


def make_tensors(
    shape: Shape,
    dtype: torch.dtype = torch.float64,
    offsets: str = "random",
    mask: bool = True,
    bias: bool = True,
    seed: int = 0,
) -> list[Tensor | None]:
    """Return input, offset, weight, bias, mask as leaves that require gradients (None where not wanted)."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, out_channels, height, width = shape.size
    taps = shape.kernel[0] * shape.kernel[1]
    axes = zip((height, width), shape.kernel, shape.stride, shape.padding, shape.dilation, strict=True)
    out_size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    tensors = [
        draw(batch, channels, height, width),
        OFFSETS[offsets](draw(batch, 2 * shape.offset_groups * taps, *out_size)),
        draw(out_channels, channels // shape.groups, *shape.kernel),
        draw(out_channels) if bias else None,
        draw(batch, shape.offset_groups * taps, *out_size).sigmoid() if mask else None,
    ]
    return [None if tensor is None else tensor.to(dtype).requires_grad_() for tensor in tensors]


def run(
    function: Callable, tensors: list[Tensor | None], shape: Shape, grad_dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return the output and the gradients of all tensors for one random output gradient, rounded to `grad_dtype`."""
    input, offset, weight, bias, mask = tensors
    output = function(input, offset, weight, bias, **shape.arguments, mask=mask)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(grad_dtype)
    leaves = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output))]


def half_errors(function: Callable, tensors: list[Tensor | None], shape: Shape) -> list[tuple[float, float]]:
    """Mean and largest error of output and gradients against float64 of the same numbers in half precision."""
    dtype = tensors[0].dtype
    exact = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in tensors]
    truth = run(torchvision.ops.deform_conv2d, exact, shape, grad_dtype=dtype)
    found = run(function, tensors, shape, grad_dtype=dtype)
    errors = [(a.double() - b).abs() for a, b in zip(found, truth, strict=True)]
    return [(error.mean().item(), error.max().item()) for error in errors]


def rounded_once(*args: Tensor | None, mask: Tensor | None, **pairs: tuple[int, int]) -> Tensor:
    """The half precision that could not be nearer: computed in float64, then rounded."""
    double = [None if tensor is None else tensor.double() for tensor in (*args, mask)]
    return torchvision.ops.deform_conv2d(*double[:4], **pairs, mask=double[4]).to(args[0].dtype)


def assert_equals_torchvision(tensors: list[Tensor | None], shape: Shape) -> None:
    ours = run(deform_conv2d, tensors, shape)
    theirs = run(torchvision.ops.deform_conv2d, tensors, shape)
    for value, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, expected, **TOLERANCE[tensors[0].dtype])


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
