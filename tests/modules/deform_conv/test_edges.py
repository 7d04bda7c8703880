"""Deformable convolution at its edges: numbers that are none, huge maps, other layouts, what it must refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from toys.deform_conv_cases import SHAPES, Shape, make_tensors, run

from fapn_zoo.modules.deform_conv.conv import deform_conv2d, deform_conv_backend

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True, params=["numba"])
def _cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with deform_conv_backend(request.param):
        yield request.param


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("position", [float("inf"), 1e30, 2.0**63, 2.0**31])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_samples_far_outside_are_zero(position: float, sign: int, dtype: torch.dtype) -> None:
    shape = SHAPES["many_pieces"]
    tensors = [tensor.detach() for tensor in make_tensors(shape, dtype)]
    tensors[1][:, 0::2], tensors[1][:, 1::2] = sign * position, -sign * position
    output, *grads = run(deform_conv2d, [tensor.requires_grad_() for tensor in tensors], shape)
    assert torch.equal(output, tensors[3].detach().view(1, -1, 1, 1).expand_as(output))
    for index in (0, 1, 2, 4):
        assert not grads[index].any()


@pytest.mark.parametrize("position", [float("nan"), float("inf"), -1e30])
def test_gradients_beside_samples_without_a_place(position: float) -> None:
    """What an offset does to its own sample is for no other gradient to see."""
    shape = SHAPES["plain"]
    tensors = make_tensors(shape)
    with torch.no_grad():
        tensors[1][1, 5, 3, 4] = position
    expected = [tensor.detach().clone() for tensor in tensors]
    # The same sample, left out by its factor.
    expected[1][1, 5, 3, 4], expected[4][1, 2, 3, 4] = 0.0, 0.0
    output, *grads = run(deform_conv2d, tensors, shape)
    wanted, *wanted_grads = run(deform_conv2d, [tensor.requires_grad_() for tensor in expected], shape)
    others = torch.ones_like(output, dtype=torch.bool)
    others[1, :, 3, 4] = False
    torch.testing.assert_close(output[others], wanted[others])
    torch.testing.assert_close(grads[0], wanted_grads[0])
    torch.testing.assert_close(grads[3], wanted_grads[3])


def test_an_input_without_pixels() -> None:
    shape = Shape((2, 8, 4, 0, 5), padding=(2, 2))
    tensors = make_tensors(shape)
    output, *grads = run(deform_conv2d, tensors, shape)
    assert torch.equal(output, tensors[3].detach().view(1, -1, 1, 1).expand(2, 4, 2, 7))
    assert not any(grads[index].any() for index in (0, 1, 2, 4))


@pytest.mark.parametrize("height, width", [(2**24, 1), (2**16, 2**15)])
def test_maps_too_large_to_count_are_refused(height: int, width: int) -> None:
    input, weight = torch.zeros(1, 1, 1, 1).expand(1, 1, height, width), torch.zeros(1, 1, 1, 1)
    stride = max(height, width)
    with pytest.raises(ValueError, match=f"input of {height}x{width} is too large"):
        deform_conv2d(input, torch.zeros(1, 2, 1, 1), weight, stride=stride)


PARTS = {
    "channels": lambda t: torch.cat([t, t], 1).contiguous(memory_format=torch.channels_last)[:, : t.shape[1]],
    "pixels": lambda t: t.contiguous(memory_format=torch.channels_last)[..., 1:],
    "turned": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["plain", "one_offset_group", "pointwise"])
def test_layouts_are_those_that_graphs_are_told(name: str, part: str, dtype: torch.dtype) -> None:
    """Compiled code takes the strides of outputs from the fake kernels."""
    shape = SHAPES[name]
    input, offset, weight, bias, mask = (tensor.detach() for tensor in make_tensors(shape, dtype))
    tensors = [PARTS[part](input), PARTS[part](offset), weight, bias, PARTS[part](mask)]
    pairs = [list(pair) for pair in shape.arguments.values()]

    def outputs(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> list[Tensor]:
        output = torch.ops.fapn_zoo.deform_conv2d(input, offset, weight, bias, mask, *pairs)
        backward = torch.ops.fapn_zoo.deform_conv2d_backward
        return [output, *backward(output, input, offset, weight, mask, *pairs, [True] * 5)]

    with FakeTensorMode() as mode:
        promised = outputs(*(mode.from_tensor(tensor) for tensor in tensors))
    for value, fake in zip(outputs(*tensors), promised, strict=True):
        assert value.shape == fake.shape and value.stride() == fake.stride() and value.dtype == fake.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), [(9, 7), (1, 7), (9, 1), (1, 1)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_offsets_and_masks_out_of_one_map(
    height: int, width: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """Some channels of a larger map are read as their copies are, to the last bit; so are every second ones."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    x, weight = random(2, 32, height, width), random(8, 32, 3, 3)
    whole = random(2, 5 + 2 * 54, height, width).contiguous(memory_format=layout)
    for offset, mask in ((whole[:, 5:41], whole[:, 41:59]), (whole[:, 5:77:2], whole[:, 77::2])):
        dense = [part.contiguous(memory_format=layout) for part in (offset, mask)]
        for parts in ((offset, mask), (offset, None), (dense[0], mask)):
            found = deform_conv2d(x, parts[0], weight, padding=1, mask=parts[1])
            expected = deform_conv2d(x, dense[0], weight, padding=1, mask=None if parts[1] is None else dense[1])
            assert torch.equal(found, expected)


