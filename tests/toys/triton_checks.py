"""Checks of the Triton kernels, run by Triton's interpreter in a process of its own or on a GPU.

The interpreter must be chosen (TRITON_INTERPRET=1) before Triton is imported, so `test_deform_triton` sends these
functions to a child process; on a GPU it calls them itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor
from toys.deform_conv_cases import SHAPES, Shape, half_errors, make_tensors, run

from fapn_zoo.modules.deform_conv.conv import active_backend, deform_conv2d, deform_conv_backend
from fapn_zoo.modules.deform_conv.cuda import tuning

# More blocks of every kind: tiles, pieces of a run, blocks of output channels, neighbouring offset groups.
TRITON_SHAPES = {
    **{name: shape for name, shape in SHAPES.items() if not name.startswith("many_tiles")},
    # Smaller than the others' tests have them: the interpreter is slow where there are many groups.
    "fewer_offset_groups": SHAPES["fewer_offset_groups"]._replace(size=(1, 24, 12, 5, 4)),
    "even_kernel": SHAPES["even_kernel"]._replace(size=(1, 6, 6, 7, 8)),
    "depthwise": SHAPES["depthwise"]._replace(size=(1, 4, 4, 5, 5), groups=4),
    "tiles": Shape((2, 16, 20, 7, 10), kernel=(1, 2)),
    "pieces": Shape((1, 40, 4, 5, 6), kernel=(2, 1)),
    "join": Shape((1, 32, 36, 5, 6), groups=2, offset_groups=8, kernel=(1, 2)),
    "pixel_groups": Shape((1, 16, 4, 5, 5), offset_groups=16, kernel=(1, 1), padding=(0, 0)),
}
# Norms of the errors over norms of the values. The interpreter rounds to bfloat16 by cutting off.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
INTERPRETED_BFLOAT16 = 1.5e-2


def start() -> str:
    """What a fresh process does once; returns its backend."""
    torch.set_num_threads(1)
    with deform_conv_backend("triton"):
        return active_backend("cpu")


def moved(tensors: list[Tensor | None], device: str) -> list[Tensor | None]:
    return [None if t is None else t.detach().to(device).requires_grad_(t.requires_grad) for t in tensors]


def exact(tensors: list[Tensor | None], shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """torchvision's result in float64 from the same values."""
    double = [None if t is None else t.detach().cpu().double().requires_grad_(t.requires_grad) for t in tensors]
    return run(torchvision.ops.deform_conv2d, double, shape, grad_dtype=dtype)


