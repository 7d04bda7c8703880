"""Deformable convolution: threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from toys.deform_conv_cases import SHAPES, make_tensors, run, threads

from fapn_zoo.modules.deform_conv.conv import deform_conv2d, deform_conv_backend
from fapn_zoo.runtime import workers

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _numba_backend() -> Iterator[None]:
    with deform_conv_backend("numba"):
        yield


@pytest.mark.parametrize("name", ["plain", "many_tiles", "many_tiles_groups", "groups_across"])
def test_threads_agree(name: str) -> None:
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
def test_workers(monkeypatch: pytest.MonkeyPatch, openmp: bool) -> None:
    if not openmp:
        monkeypatch.setattr(workers, "_find_openmp", lambda: None)
    elif workers._find_openmp() is None:
        pytest.skip("PyTorch's threads cannot be had")
    here, others, barrier = threading.get_ident(), set(), threading.Barrier(3)

    def meet(worker: int) -> None:
        # Ends only if three threads are in it at once.
        barrier.wait(timeout=60)
        others.add((worker, threading.get_ident()))
        if worker == 1:
            raise KeyError("from a worker")

    with pytest.raises(KeyError, match="from a worker"):
        workers.run_workers(meet, 3)
    assert {worker for worker, _ in others} == {0, 1, 2}
    found = {thread for _, thread in others}
    assert len(found) == 3 and (here in found) == openmp  # of OpenMP's threads, the caller is one
    shape = SHAPES["many_tiles"]
    tensors = make_tensors(shape)
    with threads(1):
        expected = run(deform_conv2d, tensors, shape)
    with threads(3):
        torch.testing.assert_close(run(deform_conv2d, tensors, shape), expected)


def test_an_interrupt_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def parallel(callback: Callable, *_: Any) -> None:
        # As if the calling thread had been interrupted before its first line.
        other = threading.Thread(target=callback, args=(None,))
        other.start()
        other.join()

    monkeypatch.setattr(workers, "_find_openmp", lambda: parallel)
    done = []
    with pytest.raises(KeyboardInterrupt):
        workers.run_workers(done.append, 2)
    assert done == [0, 1]


def test_threads_that_cannot_start_are_an_error_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    submit, submitted = ThreadPoolExecutor.submit, []

    def submit_once(pool: ThreadPoolExecutor, *args: Any) -> Any:
        if submitted:
            raise RuntimeError("can't start new thread")
        submitted.append(pool)
        return submit(pool, *args)

    monkeypatch.setattr(workers, "_find_openmp", lambda: None)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_once)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        workers.run_workers(int, 2)
    for thread in submitted[0]._threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    monkeypatch.undo()
    monkeypatch.setattr(workers, "_find_openmp", lambda: None)
    done = []
    workers.run_workers(done.append, 2)
    assert sorted(done) == [0, 1]


@pytest.mark.parametrize("count", [1, 2])
def test_inference_mode(count: int) -> None:
    shape = SHAPES["many_tiles"]
    tensors = make_tensors(shape)
    with threads(count), torch.inference_mode():
        copies = [tensor.clone() for tensor in tensors]
        output = deform_conv2d(*copies[:4], padding=1, mask=copies[4])
    expected = torchvision.ops.deform_conv2d(*tensors[:4], padding=1, mask=tensors[4])
    torch.testing.assert_close(output.clone(), expected.detach())


def test_callers_settings_survive() -> None:
    with threads(2):
        run(deform_conv2d, make_tensors(SHAPES["many_tiles"]), SHAPES["many_tiles"])
        assert torch.get_num_threads() == 2
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [2]
    assert torch.is_grad_enabled()


def test_called_from_several_threads_at_once() -> None:
    shape = SHAPES["many_tiles"]
    tensors = make_tensors(shape)
    expected = run(deform_conv2d, tensors, shape)
    results = [None] * 4

    def call(index: int) -> None:
        results[index] = run(deform_conv2d, tensors, shape)

    with threads(2):
        callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    for result in results:
        torch.testing.assert_close(result, expected)


def _forked(queue: Any) -> None:
    shape = SHAPES["many_tiles"]
    queue.put(float(run(deform_conv2d, make_tensors(shape), shape)[0].sum()))
    # PyTorch's threads cannot start after a fork, ours can. Nothing here is large enough for PyTorch to want any.
    torch.set_num_threads(2)
    shape = SHAPES["plain"]
    queue.put(float(run(deform_conv2d, make_tensors(shape), shape)[0].sum()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_works_in_a_forked_process() -> None:
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


DISTRIBUTED = """
import copy
import os
import torch
import torch.distributed as dist
from fapn_zoo.modules.deform_conv.conv import deform_conv2d

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


def test_used_twice_in_two_processes(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(DISTRIBUTED)
    path = os.pathsep.join(filter(None, sys.path))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, tmp_path / "twice.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
