"""Deformable convolution: every backend against torchvision's operator, values and gradients."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
from typing import NamedTuple

import pytest
import torch
import torchvision

from fapn_zoo.layers import deform_conv
from fapn_zoo.layers.deform_conv import active_backend, available_backends, deform_conv2d, deform_conv_backend

pytestmark = pytest.mark.unit
pytest.importorskip("numba")

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
    def arguments(self):
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


SHAPES = {
    "plain": Shape((2, 16, 8, 9, 11), offset_groups=2),
    "many_tiles": Shape((1, 8, 8, 33, 41), offset_groups=8),
    "one_offset_group": Shape((1, 32, 8, 12, 12)),
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


def make_tensors(shape, dtype=torch.float64, offsets="random", mask=True, bias=True, seed=0):
    """Return input, offset, weight, bias, mask as leaves that require gradients (None where not wanted)."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, out_channels, height, width = shape.size
    taps = shape.kernel[0] * shape.kernel[1]
    axes = zip((height, width), shape.kernel, shape.stride, shape.padding, shape.dilation, strict=True)
    out_size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    tensors = [
        draw(batch, channels, height, width),
        OFFSETS[offsets](draw(batch, 2 * shape.offset_groups * taps, *out_size)),
        draw(out_channels, channels // shape.groups, *shape.kernel),
        draw(out_channels) if bias else None,
        draw(batch, shape.offset_groups * taps, *out_size).sigmoid() if mask else None,
    ]
    return [None if tensor is None else tensor.to(dtype).requires_grad_() for tensor in tensors]


def run(function, tensors, shape, grad_dtype=torch.float64):
    """Return the output and the gradients of all tensors for one random output gradient, rounded to `grad_dtype`."""
    input, offset, weight, bias, mask = tensors
    output = function(input, offset, weight, bias, **shape.arguments, mask=mask)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(grad_dtype)
    leaves = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def assert_equals_torchvision(tensors, shape):
    ours = run(deform_conv2d, tensors, shape)
    theirs = run(torchvision.ops.deform_conv2d, tensors, shape)
    for value, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, expected, **TOLERANCE[tensors[0].dtype])


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _numba_backend():
    with deform_conv_backend("numba"):
        yield


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_torchvision_in_float64(name, offsets):
    assert_equals_torchvision(make_tensors(SHAPES[name], offsets=offsets), SHAPES[name])


@pytest.mark.parametrize("name", SHAPES)
def test_equals_torchvision_in_float32(name):
    assert_equals_torchvision(make_tensors(SHAPES[name], torch.float32), SHAPES[name])


