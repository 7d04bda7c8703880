"""Faster and Mask R-CNN beside torchvision's with equal weights, and FaPN beside FPN.

    python tests/benchmarks/rcnn.py --size 512 --threads 2 --csv rcnn_speed.csv

ResNet-50 in float32 on a CPU, one square image, by turns; of every contender the best of the rounds, in seconds of the
clock and of the processor, which other programs disturb less. FaPN has backbone and head of the FPN model, and a neck
of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from table import print_row, run_facts, write_csv

import fapn_zoo
from fapn_zoo.runtime.device import device_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toys.torchvision_rcnn import twins  # noqa: E402

CLASSES = 80


def contenders(kind: str, side: int) -> dict[str, Callable[[], Any]]:
    ours, theirs = twins(kind, CLASSES, (side, side))
    fapn = fapn_zoo.create_model(f"{kind}_fapn", backbone="resnet50", num_classes=CLASSES).eval()
    shared = {key: value for key, value in ours.state_dict().items() if not key.startswith("neck.")}
    fapn.load_state_dict(fapn.state_dict() | shared)
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    last = x.contiguous(memory_format=torch.channels_last)
    return {"torchvision": lambda: theirs([x[0]]), "fpn": lambda: ours(last), "fapn": lambda: fapn(last)}


@torch.inference_mode()
def measure(kind: str, side: int, rounds: int) -> list[dict[str, Any]]:
    runs, clocks = contenders(kind, side), (time.perf_counter, time.process_time)
    best = {name: [float("inf")] * 2 for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            before = [clock() for clock in clocks]
            run()
            spent = [clock() - start for clock, start in zip(clocks, before, strict=True)]
            if turn:  # in the first one kernels are loaded, or compiled
                best[name] = [min(pair) for pair in zip(best[name], spent, strict=True)]
    theirs = best["torchvision"]
    return [
        {
            "model": kind, "contender": name, "size": side, "threads": torch.get_num_threads(),
            "seconds": round(wall, 3), "cpu_seconds": round(cpu, 3),
            "times_faster_than_torchvision": round(theirs[0] / wall, 2),
            "times_faster_in_cpu_seconds": round(theirs[1] / cpu, 2),
        }
        for name, (wall, cpu) in best.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["faster_rcnn", "mask_rcnn"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = {"device": device_name(torch.device("cpu")), "torch": torch.__version__, **run_facts()}
    rows = [row | facts for kind in options.models for row in measure(kind, options.size, options.rounds)]
    for row in rows:
        print_row(row)
    if options.csv:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
