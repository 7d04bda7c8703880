"""Deformable convolution: threads and processes, compiled and exported graphs, choice of the backend."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torchvision
from deform_conv_cases import SHAPES, Shape, make_tensors, run, threads
from torch.utils.flop_counter import FlopCounterMode

from fapn_zoo import _workers
from fapn_zoo.layers import _deform_backends
from fapn_zoo.layers.deform_conv import active_backend, available_backends, deform_conv2d, deform_conv_backend

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _numba_backend():
    with deform_conv_backend("numba"):
        yield


@pytest.mark.parametrize("name", ["plain", "many_tiles", "many_tiles_groups", "groups_across"])
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


@pytest.mark.parametrize("openmp", [True, False])
def test_workers(monkeypatch, openmp):
    if not openmp:
        monkeypatch.setattr(_workers, "_find_openmp", lambda: None)
    elif _workers._find_openmp() is None:
        pytest.skip("PyTorch's threads cannot be had")
    here, others, barrier = threading.get_ident(), set(), threading.Barrier(3)

    def meet(worker):
        # Ends only if three threads are in it at once.
        barrier.wait(timeout=60)
        others.add((worker, threading.get_ident()))
        if worker == 1:
            raise KeyError("from a worker")

    with pytest.raises(KeyError, match="from a worker"):
        _workers.WORKERS.run(meet, 3)
    assert {worker for worker, _ in others} == {0, 1, 2}
    found = {thread for _, thread in others}
    assert len(found) == 3 and (here in found) == openmp  # of OpenMP's threads, the caller is one
    shape = SHAPES["many_tiles"]
    tensors = make_tensors(shape)
    with threads(1):
        expected = run(deform_conv2d, tensors, shape)
    with threads(3):
        torch.testing.assert_close(run(deform_conv2d, tensors, shape), expected)


def test_an_interrupt_is_not_lost(monkeypatch):
    def parallel(callback, *_):
        # As if the calling thread had been interrupted before its first line.
        other = threading.Thread(target=callback, args=(None,))
        other.start()
        other.join()

    monkeypatch.setattr(_workers, "_find_openmp", lambda: parallel)
    done = []
    with pytest.raises(KeyboardInterrupt):
        _workers.WORKERS.run(done.append, 2)
    assert done == [0, 1]


@pytest.mark.parametrize("count", [1, 2])
def test_inference_mode(count):
    shape = SHAPES["many_tiles"]
    tensors = make_tensors(shape)
    with threads(count), torch.inference_mode():
        copies = [tensor.clone() for tensor in tensors]
        output = deform_conv2d(*copies[:4], padding=1, mask=copies[4])
    expected = torchvision.ops.deform_conv2d(*tensors[:4], padding=1, mask=tensors[4])
    torch.testing.assert_close(output.clone(), expected.detach())


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
    # PyTorch's threads cannot start after a fork, ours can. Nothing here is large enough for PyTorch to want any.
    torch.set_num_threads(2)
    shape = SHAPES["plain"]
    queue.put(float(run(deform_conv2d, make_tensors(shape), shape)[0].sum()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_works_in_a_forked_process():
    with threads(2):
        shapes = SHAPES["many_tiles"], SHAPES["plain"]
        expected = [float(run(deform_conv2d, make_tensors(shape), shape)[0].sum()) for shape in shapes]
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        # One PyTorch thread, as data loaders have it.
        with threads(1):
            child = context.Process(target=_forked, args=(queue,))
            child.start()
        try:
            assert [queue.get(timeout=60) for _ in shapes] == pytest.approx(expected)
        finally:
            child.kill()
            child.join()


class Layer(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.detach())

    def forward(self, input, offset, mask):
        return deform_conv2d(input, offset, self.weight, padding=1, mask=mask)


@pytest.mark.parametrize("backend", ["numba", "pytorch", "reference", "auto"])
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


@pytest.mark.parametrize("case", ["float32", "without", "bfloat16", "channels_last"])
def test_opcheck(case):
    from fapn_zoo.layers._deform_ops import deform_conv2d_backward_op, deform_conv2d_op

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


def test_meta_device():
    tensors = [tensor.detach().to("meta") for tensor in make_tensors(SHAPES["plain"], torch.float32)]
    with deform_conv_backend("auto"):
        output = deform_conv2d(*tensors[:4], padding=1, mask=tensors[4])
    assert output.device.type == "meta" and output.shape == (2, 8, 9, 11)


@pytest.mark.skipif(torch.cuda.is_available(), reason="describes a machine without a GPU")
def test_backend_selection():
    assert available_backends() == ["auto", "reference", "pytorch", "numba"]
    assert active_backend() == "numba"
    with deform_conv_backend("auto"):
        assert active_backend("cpu") == "numba"
        assert active_backend("cuda") == "reference"
        with deform_conv_backend("reference"):
            assert active_backend() == "reference"
        assert active_backend() == "numba"
    with pytest.raises(ValueError, match="'fast'.*pytorch, numba, triton"), deform_conv_backend("fast"):
        pass
    assert active_backend() == "numba"
    for name in ("numba", "pytorch"):
        with deform_conv_backend(name), pytest.raises(ValueError, match=f"'{name}' runs on cpu, not on cuda"):
            active_backend("cuda")


@pytest.mark.parametrize("needs, products", [((), 1), (("input",), 2), (("weight",), 2), (("offset", "weight"), 3)])
def test_products_are_counted_like_a_convolution(needs, products):
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
def test_without_numba(monkeypatch, missing):
    monkeypatch.setattr(_deform_backends, "_numba_works", None)
    if missing:
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    assert available_backends() == ["auto", "reference", "pytorch"]
    shape = SHAPES["many_tiles"]
    expected = run(torchvision.ops.deform_conv2d, make_tensors(shape), shape)
    monkeypatch.setitem(sys.modules, "fapn_zoo.layers._deform_kernels", None)
    with deform_conv_backend("auto"):
        assert active_backend() == "pytorch"
        torch.testing.assert_close(run(deform_conv2d, make_tensors(shape), shape), expected)
    with pytest.raises(ValueError, match="numba"):
        active_backend()


@pytest.mark.parametrize("choice", ["reference", "fast"])
def test_environment_variable(monkeypatch, choice):
    monkeypatch.setenv("FAPN_ZOO_DEFORM_CONV", choice)
    spec = importlib.util.spec_from_file_location("fapn_zoo.layers.another", _deform_backends.__file__)
    another = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(another)
    if choice == "reference":
        assert another.active_backend() == "reference"
    else:
        with pytest.raises(ValueError, match="'fast'.*auto, reference, pytorch, numba"):
            another.active_backend()


def test_kernels_are_imported_at_first_use():
    kernels = {"numba", "fapn_zoo.layers._deform_kernels", "fapn_zoo.layers._deform_triton_kernels"}
    code = f"import fapn_zoo.layers.deform_conv, sys; assert not {kernels} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


OTHER_PROCESSOR = """
import torch
from deform_conv_cases import SHAPES, TOLERANCE, make_tensors, run
import torchvision
from fapn_zoo.layers import _deform_vectors
from fapn_zoo.layers.deform_conv import deform_conv2d, deform_conv_backend

