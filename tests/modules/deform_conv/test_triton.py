"""Deformable convolution in Triton: interpreted on the CPU, compiled for a GPU that is not there, and on a real GPU."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import triton_checks as checks
from toys.deform_conv_cases import Shape, make_tensors

from fapn_zoo.modules.deform_conv.conv import deform_conv2d, deform_conv_backend

pytest.importorskip("triton", reason="needs triton")

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.unit),
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[concurrent.futures.Executor]:
    """A process whose Triton interprets: that is settled when Triton is first imported."""
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(checks.start).result() == "triton"
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
        yield pool


@pytest.fixture(params=DEVICES)
def perform(request: pytest.FixtureRequest) -> Callable:
    """Runs a check on the device: on the CPU in the interpreter's process."""
    device = request.param
    if device == "cuda":
        return lambda function, *args, **kwargs: function(device, *args, **kwargs)
    pool = request.getfixturevalue("interpreter")
    return lambda function, *args, **kwargs: pool.submit(function, device, *args, **kwargs).result()


@pytest.mark.parametrize("name", checks.TRITON_SHAPES)
def test_equals_float64(perform: Callable, name: str) -> None:
    perform(checks.check, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "pieces", "join", "stride_dilation"])
def test_half_precision(perform: Callable, name: str, dtype: torch.dtype) -> None:
    perform(checks.check, name, dtype)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["plain", "pieces", "stride_dilation"])
def test_float16_is_nearer_to_float64_than_torchvisions(interpreter: concurrent.futures.Executor, name: str) -> None:
    interpreter.submit(checks.check_nearer_than_torchvision, "cpu", name).result()


@pytest.mark.parametrize(
    "precision, index",
    [*((torch.bfloat16, index) for index in range(9)), *((torch.float32, index) for index in range(3)),
     *(("tf32", index) for index in range(4))],
)  # fmt: skip
def test_every_candidate(perform: Callable, precision: torch.dtype | str, index: int) -> None:
    perform(checks.check_candidate, precision, index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offsets", ["zero", "whole", "far"])
def test_offsets(perform: Callable, offsets: str, dtype: torch.dtype) -> None:
    perform(checks.check, "no_padding", dtype, offsets)


def test_tiny_offsets(perform: Callable) -> None:
    perform(checks.check_tiny_offsets)


@pytest.mark.parametrize("position", [-1.5, -1.0, -0.5, 0.0, 4.0, 4.5, 5.0, 6.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_borders(perform: Callable, axis: int, position: float) -> None:
    perform(checks.check_border, axis, position)


@pytest.mark.parametrize("mask, bias", [(False, True), (True, False), (False, False)])
def test_without_mask_or_bias(perform: Callable, mask: bool, bias: bool) -> None:
    perform(checks.check, "long_kernel", mask=mask, bias=bias)


@pytest.mark.unit
@pytest.mark.parametrize("name, changes", [("tiles", {}), ("tiles", {"prefetch": True}), ("pieces", {"programs": 99})])
def test_small_blocks(interpreter: concurrent.futures.Executor, name: str, changes: dict[str, Any]) -> None:
    interpreter.submit(checks.check_small_blocks, "cpu", name, **changes).result()


def test_wide_index(perform: Callable) -> None:
    perform(checks.check_wide_index, "pieces")


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded", "cut_out"])
def test_memory_layouts(perform: Callable, layout: str) -> None:
    perform(checks.check_layout, layout)


@pytest.mark.parametrize("wanted", range(5))
def test_only_the_wanted_gradient_is_computed(perform: Callable, wanted: int) -> None:
    perform(checks.check_only, wanted)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_opcheck(perform: Callable, layout: str) -> None:
    perform(checks.check_opcheck, layout)


@pytest.mark.parametrize(
    "name",
    [
        "check_other_dtypes_of_offsets",
        "check_autocast",
        "check_nan_and_infinity",
        "check_empty_batch",
        "check_compiles_as_one_graph",
    ],
)
def test_behaviour(perform: Callable, name: str) -> None:
    perform(getattr(checks, name))


# Large enough to have several configurations to choose from on a GPU of 132 multiprocessors, and on smaller ones.
RACED = Shape((2, 128, 128, 64, 64), offset_groups=8)


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tuner of a process that has not chosen anything yet."""
    from fapn_zoo.modules.deform_conv.cuda import tuning

    for name in ("chosen", "_untimed"):
        monkeypatch.setattr(tuning, name, {})
    return tuning


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_race(tuning: Any) -> None:
    checks.check("cuda", RACED, torch.bfloat16)
    chosen = dict(tuning.chosen)
    assert {key[0] for key in chosen} == {"forward", "backward_data", "backward_weight"}
    for best, times in chosen.values():
        assert len(times) > 1 and best == min(times, key=times.get) and min(times.values()) > 0
    checks.check("cuda", RACED, torch.bfloat16)
    assert tuning.chosen == chosen


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_in_a_cuda_graph_nothing_is_timed(tuning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = checks.moved(make_tensors(RACED, torch.bfloat16), "cuda")

    def step() -> list[Tensor]:
        output = deform_conv2d(*tensors[:4], padding=1, mask=tensors[4])
        return [output.detach(), *torch.autograd.grad(output.sum(), tensors)]

    with deform_conv_backend("triton"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), monkeypatch.context() as patch:
            patch.setenv("FAPN_ZOO_DEFORM_TUNE", "0")
            expected = step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            values = step()
        graph.replay()
        torch.cuda.synchronize()
    assert not tuning.chosen
    for value, wanted in zip(values, expected, strict=True):
        assert (value - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_on_another_device_than_the_current_one() -> None:
    tensors = make_tensors(checks.TRITON_SHAPES["plain"], torch.float32)
    first, second = (
        checks.ours(checks.moved(tensors, device), checks.TRITON_SHAPES["plain"], torch.float32)
        for device in ("cuda:0", "cuda:1")
    )
    for value, wanted in zip(second, first, strict=True):
        assert value.device.index == 1
        torch.testing.assert_close(value.cpu(), wanted.cpu(), rtol=1e-5, atol=1e-5)
