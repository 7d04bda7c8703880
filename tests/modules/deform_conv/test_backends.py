"""Deformable convolution: compiled and exported graphs, choice of the backend, processors."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from toys.deform_conv_cases import SHAPES, Shape, make_tensors, run

from fapn_zoo.modules.deform_conv import backends
from fapn_zoo.modules.deform_conv.conv import active_backend, available_backends, deform_conv2d, deform_conv_backend
from fapn_zoo.runtime import compilers

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _numba_backend() -> Iterator[None]:
    with deform_conv_backend("numba"):
        yield


class Layer(torch.nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.detach())

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(input, offset, self.weight, padding=1, mask=mask)


@pytest.mark.parametrize("backend", ["numba", "reference", "auto"])
def test_compiles_as_one_graph(backend: str) -> None:
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
def test_exports_with_dynamic_sizes(backend: str, operator: str) -> None:
    input, offset, weight, _, mask = make_tensors(SHAPES["plain"], torch.float32)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with deform_conv_backend(backend):
        program = torch.export.export(Layer(weight), (input, offset, mask), dynamic_shapes=(sizes, sizes, sizes))
    assert any(operator in str(node.target) for node in program.graph.nodes)
    other = Shape((3, 16, 8, 6, 13), offset_groups=2)
    input, offset, _, _, mask = make_tensors(other, torch.float32)
    expected = torchvision.ops.deform_conv2d(input, offset, weight, padding=1, mask=mask)
    torch.testing.assert_close(program.module()(input, offset, mask), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["float32", "without", "bfloat16", "channels_last"])
def test_opcheck(case: str) -> None:
    from fapn_zoo.modules.deform_conv.ops import deform_conv2d_backward_op, deform_conv2d_op

    shape = SHAPES["wide_groups" if case == "bfloat16" else "groups"]
    given = case != "without"
    tensors = make_tensors(shape, torch.bfloat16 if case == "bfloat16" else torch.float32, mask=given, bias=given)
    if case == "channels_last":
        for index in (0, 1, 2, 4):
            last = tensors[index].detach().contiguous(memory_format=torch.channels_last)
            tensors[index] = last.requires_grad_()
    input, offset, weight, bias, mask = tensors
    if case == "bfloat16":
        offset = offset.detach().float().requires_grad_()
    pairs = [list(pair) for pair in shape.arguments.values()]
    torch.library.opcheck(deform_conv2d_op, (input, offset, weight, bias, mask, *pairs))
    arguments = [None if tensor is None else tensor.detach() for tensor in (input, offset, weight, mask)]
    grad = torch.ops.fapn_zoo.deform_conv2d(*arguments[:3], None, arguments[3], *pairs)
    for needs in ([True] * 4 + [given], [False, True, False, False, False]):
        torch.library.opcheck(deform_conv2d_backward_op, (grad, *arguments, *pairs, needs))


def test_meta_device() -> None:
    tensors = [tensor.detach().to("meta") for tensor in make_tensors(SHAPES["plain"], torch.float32)]
    with deform_conv_backend("auto"):
        output = deform_conv2d(*tensors[:4], padding=1, mask=tensors[4])
    assert output.device.type == "meta" and output.shape == (2, 8, 9, 11)


@pytest.mark.skipif(torch.cuda.is_available(), reason="describes a machine without a GPU")
def test_backend_selection() -> None:
    assert available_backends() == ["auto", "reference", "numba"]
    assert active_backend() == "numba"
    with deform_conv_backend("auto"):
        assert active_backend("cpu") == "numba"
        assert active_backend("cuda") == "reference"
        with deform_conv_backend("reference"):
            assert active_backend() == "reference"
        assert active_backend() == "numba"
    with pytest.raises(ValueError, match="'fast'.*reference, numba, triton"), deform_conv_backend("fast"):
        pass
    assert active_backend() == "numba"
    with pytest.raises(ValueError, match="'numba', chosen by .* runs on cpu, not"):
        active_backend("cuda")


@pytest.mark.parametrize("needs, products", [((), 1), (("input",), 2), (("weight",), 2), (("offset", "weight"), 3)])
def test_products_are_counted_like_a_convolution(needs: tuple[str, ...], products: int) -> None:
    shape = SHAPES["groups"]
    tensors = dict(zip(("input", "offset", "weight", "bias", "mask"), make_tensors(shape, torch.float32), strict=True))
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in needs)
    with FlopCounterMode(display=False) as counter:
        output = deform_conv2d(**tensors, **shape.arguments)
        if needs:
            output.sum().backward()
    with FlopCounterMode(display=False) as plain:
        torch.conv2d(tensors["input"].detach(), tensors["weight"].detach(), padding=1, groups=2)
    assert counter.get_total_flops() == products * plain.get_total_flops() > 0


@pytest.mark.parametrize("missing", [True, False])
def test_without_numba(monkeypatch: pytest.MonkeyPatch, missing: bool) -> None:
    monkeypatch.setattr(compilers, "numba_works", functools.cache(compilers.numba_works.__wrapped__))
    if missing:
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    assert available_backends() == ["auto", "reference"]
    shape = SHAPES["many_tiles"]
    expected = run(torchvision.ops.deform_conv2d, make_tensors(shape), shape)
    monkeypatch.setitem(sys.modules, "fapn_zoo.modules.deform_conv.cpu.kernels", None)
    with deform_conv_backend("auto"):
        assert active_backend() == "reference"
        torch.testing.assert_close(run(deform_conv2d, make_tensors(shape), shape), expected)
    with pytest.raises(ValueError, match="numba"):
        active_backend()


@pytest.mark.parametrize("choice", ["reference", "fast"])
def test_environment_variable(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setenv("FAPN_ZOO_DEFORM_CONV", choice)
    spec = importlib.util.spec_from_file_location("fapn_zoo.modules.deform_conv.another", backends.__file__)
    another = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(another)
    if choice == "reference":
        assert another.active_backend() == "reference"
    else:
        with pytest.raises(ValueError, match="'fast'.*auto, reference, numba"):
            another.active_backend()


def test_kernels_are_imported_at_first_use() -> None:
    kernels = {"numba", "fapn_zoo.modules.deform_conv.cpu.kernels", "fapn_zoo.modules.deform_conv.cuda.kernels"}
    code = f"import fapn_zoo.modules.deform_conv.conv, sys; assert not {kernels} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


OTHER_PROCESSOR = """
import torch
from toys.deform_conv_cases import SHAPES, TOLERANCE, make_tensors, run
import torchvision
from fapn_zoo.modules.deform_conv.cpu import vectors
from fapn_zoo.modules.deform_conv.conv import deform_conv2d, deform_conv_backend