@pytest.mark.parametrize("mask, bias", [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("name", ["plain", "groups", "stride_dilation"])
def test_without_mask_or_bias(name, mask, bias):
    assert_equals_torchvision(make_tensors(SHAPES[name], mask=mask, bias=bias), SHAPES[name])


def test_offset_channels_are_vertical_then_horizontal():
    image = torch.arange(25.0).view(1, 1, 5, 5)
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1
    offset = torch.zeros(1, 18, 5, 5)
    offset[:, 8] = 1  # the middle tap, one pixel down
    moved = deform_conv2d(image, offset, weight, padding=1)
    assert torch.equal(moved[0, 0, :4], image[0, 0, 1:])


@pytest.mark.parametrize("position", [-1.5, -1.0, -0.5, 0.0, 3.0, 4.0, 4.5, 5.0, 6.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_borders(axis, position):
    """At exactly -1 the value is zero but the slope is not; at exactly the size both are zero."""
    shape = Shape((1, 8, 4, 5, 5), kernel=(1, 1), padding=(0, 0))
    tensors = make_tensors(shape, offsets="tiny")
    with torch.no_grad():
        grid = torch.arange(5.0, dtype=torch.float64)
        tensors[1][:, axis] = position - (grid[:, None] if axis == 0 else grid[None, :])
        tensors[1][:, 1 - axis] = 0.3
    assert_equals_torchvision(tensors, shape)


def test_gradcheck_away_from_kinks():
    shape = Shape((1, 4, 2, 4, 5), groups=2, offset_groups=2, kernel=(2, 2))
    tensors = make_tensors(shape)
    with torch.no_grad():
        tensors[1].copy_(tensors[1].round() + 0.2 + 0.6 * torch.rand_like(tensors[1]))

    def function(input, offset, weight, bias, mask):
        return deform_conv2d(input, offset, weight, bias, **shape.arguments, mask=mask)

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("wanted", range(5))
def test_only_the_wanted_gradient_is_computed(wanted):
    shape = SHAPES["plain"]
    everything = run(deform_conv2d, make_tensors(shape), shape)
    tensors = make_tensors(shape)
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index == wanted)
    torch.testing.assert_close(run(deform_conv2d, tensors, shape)[1], everything[1 + wanted])


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_memory_layouts(layout):
    shape = SHAPES["plain"]
    tensors = [tensor.detach() for tensor in make_tensors(shape)]
    change = {
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
        "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
        "expanded": lambda t: t[:1].expand_as(t),
    }[layout]
    assert_equals_torchvision([change(tensor).requires_grad_() for tensor in tensors], shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_batch(dtype):
    shape = Shape((0, 8, 4, 5, 5))
    tensors = make_tensors(shape, dtype)
    output, *grads = run(deform_conv2d, tensors, shape)
    assert output.shape == (0, 4, 5, 5) and output.dtype == dtype
    for grad, tensor in zip(grads, tensors, strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


def test_nan_offset_shows_and_infinite_offset_is_outside():
    shape = SHAPES["plain"]
    tensors = [tensor.detach() for tensor in make_tensors(shape)]
    tensors[1][0, 0, 2, 3] = float("nan")
    tensors[1][0, 1, 5, 5] = float("inf")
    output = deform_conv2d(*tensors[:4], **shape.arguments, mask=tensors[4])
    assert output[0, :, 2, 3].isnan().all()
    assert output.isnan().sum() == output.shape[1]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend, dtype):
    shape = SHAPES["plain"]
    tensors = make_tensors(shape, dtype)
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    with deform_conv_backend(backend):
        ours = run(deform_conv2d, tensors, shape)
    assert all(value.dtype == dtype for value in ours)
    theirs = run(torchvision.ops.deform_conv2d, exact, shape, grad_dtype=dtype)
    for value, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, expected.to(dtype), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("count", [1, 2])
def test_autocast(backend, count):
    shape = SHAPES["plain"]
    tensors = make_tensors(shape, torch.float32)
    with deform_conv_backend(backend), threads(count):
        expected = run(deform_conv2d, tensors, shape)
        with torch.autocast("cpu", torch.bfloat16):
            output = deform_conv2d(*tensors[:4], **shape.arguments, mask=tensors[4])
            double = deform_conv2d(*(tensor.double() for tensor in tensors[:4]), **shape.arguments)
    assert output.dtype == torch.bfloat16 and double.dtype == torch.float64
    torch.testing.assert_close(output.detach(), expected[0].bfloat16())
    output.float().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors)


@pytest.mark.parametrize("name", ["plain", "many_tiles", "groups", "groups_across"])
def test_threads_agree(name):
    shape = SHAPES[name]
    tensors = make_tensors(shape, torch.float32)
    with threads(1):
        one = run(deform_conv2d, tensors, shape)
    with threads(2):
        two, again = (run(deform_conv2d, tensors, shape) for _ in range(2))
    assert torch.equal(one[0], two[0])
    for a, b, c in zip(one, two, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert torch.equal(b, c)


def test_callers_settings_survive():
    with threads(2):
        run(deform_conv2d, make_tensors(SHAPES["many_tiles"]), SHAPES["many_tiles"])
        assert torch.get_num_threads() == 2
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [2]
    assert torch.is_grad_enabled()


def test_called_from_several_threads_at_once():
    shape = SHAPES["many_tiles"]
    tensors = make_tensors(shape)
    expected = run(deform_conv2d, tensors, shape)
    results = [None] * 4

    def call(index):
        results[index] = run(deform_conv2d, tensors, shape)

    with threads(2):
        callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    for result in results:
        torch.testing.assert_close(result, expected)


def _forked(queue):
    shape = SHAPES["many_tiles"]
    queue.put(float(run(deform_conv2d, make_tensors(shape), shape)[0].sum()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_works_in_a_forked_process():
    shape = SHAPES["many_tiles"]
    with threads(2):
        expected = float(run(deform_conv2d, make_tensors(shape), shape)[0].sum())
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        # The child has one PyTorch thread, as data loaders set it: its OpenMP cannot start more after a fork.
        with threads(1):
            child = context.Process(target=_forked, args=(queue,))
            child.start()
        assert queue.get(timeout=60) == pytest.approx(expected)
        child.join()


class Layer(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.detach())

    def forward(self, input, offset, mask):
        return deform_conv2d(input, offset, self.weight, padding=1, mask=mask)


@pytest.mark.parametrize("backend", ["numba", "reference", "auto"])
def test_compiles_as_one_graph(backend):
    torch.compiler.reset()
    shape = SHAPES["plain"]
    input, offset, weight, _, mask = make_tensors(shape, torch.float32)
    layer = Layer(weight)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with deform_conv_backend(backend):
        expected = layer(input, offset, mask)
        output = compiled(input, offset, mask)
        torch.testing.assert_close(output, expected)
        grads = torch.autograd.grad(output.sum(), [input, offset, mask, layer.weight])
        wanted = torch.autograd.grad(expected.sum(), [input, offset, mask, layer.weight])
        torch.testing.assert_close(grads, wanted)
        with torch.autocast("cpu", torch.bfloat16):
            assert compiled(input, offset, mask).dtype == torch.bfloat16


@pytest.mark.parametrize("backend, operator", [("numba", "fapn_zoo.deform_conv2d"), ("reference", "torchvision")])
def test_exports_with_dynamic_sizes(backend, operator):
    input, offset, weight, _, mask = make_tensors(SHAPES["plain"], torch.float32)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with deform_conv_backend(backend):
        program = torch.export.export(Layer(weight), (input, offset, mask), dynamic_shapes=(sizes, sizes, sizes))
    assert any(operator in str(node.target) for node in program.graph.nodes)
    other = Shape((3, 16, 8, 6, 13), offset_groups=2)
    input, offset, _, _, mask = make_tensors(other, torch.float32)
    expected = torchvision.ops.deform_conv2d(input, offset, weight, padding=1, mask=mask)
    torch.testing.assert_close(program.module()(input, offset, mask), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", [True, False])
def test_opcheck(mask):
    from fapn_zoo.layers._deform_numba import deform_conv2d_backward_op, deform_conv2d_op

    shape = SHAPES["groups"]
    input, offset, weight, bias, mask = make_tensors(shape, torch.float32, mask=mask, bias=mask)
    pairs = [list(pair) for pair in shape.arguments.values()]
    torch.library.opcheck(deform_conv2d_op, (input, offset, weight, bias, mask, *pairs))
    arguments = [None if tensor is None else tensor.detach() for tensor in (input, offset, weight, mask)]
    grad = torch.randn(1, 8, 9, 11)
    for needs in ([True] * 4 + [mask is not None], [False, True, False, False, False]):
        torch.library.opcheck(deform_conv2d_backward_op, (grad, *arguments, *pairs, needs))


def test_meta_device():
    tensors = [tensor.detach().to("meta") for tensor in make_tensors(SHAPES["plain"], torch.float32)]
    with deform_conv_backend("auto"):
        output = deform_conv2d(*tensors[:4], padding=1, mask=tensors[4])
    assert output.device.type == "meta" and output.shape == (2, 8, 9, 11)


def test_backend_selection():
    assert available_backends() == ["auto", "reference", "numba"]
    assert active_backend() == "numba"
    with deform_conv_backend("auto"):
        assert active_backend("cpu") == "numba"
        assert active_backend("cuda") == "reference"
        with deform_conv_backend("reference"):
            assert active_backend() == "reference"
        assert active_backend() == "numba"
    with pytest.raises(ValueError, match=r"'triton'.*auto, reference, numba"), deform_conv_backend("triton"):
        pass
    assert active_backend() == "numba"
    with pytest.raises(ValueError, match="cpu, not on cuda"):
        active_backend("cuda")


def test_without_numba(monkeypatch):
    monkeypatch.setattr(deform_conv, "_numba_works", None)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert available_backends() == ["auto", "reference"]
    with deform_conv_backend("auto"):
        assert active_backend() == "reference"
    with pytest.raises(ValueError, match="numba"):
        active_backend()


@pytest.mark.parametrize("choice, expected", [("reference", "reference"), ("fast", "ValueError")])
def test_environment_variable(choice, expected):
    code = (
        "import sys\n"
        "from fapn_zoo.layers.deform_conv import active_backend\n"
        "assert 'numba' not in sys.modules\n"
        "print(active_backend())\n"
    )
    environment = {**os.environ, "FAPN_ZOO_DEFORM_CONV": choice}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert expected in result.stdout + result.stderr


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
def test_wrong_shapes_name_both_numbers(change, message):
    shapes = {"input": (2, 16, 9, 11), "offset": (2, 36, 9, 11), "weight": (8, 16, 3, 3)}
    tensors = {name: torch.zeros(shape) for name, shape in (shapes | change).items()}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**tensors, padding=1)


@pytest.mark.parametrize("argument", ["stride", "dilation"])
def test_wrong_pairs(argument):
    tensors = make_tensors(SHAPES["plain"])[:3]
    for value in (0, (1, 2, 3), (1, -1)):
        with pytest.raises(ValueError, match=argument):
            deform_conv2d(*tensors, **{argument: value})