assert not _deform_vectors.has_bfloat16()
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
def test_processors_with_fewer_registers(tmp_path, features):
    if features and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("for x86")
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    numba = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", OTHER_PROCESSOR], env={**os.environ, **numba, "PYTHONPATH": path}, check=True)


def test_kernels_depend_on_all_of_their_code():
    from fapn_zoo.layers import _deform_kernels, _deform_tiles

    folder, seen, names = Path(_deform_kernels.__file__).parent, set(), {"kernels", "plan"}
    while names - seen:
        name = (names - seen).pop()
        seen.add(name)
        names |= set(re.findall(r"from \._deform_(\w+) import", (folder / f"_deform_{name}.py").read_text()))
    # Of the geometry, kernels see the fields.
    assert set(_deform_tiles._SOURCES) == seen | {"geometry"}


DISTRIBUTED = """
import copy
import os
import torch
import torch.distributed as dist
from fapn_zoo.layers.deform_conv import deform_conv2d

class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(16, 16, 3, 3) / 12)
        self.offset = torch.nn.Conv2d(16, 54, 3, padding=1)

    def forward(self, x):
        for _ in range(2):
            offset, mask = self.offset(x).split((36, 18), 1)
            x = deform_conv2d(x, offset, self.weight, padding=1, mask=mask.sigmoid())
        return x

dist.init_process_group("gloo")
torch.manual_seed(0)
alone, images = Twice(), torch.randn(2, 16, 9, 11)
model = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(alone))
alone(images).square().mean().backward()
rank = dist.get_rank()
model(images[rank : rank + 1]).square().mean().backward()
for found, expected in zip(model.module.parameters(), alone.parameters()):
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)
dist.barrier()
# gloo's threads may drop the last finished work after Python began to shut down, which aborts the process
# (pytorch/pytorch#179291; destroy_process_group does not end them): leave without shutting down.
os._exit(0)
"""


def test_used_twice_in_two_processes(tmp_path):
    (tmp_path / "twice.py").write_text(DISTRIBUTED)
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, tmp_path / "twice.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
