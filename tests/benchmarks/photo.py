"""Memory of a prediction of 300 objects on a photo of 12 megapixels: its maps, the overlay, and the file.

    python tests/benchmarks/photo.py [--csv hub/results/photo_memory.csv]

A process of its own makes the photo and the masks of random numbers, as a network would give them, and looks at the
memory that was in use at once. The photo counts, imports and the network do not. "legend" has the class shares too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from fapn_zoo.benchmark.inference import forget_peak, resident_peak
from fapn_zoo.data.images import LoadedImage
from fapn_zoo.postprocess.answers import Instances, Segment, SoftMasks
from fapn_zoo.tasks import TASKS
from fapn_zoo.zoo.spec import DataSpec

MIB = 2**20
DATA = DataSpec(labels=("cell", "leaf"), palette=((200, 0, 0), (0, 200, 0)), things=(0, 1))


def draw(height: int, width: int, count: int, path: Path, legend: bool) -> None:
    """Makes a photo and `count` objects in it, and saves the result."""
    g = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=g) * torch.tensor([0.9 * width, 0.9 * height])
    boxes = torch.cat([corners, corners + 20 + torch.rand(count, 2, generator=g) * 0.1 * height], 1)
    masks = SoftMasks(torch.randn(count, 28, 28, generator=g) + 2, boxes, (height, width))
    segments = tuple(Segment(m + 1, m % 2, True, 0.9, 500) for m in range(count))
    image = LoadedImage(torch.randint(0, 255, (3, height, width), dtype=torch.uint8, generator=g), "photo")
    TASKS["instance"].result(Instances(masks, segments, boxes), image, DATA).save(path, legend=legend)


def measure(ending: str, legend: bool) -> float:
    """MiB in use at once in this process, above what was in use before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"photo.{ending}"
        draw(64, 64, 2, path, legend)  # fonts, encoders
        forget_peak()
        before = resident_peak()
        draw(3000, 4000, 300, path, legend)
        return (resident_peak() - before) / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], args.measure[1] == "legend")))
        return
    from table import print_row, run_facts, write_csv

    rows = []
    for ending, manner in ("jpg", "plain"), ("png", "plain"), ("png", "legend"):
        command = [sys.executable, __file__, "--measure", ending, manner]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = {"size": "3000x4000", "objects": 300, "file": ending, "manner": manner}
        rows.append(row | {"peak_mib": round(json.loads(done.stdout))})
        print_row(rows[-1])
    if args.csv:
        write_csv(args.csv, rows, {"torch": torch.__version__} | run_facts())


if __name__ == "__main__":
    main()
