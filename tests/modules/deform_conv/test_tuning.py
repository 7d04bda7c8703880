"""The race between configurations of the Triton kernels, with a clock of our own in place of a GPU's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from toys.deform_conv_cases import Shape, make_tensors

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.unit


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> tuple[Callable, SimpleNamespace, ModuleType]:
    """`race()` returns what is launched for one call; the slowest kernel is the one with most warps."""
    from fapn_zoo.modules.deform_conv.cuda import tuning as tuning
    from fapn_zoo.modules.deform_conv.geometry import Geometry

    shape = Shape((4, 256, 256, 64, 64), offset_groups=8)
    input, offset, weight, _, _ = make_tensors(shape, torch.bfloat16)
    call = SimpleNamespace(
        geometry=Geometry.of(input, offset, weight, shape.arguments.values()), dtype=torch.bfloat16,
        device=torch.device("cuda", 0), key=("key",), constants={"PRECISION": "ieee"},
    )  # fmt: skip
    log = SimpleNamespace(launched=[], timed=[], resets=0, refused=(), error=None)

    def launch(config: Any) -> Any:
        if config in log.refused:
            raise log.error
        log.launched.append(config)
        return config

    def time(function: Callable) -> float:
        function()
        log.timed.append(log.launched[-1])
        return float(log.launched[-1].warps)

    def reset() -> None:
        log.resets += 1

    for name in ("chosen", "_untimed"):
        monkeypatch.setattr(tuning, name, {})
    monkeypatch.setattr(tuning, "_time", time)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv("FAPN_ZOO_DEFORM_TUNE", raising=False)
    log.configs = tuning.candidates("forward", call.geometry, call.dtype, False, 132)
    assert len({config.warps for config in log.configs}) > 1
    return lambda: tuning.run("forward", call, launch, reset), log, tuning


def test_fastest_wins_and_is_remembered(race: tuple) -> None:
    run, log, tuning = race
    best = run()
    assert log.timed == log.configs and log.resets == 1
    assert best.warps == min(config.warps for config in log.configs)
    launched = len(log.launched)
    assert run() == best and len(log.timed) == len(log.configs) and len(log.launched) == launched + 1
    ((chosen, times),) = tuning.chosen.values()
    assert chosen == best and list(times) == log.configs


def refusal(kind: str) -> tuple[Exception, contextlib.AbstractContextManager]:
    """What Triton raises for a block that is too large, or that it fails to compile; and how that is told."""
    import triton

    error = {
        "resources": triton.OutOfResources(1, 0, "shared memory"),
        "compiler": RuntimeError("PassManager::run failed"),
    }[kind]
    return error, contextlib.nullcontext() if kind == "resources" else pytest.warns(UserWarning, match="PassManager")


@pytest.mark.parametrize("kind", ["resources", "compiler"])
@pytest.mark.parametrize("timed", [True, False])
def test_what_the_device_refuses_is_left_out(
    race: tuple, monkeypatch: pytest.MonkeyPatch, kind: str, timed: bool
) -> None:
    run, log, tuning = race
    if not timed:
        monkeypatch.setenv("FAPN_ZOO_DEFORM_TUNE", "0")
    log.error, warns = refusal(kind)
    log.refused = log.configs[:2]
    with warns:
        assert run() in log.configs[2:]
    assert run() in log.configs[2:]  # without another attempt at the refused ones, so without a warning
    log.refused = log.configs
    tuning.chosen.clear()
    tuning._untimed.clear()
    with refusal(kind)[1], pytest.raises(type(log.error)):
        run()


def test_running_out_of_memory_is_not_the_blocks_fault(race: tuple) -> None:
    run, log, _ = race
    log.error, log.refused = torch.OutOfMemoryError("no memory"), log.configs[:1]
    with pytest.raises(torch.OutOfMemoryError):
        run()


@pytest.mark.parametrize("reason", ["environment", "deterministic", "capturing"])
def test_without_a_race_the_default_is_taken_and_not_remembered(
    race: tuple, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    run, log, tuning = race
    with monkeypatch.context() as patch:
        if reason == "environment":
            patch.setenv("FAPN_ZOO_DEFORM_TUNE", "0")
        elif reason == "deterministic":
            patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        else:
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert run() == run() == log.configs[0]
        assert log.launched == log.configs[:1] * 2
        assert not log.timed and not tuning.chosen
    assert run() != log.configs[0] and log.timed == log.configs


def test_a_race_before_does_not_decide_what_is_deterministic(race: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    run, log, _ = race
    assert run() != log.configs[0]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert run() == log.configs[0]


@pytest.mark.parametrize("setting", ["allow_tf32", "fp32_precision"])
def test_tf32_is_what_pytorch_is_set_to(setting: str) -> None:
    from fapn_zoo.modules.deform_conv.cuda.launch import _tf32

    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, setting):
        pytest.skip("this PyTorch has no such setting")
    image = torch.empty(1)
    before = getattr(matmul, setting)
    assert not _tf32(image)
    try:
        setattr(matmul, setting, True if setting == "allow_tf32" else "tf32")
        assert _tf32(image) and not _tf32(image.bfloat16())
    finally:
        setattr(matmul, setting, before)


def test_gradient_of_the_input_is_not_deterministic() -> None:
    from fapn_zoo.modules.deform_conv.cuda.launch import _alert_not_deterministic

    cuda = torch.device("cuda", 0)
    _alert_not_deterministic(cuda)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        _alert_not_deterministic(torch.device("cpu"))
        with pytest.raises(RuntimeError, match="warn_only"):
            _alert_not_deterministic(cuda)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="no fixed order"):
            _alert_not_deterministic(cuda)
    finally:
        torch.use_deterministic_algorithms(before)
