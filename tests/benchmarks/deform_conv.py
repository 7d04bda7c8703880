"""Deformable convolution side by side: this package, torchvision's operator, and a plain convolution of the same size.

    python tests/benchmarks/deform_conv.py --threads 1 2 --csv deform_conv.csv

Contenders take turns within each round, and medians over rounds are compared, so that what else the machine does falls
on all of them. With --memory, each contender runs once more in a process of its own and reports how much its peak rose.
"""

from __future__ import annotations

import argparse
import csv
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torchvision

from fapn_zoo.layers.deform_conv import active_backend, deform_conv2d, deform_conv_backend

# batch, channels in and out, height, width, offset groups; all 3x3 with a mask
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
CONTENDERS = ("ours", "torchvision", "conv")


def make_call(contender, direction, shape, dtype, seed=0):
    """Return a function that runs `contender` once; `direction` is forward or both."""
    batch, channels, height, width, groups = shape
    torch.manual_seed(seed)
    sizes = {
        "input": (batch, channels, height, width),
        "offset": (batch, 18 * groups, height, width),
        "weight": (channels, channels, 3, 3),
        "bias": (channels,),
    }
    tensors = {name: torch.randn(size, dtype=dtype) for name, size in sizes.items()}
    tensors["offset"] *= 2
    tensors["mask"] = torch.rand(batch, 9 * groups, height, width, dtype=dtype)
    if contender == "conv":
        tensors = {name: tensors[name] for name in ("input", "weight", "bias")}
    function = {"conv": torch.conv2d, "ours": deform_conv2d, "torchvision": torchvision.ops.deform_conv2d}[contender]
    grad = torch.randn(sizes["input"], dtype=dtype)
    leaves = [tensor.requires_grad_(direction == "both") for tensor in tensors.values()]

    def call():
        output = function(**tensors, padding=1)
        if direction == "both":
            torch.autograd.grad(output, leaves, grad)

    return call


def measure(shape, direction, dtype, rounds, cpu_time):
    """Return milliseconds of one call by contender: the median over interleaved rounds."""
    clock = time.process_time if cpu_time else time.perf_counter
    calls = {contender: make_call(contender, direction, shape, dtype) for contender in CONTENDERS}
    for call in calls.values():
        call()
    times = {contender: [] for contender in CONTENDERS}
    for _ in range(rounds):
        for contender, call in calls.items():
            start = clock()
            call()
            times[contender].append(clock() - start)
    return {contender: statistics.median(values) * 1e3 for contender, values in times.items()}


def peak_mib(contender, direction, shape, dtype, threads):
    """Return by how many MiB one call raises the peak of a process that has run the contender on a small shape."""
    arguments = [contender, direction, ",".join(map(str, shape)), str(dtype).removeprefix("torch."), str(threads)]
    command = [sys.executable, __file__, "--peak", *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(contender, direction, shape, dtype, threads):
    torch.set_num_threads(int(threads))
    shape, dtype = tuple(map(int, shape.split(","))), getattr(torch, dtype)
    small = (1, *shape[1:2], 8, 8, *shape[4:])
    make_call(contender, direction, small, dtype)()
    call = make_call(contender, direction, shape, dtype)
    # Linux: forget the peak so far, which imports and the compiler set.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    call()
    print(resident_mib("VmHWM") - before)


def resident_mib(name):
    """Resident memory now (VmRSS) or at its peak (VmHWM)."""
    return int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure_row(shape, direction, threads, dtype, options):
    """Measure one row of the table."""
    torch.set_num_threads(threads)
    ms = measure(shape, direction, dtype, options.rounds, options.cpu_time and threads == 1)
    row = {
        "shape": "x".join(map(str, shape)),
        "pass": "forward" if direction == "forward" else "forward+backward",
        "threads": threads,
        "dtype": str(dtype).removeprefix("torch."),
        **{f"{contender}_ms": round(value, 2) for contender, value in ms.items()},
        "ratio_to_torchvision": round(ms["torchvision"] / ms["ours"], 2),
        "ratio_to_conv": round(ms["ours"] / ms["conv"], 2),
    }
    if options.memory:
        for contender in CONTENDERS:
            row[f"{contender}_peak_mib"] = round(peak_mib(contender, direction, shape, dtype, threads), 1)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="also write the rows to this file")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", type=int, nargs="+", default=range(len(SHAPES)), help="rows of SHAPES, from 0")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory (Linux)")
    parser.add_argument("--cpu-time", action="store_true", help="with one thread, take CPU time instead of wall time")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(*options.peak)
        return
    rows = []
    with deform_conv_backend(options.backend):
        numba = __import__("numba").__version__ if active_backend() == "numba" else "none"
        versions = (
            f"torch {torch.__version__}, torchvision {torchvision.__version__}, numba {numba}, {platform.machine()}"
        )
        for threads in options.threads:
            for shape in (SHAPES[index] for index in options.shapes):
                for direction in ("forward", "both"):
                    row = measure_row(shape, direction, threads, getattr(torch, options.dtype), options)
                    rows.append({**row, "versions": versions})
                    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
