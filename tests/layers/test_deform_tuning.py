"""The race between configurations of the Triton kernels, with a clock of our own in place of a GPU's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from deform_conv_cases import Shape, make_tensors

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.unit


@pytest.fixture
def race(monkeypatch):
    """`race()` chooses for one call; the slowest kernel is the one with most warps, unless it is refused."""
    import triton

    from fapn_zoo.layers import _deform_tuning as tuning
    from fapn_zoo.layers._deform_geometry import Geometry

    shape = Shape((4, 256, 256, 64, 64), offset_groups=8)
    input, offset, weight, _, _ = make_tensors(shape, torch.bfloat16)
    call = SimpleNamespace(
        geometry=Geometry.of(input, offset, weight, *shape.arguments.values()), dtype=torch.bfloat16,
        device=torch.device("cuda", 0), key=("key",), constants={"PRECISION": "ieee"},
    )  # fmt: skip
    log = SimpleNamespace(launched=[], timed=[], resets=0, refused=())

    def launch(config):
        if config in log.refused:
            raise triton.OutOfResources(1, 0, "shared memory")
        log.launched.append(config)

    def time(function):
        function()
        log.timed.append(log.launched[-1])
        return float(log.launched[-1].warps)

    def reset():
        log.resets += 1

    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "_time", time)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv("FAPN_ZOO_DEFORM_TUNE", raising=False)
    log.configs = tuning.candidates("forward", call.geometry, call.dtype, False, 132)
    assert len({config.warps for config in log.configs}) > 1
    return lambda: tuning.choose("forward", call, launch, reset), log, tuning


def test_fastest_wins_and_is_remembered(race):
    choose, log, tuning = race
    best = choose()
    assert log.timed == log.configs and log.resets == 1
    assert best.warps == min(config.warps for config in log.configs)
    assert choose() == best and len(log.timed) == len(log.configs)
    ((chosen, times),) = tuning.chosen().values()
    assert chosen == best and list(times) == log.configs


def test_what_the_device_refuses_is_left_out(race):
    import triton

    choose, log, _ = race
    fewest = min(config.warps for config in log.configs)
    log.refused = [config for config in log.configs if config.warps == fewest]
    assert choose().warps > fewest
    log.refused = log.configs
    race[2]._chosen.clear()
    with pytest.raises(triton.OutOfResources):
        choose()


@pytest.mark.parametrize("reason", ["environment", "deterministic", "capturing"])
def test_without_a_race_the_default_is_taken_and_not_remembered(race, monkeypatch, reason):
    choose, log, tuning = race
    if reason == "environment":
        monkeypatch.setenv("FAPN_ZOO_DEFORM_TUNE", "0")
    elif reason == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    else:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose() == log.configs[0]
    assert not log.timed and not tuning.chosen()


def test_gradient_of_the_input_is_not_deterministic():
    from fapn_zoo.layers._deform_triton import _alert_not_deterministic

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
