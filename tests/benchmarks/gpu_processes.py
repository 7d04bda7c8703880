"""The parts of gpu.py that are processes of their own: compiling ahead, the tests, whole models."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import write_csv

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"


def environment(**more: str) -> dict[str, str]:
    """Ours, with this package to be found and the backend that users get."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "FAPN_ZOO_DEFORM_CONV": "auto", **more}


def finish(process: subprocess.Popen, seconds: float) -> bool:
    """Whether a process ends well in time; ends it otherwise."""
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"ended after {seconds} s: {' '.join(map(str, process.args))}", flush=True)
        return False


def start(command: Sequence[Any], **options: Any) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, **options)


def prepare(options: argparse.Namespace) -> bool:
    """Compile every candidate in a process per channels, dtype and contender; the timings they make are thrown away.

    The whole models run too, with the kernels that they need.
    """
    largest = {}
    for shape in options.shapes:
        key = (shape[1], shape[4])
        largest[key] = max(largest.get(key, shape), shape, key=lambda shape: shape[0] * shape[2] * shape[3])
    kinds = itertools.product(largest.values(), options.dtypes, ("ours", "ours_nhwc"))
    tasks = [
        [BENCHMARKS / "gpu.py", "--prepare", ",".join(map(str, shape)), dtype, name] for shape, dtype, name in kinds
    ]
    if "models" not in options.skip:
        tasks += [models_command(group, "cuda", "", 2) for group in groups_of(options)]
    if "realtime" not in options.skip:
        tasks.append(realtime_command("cuda", False))
    begin, running, failed = time.perf_counter(), [], 0
    for task in tasks:
        running.append(start(task, env=environment(OMP_NUM_THREADS="1"), stdout=subprocess.DEVNULL))
        if len(running) >= options.jobs:
            failed += not finish(running.pop(0), options.patience)
    failed += sum(not finish(process, options.patience) for process in running)
    print(f"compiled for {len(tasks)} tasks in {time.perf_counter() - begin:.0f} s, {failed} failed", flush=True)
    return not failed


def run_checks(options: argparse.Namespace) -> bool:
    """The tests marked `gpu`, in parallel processes; returns whether they passed."""
    if importlib.util.find_spec("pytest") is None:
        print("checks: pytest is missing")
        return False
    files = ("modules/deform_conv/test_triton.py", "benchmark/test_benchmark.py", "train/test_gpu.py")
    command = [
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-o",
        "addopts=--import-mode=importlib",
        *(ROOT / "tests" / name for name in files),
    ]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", options.jobs, "--dist", "load"]
    return finish(start(command, env=environment()), options.patience)


def groups_of(options: argparse.Namespace) -> list[str]:
    """The groups of models.py; a dry run takes the smallest models there are."""
    from models import GROUPS

    return ["slim"] if options.dry_run else list(GROUPS)


def models_command(group: str, device: str, commit: str, rounds: int) -> list[Any]:
    return [BENCHMARKS / "models.py", "--groups", group, "--device", device, "--commit", commit, "--rounds", rounds]


def measure_models(options: argparse.Namespace, device: str, commit: str) -> bool:
    """Whole models, a process per group; returns whether all went well."""
    rows, good = [], True
    for group in groups_of(options):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.csv"
            command = [*models_command(group, device, commit, 2 if options.dry_run else 11), "--csv", path]
            good = finish(start(command, env=environment()), options.patience) and good
            if path.exists():
                with open(path, newline="", encoding="utf-8") as file:
                    found = list(csv.DictReader(file))
                rows += [row | {"command": row["command"].removesuffix(f" --csv {path}")} for row in found]
                write_csv(options.out / "models_speed_gpu.csv", rows)
    return good


def realtime_command(device: str, dry_run: bool) -> list[str]:
    job = ["perpixel_fapn_resnet18_slim_camvid", "--size", "64", "--rounds", "2"] if dry_run else ["--realtime"]
    dtype = "fp32" if dry_run else "fp16"
    return ["-m", "fapn_zoo.cli", "benchmark", *job, "--dtype", dtype, "--device", device, "--channels-last"]


def measure_realtime(options: argparse.Namespace, device: str) -> bool:
    """The table of the FaPN talk; returns whether all went well."""
    path = options.out.resolve() / "realtime_gpu.csv"
    path.unlink(missing_ok=True)  # benchmark would add to it
    command = [*realtime_command(device, options.dry_run), "--csv", path]
    return finish(start(command, env=environment()), options.patience)
