"""Block sizes of the Triton kernels: short lists, cut down by shape, then timed once per kind of call.

The first call of a kind (kernel, dtype, channels, layout, and the number of pixels to a power of two) times the
candidates left. Triton takes a second or two to compile each and keeps it on disk; the choice holds for the process.
FAPN_ZOO_DEFORM_TUNE=0 takes the first candidate that the device can run, untimed. So do calls that cannot time: inside
a CUDA graph's capture, or where `torch.use_deterministic_algorithms` wants the same every run.
"""

from __future__ import annotations

import json
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.errors import TritonError

from fapn_zoo.modules.deform_conv.geometry import Geometry, channel_blocks, power_of_two


class Config(NamedTuple):
    """How a kernel is cut up."""

    tile: tuple[int, int]  # rows and columns of output pixels
    block_n: int  # output channels
    channels: int  # at most so many input channels per product
    warps: int
    stages: int = 1
    registers: int | None = None  # at most so many per thread, so that two programs share a multiprocessor
    prefetch: bool = False  # forward only: read offsets a step before the corners they lead to
    programs: int = 0  # weight gradient only: at least so many programs, by splitting the sum over pixels

    @property
    def cache(self) -> str:
        """Pipelined reads are asynchronous copies, which pass by the L1 cache unless told otherwise."""
        return ".ca" if self.stages > 1 else ""


# From large blocks to small ones; the first that fills the device is taken where nothing is timed.
_TABLE = {
    kind: {name: [Config(**row | {"tile": tuple(row["tile"])}) for row in rows] for name, rows in table.items()}
    for kind, table in json.loads(Path(__file__).with_name("configs.json").read_text(encoding="utf-8")).items()
}
# Small blocks, so that small tests have several of each kind.
_INTERPRETED = {name: [Config((16, 16), 16, 16, 1, programs=2)] for name in _TABLE["half"]}
# The configurations timed so far: (kernel, ...) -> (best, {configuration: milliseconds}).
chosen = {}
_untimed = {}


def candidates(kernel: str, geometry: Geometry, dtype: torch.dtype, tf32: bool, processors: int) -> list[Config]:
    """Configurations for a call on a device of `processors` multiprocessors (0: the interpreter), the default first."""
    if not processors:
        return _INTERPRETED[kernel]
    lists = _TABLE["half" if dtype != torch.float32 else "tf32" if tf32 else "float32"]
    out = geometry.out_channels // geometry.groups
    fitting = []
    for config in lists[kernel]:
        config = config._replace(
            block_n=min(config.block_n, max(16, power_of_two(out))),
            channels=channel_blocks(geometry.channels, geometry.groups, geometry.offset_groups, config.channels).size,
            programs=4 * processors if kernel == "backward_weight" else 0,
        )
        if config not in fitting:
            fitting.append(config)
    # A few large blocks leave most of the device idle.
    filling = [config for config in fitting if 2 * _programs(kernel, geometry, config) >= processors]
    return filling or fitting[-1:]


def _programs(kernel: str, geometry: Geometry, config: Config) -> int:
    tiles = -(-geometry.out_height // config.tile[0]) * -(-geometry.out_width // config.tile[1])
    if kernel == "backward_data":
        blocks = channel_blocks(geometry.channels, geometry.groups, geometry.offset_groups, config.channels)
        return geometry.batch * tiles * geometry.offset_groups // blocks.samples
    if kernel == "backward_weight":
        return geometry.batch * tiles
    return geometry.batch * tiles * geometry.groups * -(-geometry.out_channels // geometry.groups // config.block_n)


def run(kernel: str, call: Any, launch: Callable, reset: Callable | None = None, more: tuple[bool, ...] = ()) -> Any:
    """`launch(config)` with the configuration remembered for this kind of call, or else with the fastest of a race.

    `call` is a `_Call` of `launch.py`. `reset` undoes what the launches of a race have written. `more` is a part of the
    key.
    """
    key = (kernel, *call.key, *more)
    if key in chosen and not torch.are_deterministic_algorithms_enabled():
        return launch(chosen[key][0])
    on_gpu = call.device.type == "cuda"
    may_time = on_gpu and _may_time()
    if key in _untimed and not may_time:
        return launch(_untimed[key])
    processors = torch.cuda.get_device_properties(call.device).multi_processor_count if on_gpu else 0
    tf32 = call.constants["PRECISION"] == "tf32"
    configs = candidates(kernel, call.geometry, call.dtype, tf32, processors)
    if len(configs) == 1:
        may_time, chosen[key] = False, (configs[0], {})
    if not may_time:
        _untimed[key], result = next(_attempts(configs, launch))
        return result
    times = {config: _time(lambda config=config: launch(config)) for config, _ in _attempts(configs, launch)}
    if reset is not None:
        reset()
    best = min(times, key=times.get)
    chosen[key] = best, times
    return launch(best)


def _may_time() -> bool:
    switched_off = os.environ.get("FAPN_ZOO_DEFORM_TUNE", "1") == "0" or torch.are_deterministic_algorithms_enabled()
    return not switched_off and not torch.cuda.is_current_stream_capturing()


def _attempts(configs: Sequence[Config], launch: Callable[[Config], Any]) -> Iterator[tuple[Config, Any]]:
    """Launch one configuration after the other; yield those that can run here, with what `launch` returned."""
    ran, errors = False, []
    for config in configs:
        try:
            result = launch(config)
        except torch.OutOfMemoryError:
            raise
        except (TritonError, RuntimeError) as error:
            errors.append(error)
            # Less shared memory than the block wants is no surprise.
            if not isinstance(error, triton.OutOfResources):
                warnings.warn(f"Triton cannot run {config}: {error}", stacklevel=2)
        else:
            ran = True
            yield config, result
    if not ran:
        raise errors[0]


def _time(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    # The device sleeps a millisecond while Python queues the launches: they can take longer than the kernels.
    torch.cuda._sleep(2_000_000)
    for start, stop in marks:
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in marks)