assert not vectors.has_bfloat16()
for name, dtype in (("many_pieces", torch.float32), ("groups", torch.float64), ("many_pieces", torch.bfloat16)):
    tensors = make_tensors(SHAPES[name], dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    with deform_conv_backend("numba"):
        ours = run(deform_conv2d, tensors, SHAPES[name], grad_dtype=dtype)
    theirs = run(torchvision.ops.deform_conv2d, exact, SHAPES[name], grad_dtype=dtype)
    tolerance = TOLERANCE.get(dtype, {"rtol": 2e-2, "atol": 2e-3})
    for value, expected in zip(ours, theirs):
        torch.testing.assert_close(value.double(), expected, **tolerance)
"""


@pytest.mark.parametrize("features", ["", "+avx,+avx2,+fma"])
def test_processors_with_fewer_registers(tmp_path: Path, features: str) -> None:
    if features and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("for x86")
    path = os.pathsep.join(filter(None, sys.path))
    numba = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", OTHER_PROCESSOR], env={**os.environ, **numba, "PYTHONPATH": path}, check=True)


def test_compiled_kernels_are_stale_when_any_of_their_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fapn_zoo.modules.deform_conv.cpu import kernels

    room = Path(kernels.__file__).parents[1]
    copy = tmp_path / "deform_conv"
    shutil.copytree(room / "cpu", copy / "cpu", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(room / "geometry.py", copy)
    before = kernels.stamp()
    monkeypatch.setattr(kernels, "__file__", str(copy / "cpu" / "kernels.py"))
    assert kernels.stamp.__wrapped__() == before
    stamps = {before}
    files = [copy / "geometry.py", *sorted((copy / "cpu").glob("*.py"))]
    for file in files:
        file.write_text(file.read_text() + "\n# another line\n")
        stamps.add(kernels.stamp.__wrapped__())
    assert len(stamps) == len(files) + 1 >= 8
    (copy / "geometry.py").unlink()
    with pytest.raises(FileNotFoundError):
        kernels.stamp.__wrapped__()
