"""All that is to be measured on a GPU, in one command: deformable convolution, whole models, the real-time table.

    PYTHONPATH=. python tests/benchmarks/gpu.py --out hub/results

Needs torch, torchvision, Triton and a CUDA device; pytest for the checks. It

1. compiles all candidates of the kernels in parallel processes (Triton keeps them on disk),
2. times ours (NCHW and channels-last), torchvision's operator and a convolution of the same size: with CUDA events, the
   L2 cache cleared and the launches queued behind a sleeping GPU so that Python's time does not count; contenders take
   turns and medians count. `wall_ms` is what a loop of calls takes, Python included. Outputs and gradients are compared
   with torchvision's in float64: deform_conv_gpu.csv and deform_conv_gpu_tuning.csv,
3. runs the tests marked `gpu`,
4. runs models.py, whole models beside other libraries', as far as these are installed: models_speed_gpu.csv,
5. and `fapn-zoo benchmark --realtime` in float16: realtime_gpu.csv.

A part that fails, or is skipped (`--skip`), takes no other one along, and files are written as soon as there is a row.

The two floors: every tensor read or written once at the copy bandwidth measured first; and the multiply-adds of the
products (one forward, two more backward) at the rate of a large matrix product of the same dtype.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_processes
import torch
import torchvision
from table import print_row, run_facts, write_csv

from fapn_zoo.modules.deform_conv.conv import deform_conv2d, deform_conv_backend
from fapn_zoo.runtime.device import device_name

ROOT = gpu_processes.ROOT
# batch, channels in and out, height, width, offset groups; all 3x3 with a mask
SHAPES = [
    (1, 128, 64, 128, 8),
    (1, 256, 64, 64, 8),
    (1, 256, 128, 128, 8),
    (1, 128, 128, 256, 8),
    (4, 256, 128, 256, 8),
]
DRY_SHAPES = [(1, 16, 4, 5, 2)]
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NAMES = ("output", "input", "offset", "weight", "bias", "mask")
PARTS = ("prepare", "times", "checks", "models", "realtime")
CONTENDERS = ("ours", "ours_nhwc", "torchvision", "conv")


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """float32 products as themselves, or rounded to TF32 (the convolution's too)."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Timer:
    """Times calls on a device; the CPU is there to try this script without a GPU."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device == "cuda"
        # Larger than the L2 cache of any GPU so far.
        self.flush = torch.empty(256 << 20, dtype=torch.int8, device=device) if self.cuda else None

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def once(self, call: Callable[[], Any]) -> Callable[[], float]:
        """Milliseconds of one call on the device; read after `synchronize`."""
        if not self.cuda:
            start = time.perf_counter()
            call()
            stop = time.perf_counter()
            return lambda: (stop - start) * 1e3
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        # About two milliseconds: time enough for Python to queue all kernels of a call.
        torch.cuda._sleep(4_000_000)
        start.record()
        call()
        stop.record()
        return lambda: start.elapsed_time(stop)

    def interleaved(self, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
        """Median milliseconds by name; the calls take turns."""
        times = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(self.once(call))
            self.synchronize()
        return {name: statistics.median(read() for read in values) for name, values in times.items()}

    def wall(self, call: Callable[[], Any], repeats: int = 10) -> float:
        """Milliseconds per call of a loop, launches included."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        self.synchronize()
        return (time.perf_counter() - start) * 1e3 / repeats

    def peak_mib(self, call: Callable[[], Any]) -> float:
        """By how much a call raises the peak of allocated memory."""
        if not self.cuda:
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


@functools.cache
def ceilings(device: str, dtype: str, size: int = 8192) -> tuple[float, float]:
    """Bytes per second of a large copy and operations per second of a large product, measured."""
    timer = Timer(device)
    if device == "cpu":
        size = 64
    with precision(dtype):
        source = torch.empty(size * size * 32, dtype=torch.int8, device=device)
        target = torch.empty_like(source)
        a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
        calls = {"copy": lambda: target.copy_(source), "product": lambda: a @ b}
        for call in calls.values():
            call()
        ms = timer.interleaved(calls, 5)
    return 2 * source.numel() / ms["copy"] * 1e3, 2 * size**3 / ms["product"] * 1e3


def make_tensors(
    shape: tuple[int, ...], dtype: str, device: str, seed: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """input, offset, weight, bias, mask and the output's gradient; offsets are drawn from N(0, 2)."""
    batch, channels, height, width, groups = shape
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device)

    tensors = {
        "input": draw(batch, channels, height, width),
        "offset": 2 * draw(batch, 18 * groups, height, width),
        "weight": draw(channels, channels, 3, 3) / (9 * channels) ** 0.5,
        "bias": draw(channels),
        "mask": draw(batch, 9 * groups, height, width).sigmoid(),
    }
    grad = draw(batch, channels, height, width)
    return {name: value.to(dtype) for name, value in tensors.items()}, grad.to(dtype)


def make_call(
    contender: str, direction: str, tensors: dict[str, torch.Tensor], grad: torch.Tensor
) -> Callable[[], list[torch.Tensor]]:
    """A function that runs `contender` once and returns the output and, for `both`, all gradients."""
    if contender == "ours_nhwc":
        tensors = {
            name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
            for name, value in tensors.items()
        }
        grad = grad.contiguous(memory_format=torch.channels_last)
    if contender == "conv":
        tensors = {
            name: tensors[name].contiguous(memory_format=torch.channels_last) if name != "bias" else tensors[name]
            for name in ("input", "weight", "bias")
        }
    function = {"conv": torch.conv2d, "torchvision": torchvision.ops.deform_conv2d}.get(contender, deform_conv2d)
    leaves = {name: value.detach().requires_grad_(direction == "both") for name, value in tensors.items()}

    def call() -> list[torch.Tensor]:
        output = function(**leaves, padding=1)
        if direction == "forward":
            return [output]
        return [output.detach(), *torch.autograd.grad(output, list(leaves.values()), grad)]

    return call


def floors(shape: tuple[int, ...], direction: str, dtype: str, device: str) -> tuple[float, float]:
    """Milliseconds that the bytes and that the multiply-adds need at least."""
    tensors, grad = make_tensors((1, shape[1], 1, 1, shape[4]), DTYPES[dtype], "cpu")
    batch, channels, height, width, _ = shape
    pixels = batch * height * width
    sizes = {name: value.nbytes * (1 if name in ("weight", "bias") else pixels) for name, value in tensors.items()}
    forward = sum(sizes.values()) + grad.nbytes * pixels
    # Backward reads all tensors and the output's gradient, and writes a gradient of each.
    total = forward if direction == "forward" else forward + 2 * sum(sizes.values()) + grad.nbytes * pixels
    operations = 2 * pixels * 9 * channels * channels * (1 if direction == "forward" else 3)
    bandwidth, rate = ceilings(device, dtype)
    return total / bandwidth * 1e3, operations / rate * 1e3


def errors(values: list[torch.Tensor], exact: list[torch.Tensor]) -> dict[str, float]:
    """Norm of the error over the norm of the value, for the output and each gradient."""
    pairs = zip(NAMES, values, exact, strict=False)
    return {name: float((value.double() - wanted).norm() / wanted.norm()) for name, value, wanted in pairs}


def exact_result(shape: tuple[int, ...], dtype: str, device: str) -> list[torch.Tensor]:
    """torchvision in float64 on the values that `dtype` rounds to."""
    tensors, grad = make_tensors(shape, DTYPES[dtype], device)
    tensors = {name: value.double() for name, value in tensors.items()}
    return make_call("torchvision", "both", tensors, grad.double())()


def attempt(call: Callable[[], Any], trouble: str) -> Any:
    """What `call` returns; None, and a line, where it fails: other things are still to be measured."""
    try:
        return call()
    except Exception as error:  # of Triton, ptxas, PyTorch
        print(f"  {trouble}: {type(error).__name__}: {error}".split("\n")[0], flush=True)
        return None


def measure(shape: tuple[int, ...], direction: str, dtype: str, timer: Timer, rounds: int) -> dict[str, Any]:
    """One shape, pass and dtype: the contenders' times, peaks and errors."""
    tensors, grad = make_tensors(shape, DTYPES[dtype], timer.device)
    row, calls = {}, {}
    exact = None
    if direction == "both":
        exact = attempt(lambda: exact_result(shape, dtype, timer.device), f"no exact result of {dtype}")
    for contender in CONTENDERS:
        call = make_call(contender, direction, tensors, grad)
        values = attempt(call, f"{contender} cannot run {dtype}")
        if values is None:
            continue
        calls[contender] = call
        if exact is not None and contender != "conv":
            found = errors(values, exact)
            row[f"{contender}_error"] = f"{found['output']:.1e}"
            row[f"{contender}_worst_gradient"] = max(
                (f"{v:.1e} {k}" for k, v in found.items() if k != "output"), key=lambda text: float(text.split()[0])
            )
        del values
    del exact
    for call in calls.values():
        call()
    ms = timer.interleaved(calls, rounds)
    row |= {f"{name}_ms": round(value, 4) for name, value in ms.items()}
    row |= {f"{name}_wall_ms": round(timer.wall(calls[name]), 4) for name in calls if name != "conv"}
    row |= {f"{name}_peak_mib": round(timer.peak_mib(calls[name]), 1) for name in calls}
    return row


def compare(block: list[dict[str, Any]], shape: tuple[int, ...], direction: str, timer: Timer) -> None:
    """Adds to the rows of one shape and pass the floors and, where both sides ran, the ratios."""
    best = min((row for row in block if "torchvision_ms" in row), key=lambda row: row["torchvision_ms"], default={})
    for row in block:
        bytes_ms, flops_ms = floors(shape, direction, row["dtype"], timer.device)
        row["bytes_floor_ms"], row["flops_floor_ms"] = round(bytes_ms, 4), round(flops_ms, 4)
        times = [row[name] for name in ("ours_ms", "ours_nhwc_ms") if name in row]
        if not times:
            continue
        ours = min(times)
        row["over_floor"] = round(ours / max(bytes_ms, flops_ms), 2)
        if "torchvision_ms" in row:
            row["ratio_to_torchvision"] = round(row["torchvision_ms"] / ours, 2)
        if best:
            row["torchvision_best"] = f"{best['dtype']} {best['torchvision_ms']}"
            row["ratio_to_torchvision_best"] = round(best["torchvision_ms"] / ours, 2)
        if "conv_ms" in row:
            row["ratio_to_conv"] = round(ours / row["conv_ms"], 2)


def measure_all(options: argparse.Namespace, timer: Timer, facts: dict[str, Any]) -> bool:
    """All rows; ratios to torchvision are to its own time in that dtype and to its best time in any.

    The files are written anew after each shape and pass: what is measured stays, whatever happens next. Returns whether
    nothing failed.
    """
    rows, good = [], True
    for shape, direction in itertools.product(options.shapes, ("forward", "both")):
        block = []
        for dtype in options.dtypes:
            label = "forward" if direction == "forward" else "forward+backward"
            row = {"shape": "x".join(map(str, shape)), "pass": label, "dtype": dtype}
            try:
                with precision(dtype):
                    row |= measure(shape, direction, dtype, timer, options.rounds)
                good = good and "ours_ms" in row and "ours_nhwc_ms" in row
                block.append(row)
            except Exception:
                traceback.print_exc()
                good = False
        compare(block, shape, direction, timer)
        for row in block:
            print_row(row)
        rows += block
        write_csv(options.out / "deform_conv_gpu.csv", rows, facts)
        write_csv(options.out / "deform_conv_gpu_tuning.csv", tuning_rows(), facts)
    return good


def tuning_rows() -> list[dict[str, Any]]:
    """What the tuner measured in this process."""
    from fapn_zoo.modules.deform_conv.cuda import tuning

    rows = []
    for (kernel, *key), (best, times) in tuning.chosen.items():
        for config, ms in sorted(times.items(), key=lambda item: item[1]):
            rows.append(
                {
                    "kernel": kernel,
                    "ms": round(ms, 4),
                    "chosen": config == best,
                    **config._asdict(),
                    "call": " ".join(map(str, key)),
                }
            )
    return rows


def facts_of(device: str, commit: str) -> dict[str, Any]:
    """Device, versions, and the facts of every benchmark's run."""
    triton = __import__("triton").__version__
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, triton {triton}"
    versions += f", python {platform.python_version()}"
    return {"device": device_name(torch.device(device)), "versions": versions, **run_facts(commit)}


def prepare_one(shape: tuple[int, ...], dtype: str, contender: str) -> None:
    tensors, grad = make_tensors(tuple(map(int, shape.split(","))), DTYPES[dtype], "cuda")
    with precision(dtype):
        make_call(contender, "both", tensors, grad)()


def part(name: str, function: Callable[..., bool], *arguments: Any) -> bool:
    """Run one part; its failure is told and does not end the others. Returns whether it went well."""
    start = time.perf_counter()
    try:
        good = function(*arguments)
    except Exception:
        traceback.print_exc()
        good = False
    print(f"{name}: {'done' if good else 'FAILED'} after {time.perf_counter() - start:.0f} s", flush=True)
    return good


def measure_kernels(options: argparse.Namespace, device: str, facts: dict[str, Any]) -> bool:
    for dtype in options.dtypes:
        bandwidth, rate = ceilings(device, dtype)
        print(f"ceilings {dtype}: copy {bandwidth / 1e12:.2f} TB/s, product {rate / 1e12:.0f} TFLOP/s", flush=True)
    return measure_all(options, Timer(device), facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "hub" / "results", help="folder for the CSV files")
    parser.add_argument("--shapes", type=int, nargs="+", default=range(len(SHAPES)), help="rows of SHAPES, from 0")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=max(1, min(16, os.cpu_count() or 1)), help="processes that compile")
    parser.add_argument("--patience", type=int, default=300, help="seconds after which a process of a part is ended")
    parser.add_argument("--skip", nargs="+", default=[], choices=PARTS)
    parser.add_argument("--commit", help="what to write as the commit where there is no git folder")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU: set TRITON_INTERPRET=1")
    parser.add_argument("--prepare", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.shapes = DRY_SHAPES if options.dry_run else [SHAPES[index] for index in options.shapes]
    device = "cpu" if options.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device; --dry-run tries the script without one")
    with deform_conv_backend("triton"):
        if options.prepare:
            prepare_one(*options.prepare)
            return
        options.out.mkdir(parents=True, exist_ok=True)
        facts = facts_of(device, options.commit)
        print_row(facts)
        parts = {
            "prepare": (gpu_processes.prepare, options),
            "times": (measure_kernels, options, device, facts),
            "checks": (gpu_processes.run_checks, options),
            "models": (gpu_processes.measure_models, options, device, facts["commit"]),
            "realtime": (gpu_processes.measure_realtime, options, device),
        }
        skipped = {*options.skip, *(["prepare", "checks"] if options.dry_run else [])}
        failed = [name for name, work in parts.items() if name not in skipped and not part(name, *work)]
    if failed:
        raise SystemExit(f"error: {', '.join(failed)} failed; see above")


if __name__ == "__main__":
    main()