def ours(tensors: list[Tensor | None], shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    with deform_conv_backend("triton"):
        return run(deform_conv2d, tensors, shape, grad_dtype=dtype)


def assert_close(
    values: list[Tensor],
    expected: list[Tensor],
    device: str,
    dtypes: list[torch.dtype],
    tolerances: dict[torch.dtype, float] = TOLERANCE,
) -> None:
    for value, wanted, dtype in zip(values, expected, dtypes, strict=True):
        assert value.dtype == dtype and value.device.type == device and value.shape == wanted.shape
        tolerance = tolerances[dtype]
        if dtype == torch.bfloat16 and device == "cpu":
            tolerance = INTERPRETED_BFLOAT16
        error = (value.detach().cpu().double() - wanted).norm()
        limit = tolerance * wanted.norm() + 1e-7
        assert error <= limit, f"error {error:.2e}, allowed {limit:.2e}"


def check(
    device: str, shape: str | Shape, dtype: torch.dtype = torch.float32, offsets: str = "random", **options: Any
) -> None:
    """Output and all gradients against float64."""
    shape = TRITON_SHAPES.get(shape, shape)
    tensors = moved(make_tensors(shape, dtype, offsets, **options), device)
    values = ours(tensors, shape, dtype)
    assert_close(values, exact(tensors, shape, dtype), device, [dtype] * len(values))


def check_nearer_than_torchvision(device: str, shape: str) -> None:
    """float16, whose errors are those of the numbers, not of sums and positions in float16."""
    tensors = moved(make_tensors(TRITON_SHAPES[shape], torch.float16), device)
    with deform_conv_backend("triton"):
        found = half_errors(deform_conv2d, tensors, TRITON_SHAPES[shape])
    theirs = half_errors(torchvision.ops.deform_conv2d, moved(tensors, "cpu"), TRITON_SHAPES[shape])
    assert all(mean <= other for (mean, _), (other, _) in zip(found, theirs, strict=True)), (found, theirs)


def check_wide_index(device: str, shape: str) -> None:
    """The same with 64-bit indices, as for images of more than 2**31 elements."""
    from fapn_zoo.modules.deform_conv.cuda import launch

    before, launch._extent = launch._extent, lambda tensor: 2**31
    launch._calls.clear()
    try:
        check(device, shape)
    finally:
        launch._extent = before
        launch._calls.clear()


def check_small_blocks(device: str, shape: str, **changes: Any) -> None:
    """The same with many tiles per image, or another order of reading; not on a GPU, which has its own list."""
    before = dict(tuning._INTERPRETED)
    for name, (config,) in before.items():
        tuning._INTERPRETED[name] = [config._replace(tile=(4, 4), **changes)]
    tuning.chosen.clear()
    try:
        check(device, shape)
    finally:
        tuning._INTERPRETED.update(before)
        tuning.chosen.clear()


def check_candidate(device: str, precision: torch.dtype | str, index: int) -> None:
    """One of the configurations that large calls on a GPU choose from, whether or not it would be chosen."""
    from fapn_zoo.modules.deform_conv.cuda import launch

    dtype = torch.float32 if precision == "tf32" else precision
    shape = Shape((1, 64, 136, 9, 17), offset_groups=4, kernel=(1, 2), padding=(0, 1))
    tensors = moved(make_tensors(shape, dtype), device)
    launched = []

    def launch_one(kernel: str, call: Any, launch: Callable, *args: Any) -> Any:
        # On a device of one multiprocessor no block is too large.
        configs = tuning.candidates(kernel, call.geometry, call.dtype, precision == "tf32", 1)
        launched.append(configs[index % len(configs)])
        return launch(launched[-1])

    before, launch.run = launch.run, launch_one
    matmul = torch.backends.cuda.matmul
    allowed, matmul.allow_tf32 = matmul.allow_tf32, precision == "tf32"
    try:
        values = ours(tensors, shape, dtype)
    finally:
        launch.run, matmul.allow_tf32 = before, allowed
    assert len(launched) == 3
    tolerances = {torch.float32: 1e-3} if precision == "tf32" else TOLERANCE
    assert_close(values, exact(tensors, shape, dtype), device, [dtype] * len(values), tolerances)


def check_tiny_offsets(device: str) -> None:
    """Offsets that vanish beside the position: the sample lies on a pixel and has the slope torchvision gives it."""
    shape = TRITON_SHAPES["long_kernel"]
    tensors = moved(make_tensors(shape, torch.float32, "tiny"), device)
    values = ours(tensors, shape, torch.float32)
    single = moved(tensors, "cpu")
    expected = run(torchvision.ops.deform_conv2d, single, shape, grad_dtype=torch.float32)
    assert_close(values, [value.double() for value in expected], device, [torch.float32] * len(values))


def check_border(device: str, axis: int, position: float) -> None:
    """At exactly -1 the value is zero but the slope is not; at exactly the size both are zero."""
    shape = Shape((1, 8, 4, 5, 5), kernel=(1, 1), padding=(0, 0))
    tensors = make_tensors(shape, torch.float32)
    with torch.no_grad():
        grid = torch.arange(5.0)
        tensors[1][:, axis] = position - (grid[:, None] if axis == 0 else grid[None, :])
        tensors[1][:, 1 - axis] = 0.3 - (grid[None, :] if axis == 0 else grid[:, None]) / 2
    tensors = moved(tensors, device)
    values = ours(tensors, shape, torch.float32)
    expected = exact(tensors, shape, torch.float32)
    for value, wanted in zip(values, expected, strict=True):
        torch.testing.assert_close(value.detach().cpu().double(), wanted, rtol=1e-5, atol=1e-5)


def check_layout(device: str, layout: str) -> None:
    shape = TRITON_SHAPES["join"]._replace(size=(2, 32, 36, 5, 6))
    tensors = [tensor.detach() for tensor in moved(make_tensors(shape, torch.float32), device)]
    change = {
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
        "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
        "expanded": lambda t: t[:1].expand_as(t),
        "cut_out": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]] if t.dim() == 4 else t,
    }[layout]
    tensors = [change(tensor).requires_grad_() for tensor in tensors]
    values = ours(tensors, shape, torch.float32)
    assert_close(values, exact(tensors, shape, torch.float32), device, [torch.float32] * 6)
    last = layout == "channels_last"
    assert values[0].is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert not last or values[1].is_contiguous(memory_format=torch.channels_last)


def check_only(device: str, wanted: int) -> None:
    """Each gradient alone is what it is together with the others."""
    shape = TRITON_SHAPES["long_kernel"]
    everything = ours(moved(make_tensors(shape, torch.float32), device), shape, torch.float32)
    tensors = moved(make_tensors(shape, torch.float32), device)
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index == wanted)
    torch.testing.assert_close(ours(tensors, shape, torch.float32)[1], everything[1 + wanted], rtol=1e-5, atol=1e-5)


