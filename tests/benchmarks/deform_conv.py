"""Deformable convolution side by side: this package, torchvision's operator, and a plain convolution of the same size.

    python tests/benchmarks/deform_conv.py --memory --csv hub/results/deform_conv.csv

Contenders take turns within each round, and medians over rounds are compared, so that what else the machine does falls
on all of them. torchvision's operator takes no bfloat16 on a CPU: it runs in float32, as under autocast. With --memory,
each contender runs once more in a process of its own and reports by how much one call raised its peak.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from table import print_row, run_facts, write_csv

from fapn_zoo.benchmark.inference import forget_peak, resident_peak
from fapn_zoo.modules.deform_conv.conv import active_backend, deform_conv2d, deform_conv_backend
from fapn_zoo.runtime.device import processor

# batch, channels in and out, height, width, offset groups; all 3x3 with a mask. The first four are the default.
SHAPES = [
    (1, 128, 64, 128, 8),
    (1, 256, 64, 64, 8),
    (1, 256, 128, 128, 8),
    (1, 128, 128, 256, 8),
    (8, 64, 64, 80, 8),
    (8, 64, 64, 80, 4),
    (8, 64, 32, 40, 8),
    (8, 64, 16, 20, 8),
]
FUNCTIONS = {"ours": deform_conv2d, "torchvision": torchvision.ops.deform_conv2d, "conv": torch.conv2d}
CONTENDERS = [(name, "float32") for name in FUNCTIONS] + [(name, "bfloat16") for name in ("ours", "conv")]


def make_call(contender: tuple[str, str], direction: str, shape: tuple[int, ...], seed: int = 0) -> Callable[[], None]:
    """Return a function that runs `contender`, a pair of CONTENDERS, once; `direction` is forward or both."""
    name, dtype = contender[0], getattr(torch, contender[1])
    batch, channels, height, width, groups = shape
    torch.manual_seed(seed)
    sizes = {
        "input": (batch, channels, height, width),
        "offset": (batch, 18 * groups, height, width),
        "weight": (channels, channels, 3, 3),
        "bias": (channels,),
    }
    tensors = {name: torch.randn(size) for name, size in sizes.items()}
    tensors["offset"] *= 2
    tensors["mask"] = torch.rand(batch, 9 * groups, height, width)
    if name == "conv":
        tensors = {name: tensors[name] for name in ("input", "weight", "bias")}
    grad = torch.randn(sizes["input"], dtype=dtype)
    leaves = {key: tensor.to(dtype).requires_grad_(direction == "both") for key, tensor in tensors.items()}

    def call() -> None:
        output = FUNCTIONS[name](**leaves, padding=1)
        if direction == "both":
            torch.autograd.grad(output, list(leaves.values()), grad)

    return call


def measure(shape: tuple[int, ...], direction: str, rounds: int) -> dict[tuple[str, str], float]:
    """Return milliseconds of one call by contender: the median over interleaved rounds."""
    calls = {contender: make_call(contender, direction, shape) for contender in CONTENDERS}
    for call in calls.values():
        call()
    times = {contender: [] for contender in CONTENDERS}
    for _ in range(rounds):
        for contender, call in calls.items():
            start = time.perf_counter()
            call()
            times[contender].append(time.perf_counter() - start)
    return {contender: statistics.median(values) * 1e3 for contender, values in times.items()}


def peak_mib(contender: tuple[str, str], direction: str, shape: tuple[int, ...], threads: int, backend: str) -> float:
    """Return by how many MiB one call raises the peak of a process that has run the contender on a small shape."""
    arguments = [*contender, direction, ",".join(map(str, shape)), str(threads)]
    command = [sys.executable, __file__, "--peak", *arguments]
    environment = {**os.environ, "FAPN_ZOO_DEFORM_CONV": backend}
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def print_peak(name: str, dtype: str, direction: str, shape: tuple[int, ...], threads: int) -> None:
    torch.set_num_threads(int(threads))
    shape = tuple(map(int, shape.split(",")))
    small = (1, *shape[1:2], 8, 8, *shape[4:])
    make_call((name, dtype), direction, small)()
    call = make_call((name, dtype), direction, shape)
    forget_peak()
    before = resident_peak()
    call()
    print((resident_peak() - before) / 2**20)


def rows_of(
    shape: tuple[int, ...], direction: str, threads: int, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Measure one shape and pass: a row per contender. Ratios are to torchvision and conv in float32."""
    torch.set_num_threads(threads)
    ms = measure(shape, direction, options.rounds)
    for contender in CONTENDERS:
        row = {
            "shape": "x".join(map(str, shape)),
            "pass": "forward" if direction == "forward" else "forward+backward",
            "threads": threads,
            "contender": contender[0],
            "dtype": contender[1],
            "ms": round(ms[contender], 2),
            "times_faster_than_torchvision": round(ms["torchvision", "float32"] / ms[contender], 2),
            "times_conv": round(ms[contender] / ms["conv", "float32"], 2),
        }
        if options.memory and threads == max(options.threads):
            row["peak_mib"] = round(peak_mib(contender, direction, shape, threads, options.backend), 1)
        yield row


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """The columns that are the same in all rows."""
    numba = __import__("numba").__version__ if active_backend() == "numba" else "none"
    return {
        "rounds": options.rounds,
        "processor": processor(),
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}, numba {numba}, "
        f"Python {platform.python_version()}, {platform.machine()}",
        **run_facts(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="also write the rows to this file")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", type=int, nargs="+", default=range(4), help="rows of SHAPES, from 0")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--memory", action="store_true", help="also peak memory, at the most threads (Linux)")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(*options.peak)
        return
    rows = []
    with deform_conv_backend(options.backend):
        facts = circumstances(options)
        for threads in options.threads:
            for shape in (SHAPES[index] for index in options.shapes):
                for direction in ("forward", "both"):
                    for row in rows_of(shape, direction, threads, options):
                        print_row(row)
                        rows.append(row)
    if options.csv:
        write_csv(options.csv, rows, facts)


if __name__ == "__main__":
    main()
