"""Launchers that start another number of processes than was asked for."""

from __future__ import annotations

import pytest

from fapn_zoo.runtime import processes

pytestmark = pytest.mark.unit
LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environment, warned",
    [
        (LAUNCHED, True),  # accelerate launch --cpu --num_processes 2
        ({**LAUNCHED, "ACCELERATE_USE_CPU": "False"}, True),  # the same where there is no GPU
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}, False),  # --num_processes 1
        ({"MASTER_PORT": "29500"}, False),  # a cluster's
        ({**LAUNCHED, "RANK": "0"}, False),  # accelerate launch --multi_gpu
        ({}, False),
    ],
)
def test_one_process_instead_of_several_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, environment: dict[str, str], warned: bool
) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.warn_of_one_process.cache_clear()
    if "RANK" not in environment:
        assert processes.processes() == processes.Processes(0, 1)
    processes.warn_of_one_process()
    processes.warn_of_one_process.cache_clear()
    words = "accelerate launch starts one process on the CPU, whatever --num_processes; for two: "
    command = "ACCELERATE_USE_CPU=1 torchrun --nproc_per_node=2 -m fapn_zoo.cli ..."
    assert [record.getMessage() for record in caplog.records] == warned * [words + command]