def check_other_dtypes_of_offsets(device: str) -> None:
    """Half precision images with float32 offsets and masks: each gradient has its tensor's dtype."""
    shape = TRITON_SHAPES["long_kernel"]
    dtypes = [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16, torch.float32]
    tensors = moved(make_tensors(shape, torch.float32), device)
    tensors = [t.detach().to(dtype).requires_grad_() for t, dtype in zip(tensors, dtypes, strict=True)]
    values = ours(tensors, shape, torch.bfloat16)
    assert [value.dtype for value in values] == [torch.bfloat16, *dtypes]
    for value, wanted in zip(values, exact(tensors, shape, torch.bfloat16), strict=True):
        error = (value.cpu().double() - wanted).norm() / wanted.norm()
        assert error < (INTERPRETED_BFLOAT16 if device == "cpu" else TOLERANCE[torch.bfloat16]), error


def check_autocast(device: str) -> None:
    """bfloat16 in and out, gradients in the parameters' dtype; float64 is left to torchvision."""
    shape = TRITON_SHAPES["long_kernel"]
    tensors = moved(make_tensors(shape, torch.float32), device)
    half = [tensor.detach().bfloat16() for tensor in tensors]
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            if "fapn_zoo.deform_conv2d.default" in str(function):
                seen.append([value.dtype for value in args[:3]])
            return function(*args, **(kwargs or {}))

    with deform_conv_backend("triton"), torch.autocast(device, torch.bfloat16), Watch():
        output = deform_conv2d(*tensors[:4], **shape.arguments, mask=tensors[4])
        expected = deform_conv2d(half[0], tensors[1], half[2], half[3], **shape.arguments, mask=tensors[4])
    assert seen[0] == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected)
    with deform_conv_backend("triton"):
        output.float().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors)
    pairs = [list(pair) for pair in shape.arguments.values()]
    arguments = (output.detach(), half[0], tensors[1].detach(), half[2], tensors[4].detach(), *pairs, [True] * 5)
    with deform_conv_backend("triton"), torch.autocast(device, torch.bfloat16):
        grads = torch.ops.fapn_zoo.deform_conv2d_backward(*arguments)
    assert [grad.dtype for grad in grads] == [
        torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16, torch.float32
    ]  # fmt: skip


def check_nan_and_infinity(device: str) -> None:
    shape = TRITON_SHAPES["plain"]
    tensors = [tensor.detach() for tensor in make_tensors(shape, torch.float32)]
    tensors[1][0, 0, 2, 3] = float("nan")
    tensors[1][0, 1, 5, 5] = float("inf")
    tensors = moved(tensors, device)
    with deform_conv_backend("triton"):
        output = deform_conv2d(*tensors[:4], **shape.arguments, mask=tensors[4])
    assert output[0, :, 2, 3].isnan().all()
    assert output.isnan().sum() == output.shape[1]


def check_empty_batch(device: str) -> None:
    shape = Shape((0, 8, 4, 5, 5))
    tensors = moved(make_tensors(shape, torch.float32), device)
    output, *grads = ours(tensors, shape, torch.float32)
    assert output.shape == (0, 4, 5, 5)
    for grad, tensor in zip(grads, tensors, strict=True):
        assert grad.shape == tensor.shape and not grad.any()


def check_opcheck(device: str, layout: str) -> None:
    from fapn_zoo.modules.deform_conv.ops import deform_conv2d_backward_op, deform_conv2d_op

    shape = TRITON_SHAPES["pointwise"]
    tensors = moved(make_tensors(shape, torch.float32), device)
    if layout == "channels_last":
        tensors = [
            t.detach().contiguous(memory_format=torch.channels_last).requires_grad_() if t.dim() == 4 else t
            for t in tensors
        ]
    input, offset, weight, bias, mask = tensors
    pairs = [list(pair) for pair in shape.arguments.values()]
    with deform_conv_backend("triton"):
        output = deform_conv2d_op(input, offset, weight, bias, mask, *pairs).detach()
        torch.library.opcheck(deform_conv2d_op, (input, offset, weight, bias, mask, *pairs))
        arguments = [tensor.detach() for tensor in (input, offset, weight, mask)]
        for needs in ([True] * 5, [False, True, False, False, False]):
            torch.library.opcheck(deform_conv2d_backward_op, (torch.randn_like(output), *arguments, *pairs, needs))


def check_compiles_as_one_graph(device: str) -> None:
    shape = TRITON_SHAPES["pointwise"]
    tensors = moved(make_tensors(shape, torch.float32), device)

    def function(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(input, offset, weight, bias, mask=mask) * 2

    with deform_conv_backend("triton"):
        expected = function(*tensors)
        output = torch.compile(function, fullgraph=True, backend="aot_eager")(*tensors)
        torch.testing.assert_close(output, expected)
        grads = torch.autograd.grad(output.sum(), tensors)
        torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), tensors), rtol=1e-4, atol=1e-5)
