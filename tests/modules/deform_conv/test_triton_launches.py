"""Launches of the Triton kernels through Triton's own launcher and compiler, on a GPU that computes nothing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys.deform_conv_cases import Shape, make_tensors

pytest.importorskip("triton", reason="needs triton")
pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a GPU, which is there"),
]

KERNELS = ("forward_kernel", "backward_data_kernel", "backward_weight_kernel", "copy_kernel")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A Hopper GPU of little shared memory; `launched` are the names of kernels and how much of it they use."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from fapn_zoo.modules.deform_conv.cuda import kernels

    machine = SimpleNamespace(launched=[], shared=48 << 10)

    class Launcher:
        def __init__(self, source: object, metadata: Any) -> None:
            self.metadata = metadata

        def __call__(self, *arguments: Any) -> None:
            machine.launched.append((self.metadata.name, self.metadata.shared))

    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": machine.shared, "multiprocessor_count": 132},
        load_binary=lambda name, kernel, shared, device: (1, 2, 100, 0, 1024),
        unload_module=lambda module: None,
    )
    stand_in = SimpleNamespace(
        utils=utils, launcher_cls=Launcher, get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0, get_current_stream=lambda device: 0,
    )  # fmt: skip
    monkeypatch.setattr(driver, "_active", stand_in)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    yield machine
    for name in KERNELS:
        getattr(kernels, name).device_caches.clear()
    gc.collect()  # compiled kernels ask this driver, not the next one, to unload them


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tuner with two configurations of each kernel, of which the first wants more shared memory than there is."""
    from fapn_zoo.modules.deform_conv.cuda import tuning

    large, small = (
        next(c for c in tuning._TABLE["half"]["forward"] if (c.block_n, c.stages) == wanted)
        for wanted in ((256, 2), (64, 1))
    )
    configs = [large, small._replace(block_n=32, programs=8)]
    lists = dict.fromkeys(tuning._INTERPRETED, configs[1:]) | {"forward": configs}
    for name, value in (("_INTERPRETED", lists), ("chosen", {}), ("_untimed", {})):
        monkeypatch.setattr(tuning, name, value)
    return SimpleNamespace(large=large, small=configs[1], untimed=tuning._untimed)


def test_triton_takes_the_launches_and_refuses_what_does_not_fit(gpu: SimpleNamespace, tuning: Any) -> None:
    from fapn_zoo.modules.deform_conv.cuda import launch

    shape = Shape((2, 64, 256, 8, 16), offset_groups=4)
    input, offset, weight, bias, mask = (tensor.detach() for tensor in make_tensors(shape, torch.bfloat16))
    pairs = [list(pair) for pair in shape.arguments.values()]
    output = launch.forward(input, offset, weight, bias, mask, pairs)
    assert [name for name, _ in gpu.launched] == ["copy_kernel", "forward_kernel"]  # to NHWC, then once
    assert list(tuning.untimed.values()) == [tuning.small]
    launch.backward(output, input, offset, weight, mask, pairs, [True] * 5)
    assert {name for name, _ in gpu.launched} == set(KERNELS)
    assert all(shared <= gpu.shared for _, shared in gpu.launched)
    gpu.launched.clear()
    launch.forward(input, offset, weight, bias, mask, pairs)
    assert [name for name, _ in gpu.launched] == ["copy_kernel", "forward_kernel"]