def test_gradients_inside_autocast() -> None:
    shape = SHAPES["plain"]
    tensors = make_tensors(shape, torch.float32)
    output = deform_conv2d(*tensors[:4], **shape.arguments, mask=tensors[4])
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(output, tensors, grad, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, torch.autograd.grad(output, tensors, grad), expected))


def test_tensors_changed_before_the_gradients_are_noticed() -> None:
    shape = SHAPES["plain"]
    for index in (0, 1, 2, 4):
        tensors = [tensor * 1 for tensor in make_tensors(shape)]
        output = deform_conv2d(*tensors[:4], **shape.arguments, mask=tensors[4])
        with torch.no_grad():
            tensors[index].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_gradients_of_gradients_are_refused() -> None:
    tensors = make_tensors(SHAPES["plain"])
    output = deform_conv2d(*tensors[:4], **SHAPES["plain"].arguments, mask=tensors[4])
    (grad,) = torch.autograd.grad(output.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="deform_conv2d_backward"):
        grad.sum().backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_tangents_are_refused() -> None:
    tensors = [tensor.detach() for tensor in make_tensors(SHAPES["plain"])]
    with forward_ad.dual_level():
        tensors[1] = forward_ad.make_dual(tensors[1], torch.ones_like(tensors[1]))
        with pytest.raises(NotImplementedError, match="offset has a tangent"):
            deform_conv2d(*tensors[:4], padding=1)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap() -> None:
    shape = SHAPES["plain"]
    input, offset, weight, bias, mask = (tensor.detach() for tensor in make_tensors(shape))

    def one(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(input[None], offset[None], weight, bias, padding=1, mask=mask[None])[0]

    expected = torchvision.ops.deform_conv2d(input, offset, weight, bias, padding=1, mask=mask)
    torch.testing.assert_close(torch.func.vmap(one)(input, offset, mask), expected)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("input", torch.Tensor.long, "input must be of floating point, not int64"),
        ("offset", lambda t: t.to(torch.complex128), "offset must be of floating point, not complex128"),
        ("mask", torch.Tensor.bool, "mask must be of floating point, not bool"),
        ("weight", lambda t: t.to("meta"), "weight is on meta, but the input is on cpu"),
        ("bias", lambda t: t.to("meta"), "bias is on meta, but the input is on cpu"),
        ("weight", lambda t: t[:, :, :0], "weight has a kernel of 0x3"),
    ],
)
def test_wrong_kinds_of_tensors(name: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    names = ("input", "offset", "weight", "bias", "mask")
    tensors = {key: tensor.detach() for key, tensor in zip(names, make_tensors(SHAPES["plain"]), strict=True)}
    tensors[name] = change(tensors[name])
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**tensors, padding=1)


@pytest.mark.parametrize("value", [1.0, (1, 1.0), None, "1", np.int64(1)])
def test_pairs_that_are_not_ints(value: object) -> None:
    tensors = make_tensors(SHAPES["plain"])[:3]
    with pytest.raises(ValueError, match="padding must be an int or a pair of ints, each at least 0; got"):
        deform_conv2d(*tensors, padding=value)
