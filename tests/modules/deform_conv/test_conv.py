"""Deformable convolution: values and gradients against torchvision's operator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor
from toys.deform_conv_cases import (
    OFFSETS,
    SHAPES,
    Shape,
    assert_equals_torchvision,
    half_errors,
    make_tensors,
    rounded_once,
    run,
    threads,
)

from fapn_zoo.modules.deform_conv.conv import deform_conv2d, deform_conv_backend

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True, params=["numba"])
def _cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with deform_conv_backend(request.param):
        yield request.param


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_torchvision_in_float64(name: str, offsets: str) -> None:
    assert_equals_torchvision(make_tensors(SHAPES[name], offsets=offsets), SHAPES[name])


@pytest.mark.parametrize("name", SHAPES)
def test_equals_torchvision_in_float32(name: str) -> None:
    assert_equals_torchvision(make_tensors(SHAPES[name], torch.float32), SHAPES[name])


@pytest.mark.parametrize("mask, bias", [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("name", ["plain", "groups", "stride_dilation"])
def test_without_mask_or_bias(name: str, mask: bool, bias: bool) -> None:
    assert_equals_torchvision(make_tensors(SHAPES[name], mask=mask, bias=bias), SHAPES[name])


def test_offset_channels_are_vertical_then_horizontal() -> None:
    image = torch.arange(25.0).view(1, 1, 5, 5)
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1
    offset = torch.zeros(1, 18, 5, 5)
    offset[:, 8] = 1  # the middle tap, one pixel down
    moved = deform_conv2d(image, offset, weight, padding=1)
    assert torch.equal(moved[0, 0, :4], image[0, 0, 1:])


@pytest.mark.parametrize("position", [-1.5, -1.0, -0.5, 0.0, 3.0, 4.0, 4.5, 5.0, 6.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_borders(axis: int, position: float) -> None:
    """At exactly -1 the value is zero but the slope is not; at exactly the size both are zero."""
    shape = Shape((1, 8, 4, 5, 5), kernel=(1, 1), padding=(0, 0))
    tensors = make_tensors(shape, offsets="tiny")
    with torch.no_grad():
        grid = torch.arange(5.0, dtype=torch.float64)
        tensors[1][:, axis] = position - (grid[:, None] if axis == 0 else grid[None, :])
        tensors[1][:, 1 - axis] = 0.3
    assert_equals_torchvision(tensors, shape)


def test_gradcheck_away_from_kinks() -> None:
    shape = Shape((1, 4, 2, 4, 5), groups=2, offset_groups=2, kernel=(2, 2))
    tensors = make_tensors(shape)
    with torch.no_grad():
        tensors[1].copy_(tensors[1].round() + 0.2 + 0.6 * torch.rand_like(tensors[1]))

    def function(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(input, offset, weight, bias, **shape.arguments, mask=mask)

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("wanted", range(5))
def test_only_the_wanted_gradient_is_computed(wanted: int) -> None:
    shape = SHAPES["plain"]
    everything = run(deform_conv2d, make_tensors(shape), shape)
    tensors = make_tensors(shape)
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index == wanted)
    torch.testing.assert_close(run(deform_conv2d, tensors, shape)[1], everything[1 + wanted])


@pytest.mark.parametrize("name", ["plain", "many_tiles_groups"])
@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_memory_layouts(layout: str, name: str) -> None:
    shape = SHAPES[name]
    tensors = [tensor.detach() for tensor in make_tensors(shape)]
    change = {
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
        "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
        "expanded": lambda t: t[:1].expand_as(t),
    }[layout]
    assert_equals_torchvision([change(tensor).requires_grad_() for tensor in tensors], shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_batch(dtype: torch.dtype) -> None:
    shape = Shape((0, 8, 4, 5, 5))
    tensors = make_tensors(shape, dtype)
    output, *grads = run(deform_conv2d, tensors, shape)
    assert output.shape == (0, 4, 5, 5) and output.dtype == dtype
    for grad, tensor in zip(grads, tensors, strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


def test_nan_offset_shows_and_infinite_offset_is_outside() -> None:
    shape = SHAPES["plain"]
    tensors = [tensor.detach() for tensor in make_tensors(shape)]
    tensors[1][0, 0, 2, 3] = float("nan")
    tensors[1][0, 1, 5, 5] = float("inf")
    output = deform_conv2d(*tensors[:4], **shape.arguments, mask=tensors[4])
    assert output[0, :, 2, 3].isnan().all()
    assert output.isnan().sum() == output.shape[1]


@pytest.mark.parametrize("last", [(), (0,), (1,), (4,), (0, 1, 4)])
def test_output_and_gradients_keep_the_layout(last: tuple[int, ...]) -> None:
    shape = SHAPES["many_tiles_groups"]
    tensors = [tensor.detach() for tensor in make_tensors(shape)]
    for index in last:
        tensors[index] = tensors[index].contiguous(memory_format=torch.channels_last)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert_equals_torchvision(tensors, shape)
    output, *grads = run(deform_conv2d, tensors, shape)
    for value, index in ((output, 0), *((grads[index], index) for index in (0, 1, 4))):
        layout = torch.channels_last if index in last else torch.contiguous_format
        assert value.is_contiguous(memory_format=layout)


def check_half_precision(tensors: list[Tensor | None], shape: Shape, wide: torch.dtype = torch.float64) -> None:
    """Values and gradients against those of the same numbers in the dtype `wide`."""
    dtype = tensors[0].dtype
    exact = [tensor.detach().to(wide).requires_grad_() for tensor in tensors]
    output, *grads = run(deform_conv2d, tensors, shape, grad_dtype=dtype)
    expected, *wanted = run(torchvision.ops.deform_conv2d, exact, shape, grad_dtype=dtype)
    # Every product has a sample rounded to eight bits, and so has the result: half of a last place each.
    parts = [tensor.detach().abs() for tensor in exact]
    parts[1] = exact[1].detach()
    sizes = torchvision.ops.deform_conv2d(*parts[:4], **shape.arguments, mask=parts[4])
    assert output.dtype == dtype
    assert ((output.double() - expected).abs() <= 2**-9 * (sizes + expected.abs()) + 1e-5 * sizes).all()
    for value, tensor, want in zip(grads, tensors, wanted, strict=True):
        assert value.dtype == tensor.dtype
        torch.testing.assert_close(value.to(wide), want, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("_cpu_backend", ["numba", "reference"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "one_offset_group", "many_pieces", "wide_groups"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    check_half_precision(make_tensors(SHAPES[name], dtype), SHAPES[name])


HALF = ("plain", "one_offset_group", "many_pieces", "wide_groups", "depthwise", "stride_dilation", "even_kernel")


@pytest.mark.parametrize("_cpu_backend", ["numba", "reference"], indirect=True)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", HALF)
def test_float16_is_nearer_to_float64_than_torchvisions(name: str, given: bool) -> None:
    """In mean and maximum, output and gradients: torchvision computes positions and sums in float16 too."""
    for offsets in ("random", "far", "whole"):
        tensors = make_tensors(SHAPES[name], torch.float16, offsets, mask=given, bias=given)
        ours = half_errors(deform_conv2d, tensors, SHAPES[name])
        theirs = half_errors(torchvision.ops.deform_conv2d, tensors, SHAPES[name])
        for (mean, largest), (their_mean, their_largest) in zip(ours, theirs, strict=True):
            # Whole positions without a mask leave the same rounding to both.
            assert mean <= 1.001 * their_mean and largest <= their_largest
        assert offsets == "whole" or ours[0][0] < 0.6 * theirs[0][0]


@pytest.mark.parametrize("_cpu_backend", ["numba", "reference"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_as_near_to_float64_as_can_be(name: str, dtype: torch.dtype, _cpu_backend: str) -> None:
    """But numba's output in bfloat16, whose samples are rounded before the product, as a convolution's inputs are."""
    loss = 2 if _cpu_backend == "numba" and dtype == torch.bfloat16 else 1.01
    for offsets in ("random", "far"):
        tensors = make_tensors(SHAPES[name], dtype, offsets)
        (mean, largest), *gradients = half_errors(deform_conv2d, tensors, SHAPES[name])
        (best, best_largest), *best_gradients = half_errors(rounded_once, tensors, SHAPES[name])
        assert mean <= loss * best and largest <= 2 * best_largest
        for (mean, _), (best, _) in zip(gradients, best_gradients, strict=True):
            assert mean <= 1.01 * best + 1e-7


@pytest.mark.parametrize("positions", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("offsets", OFFSETS)
def test_bfloat16_with_positions_of_either_precision(offsets: str, last: bool, positions: torch.dtype) -> None:
    shape = SHAPES["wide_groups"]
    tensors = [tensor.detach().bfloat16() for tensor in make_tensors(shape, offsets=offsets)]
    for index in (1, 4):
        tensors[index] = tensors[index].to(positions)
    if last:
        tensors = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    # A tiny offset is lost beside a whole number in float32, and another slope holds there than in float64.
    wide = torch.float32 if offsets == "tiny" else torch.float64
    check_half_precision([tensor.requires_grad_() for tensor in tensors], shape, wide)


def test_bfloat16_keeps_nan_and_infinity() -> None:
    shape = SHAPES["wide_groups"]
    tensors = [tensor.detach() for tensor in make_tensors(shape, torch.bfloat16)]
    tensors[0][0, 3, 2, 2], tensors[0][1, 20, 3, 3] = float("nan"), float("inf")
    output = deform_conv2d(*tensors[:4], **shape.arguments, mask=tensors[4])
    exact = [tensor.double() for tensor in tensors]
    expected = torchvision.ops.deform_conv2d(*exact[:4], **shape.arguments, mask=exact[4])
    assert torch.equal(output.isnan(), expected.isnan()) and torch.equal(output.isinf(), expected.isinf())


@pytest.mark.parametrize("_cpu_backend", ["numba", "reference"], indirect=True)
@pytest.mark.parametrize("name", ["plain", "many_pieces"])
@pytest.mark.parametrize("count", [1, 2])
def test_autocast(name: str, _cpu_backend: str, count: int) -> None:
    shape = SHAPES[name]
    tensors = make_tensors(shape, torch.float32)
    with threads(count):
        with torch.autocast("cpu", torch.bfloat16):
            output = deform_conv2d(*tensors[:4], **shape.arguments, mask=tensors[4])
            double = deform_conv2d(*(tensor.double() for tensor in tensors[:4]), **shape.arguments)
        if _cpu_backend == "numba":
            rounded = [tensors[index].bfloat16() for index in (0, 2, 3)]
            same = deform_conv2d(rounded[0], tensors[1], *rounded[1:], **shape.arguments, mask=tensors[4])
            assert torch.equal(output, same)
        else:
            expected = deform_conv2d(*tensors[:4], **shape.arguments, mask=tensors[4])
            assert torch.equal(output, expected.bfloat16())
    assert output.dtype == torch.bfloat16 and double.dtype == torch.float64
    output.float().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input": (2, 16, 9)}, "input must have 4 dimensions; got 3"),
        ({"input": (2, 15, 9, 11)}, "15 channels, not a multiple of the weight's 16"),
        ({"weight": (8, 5, 3, 3)}, "16 channels, not a multiple of the weight's 5"),
        ({"weight": (9, 8, 3, 3)}, "9 output channels, not a multiple of its 2 groups"),
        ({"offset": (2, 35, 9, 11)}, "35 channels, not a multiple of 2 \\* 9"),
        ({"offset": (2, 54, 9, 11)}, "16 channels, not a multiple of the 3 offset groups"),
        ({"offset": (1, 36, 9, 11)}, "offset has batch size 1, but the input has 2"),
        ({"offset": (2, 36, 9, 10)}, "offset is 9x10, but the output is 9x11"),
        ({"mask": (2, 9, 9, 11)}, "mask has 9 channels, but the offset asks for 18"),
        ({"mask": (2, 18, 8, 11)}, "mask is 8x11, but the output is 9x11"),
        ({"bias": (7,)}, r"bias has shape \(7,\), but the weight has 8"),
        ({"input": (2, 16, 0, 11)}, "input of 0x11"),
    ],
)
def test_wrong_shapes_name_both_numbers(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {"input": (2, 16, 9, 11), "offset": (2, 36, 9, 11), "weight": (8, 16, 3, 3)}
    tensors = {name: torch.zeros(shape) for name, shape in (shapes | change).items()}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**tensors, padding=1)


@pytest.mark.parametrize("argument", ["stride", "dilation"])
def test_wrong_pairs(argument: str) -> None:
    tensors = make_tensors(SHAPES["plain"])[:3]
    for value in (0, (1, 2, 3), (1, -1)):
        with pytest.raises(ValueError, match=argument):
            deform_conv2d(*tensors, **{argument: value})
