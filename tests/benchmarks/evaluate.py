"""What `evaluate` costs beside the forward passes of the model.

    python tests/benchmarks/evaluate.py --threads 2 --csv evaluate.csv

In every round the same images go through the bare model and through `evaluate` (reading and decoding the files,
normalising, enlarging the logits, choosing classes, counting, the report), one after the other, so that what else the
machine does falls on both; medians over rounds are compared. "inside" splits the time of one and the same `evaluate`:
what is spent outside the model's forward, as a share of the forward. With --cpu-time all times are processor time of
the process (the reading thread's included), which a busy machine disturbs less; it says most with one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from table import print_row, run_facts, write_csv

from fapn_zoo import create_model
from fapn_zoo.data.images import load_image
from fapn_zoo.data.scenes import generate_scene
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.evaluate import evaluate
from fapn_zoo.predict.inputs import network_input
from fapn_zoo.predict.views import Views

COLUMNS = ("model", "size", "threads", "images", "forward_ms", "evaluate_ms", "overhead_percent", "inside_percent")


def write_pictures(root: Path, count: int, size: tuple[int, int], names: tuple[str, ...], suffix: str) -> None:
    """Generated scenes as a user has them: pictures and label PNGs."""
    for kind in ("images", "labels"):
        (root / "test" / kind).mkdir(parents=True)
    for i in range(count):
        scene = generate_scene(i, size)
        Image.fromarray(scene.image).save(root / "test/images" / f"{i}{suffix}")
        Image.fromarray(np.asarray(scene.semantic)).save(root / "test/labels" / f"{i}.png")
    (root / "classes.json").write_text(json.dumps({"names": names}))


class Stopwatch:
    """Adds up the time that a model spends in its forward."""

    def __init__(self, model: torch.nn.Module, clock: Callable[[], float]) -> None:
        self.seconds = self.started = 0.0
        self.clock = clock
        model.register_forward_pre_hook(lambda *_: setattr(self, "started", clock()))
        model.register_forward_hook(self._stop)

    def _stop(self, *_: Any) -> None:
        self.seconds += self.clock() - self.started


def measure(name: str, size: tuple[int, int], threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: medians over the rounds, per image."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = create_model(name).eval()
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.images, size, model.data.labels, options.suffix)
        data = open_dataset(folder, "test")
        pixels = [load_image(data.sample(i).image).pixels for i in range(len(data))]
        shown = [Views().prepare(model.data, one) for one in pixels]
        inputs = [network_input(model.data, one, torch.device("cpu"), torch.float32) for one in shown]
        watch, rows = Stopwatch(model, clock), []
        for _ in range(options.rounds + 1):
            started = clock()
            with torch.no_grad():
                for x in inputs:
                    model(x)
            forward = clock() - started
            watch.seconds, started = 0.0, clock()
            evaluate(model, data, progress=False, boundary=options.boundary)
            whole = clock() - started
            rows.append((forward, whole, whole / forward - 1, whole / watch.seconds - 1))
    forward, whole, overhead, inside = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    values = (
        name,
        f"{size[0]}x{size[1]}",
        threads,
        options.images,
        1e3 * forward / options.images,
        1e3 * whole / options.images,
        100 * overhead,
        100 * inside,
    )
    return {key: round(v, 1) if isinstance(v, float) else v for key, v in zip(COLUMNS, values, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["perpixel_fapn_resnet18_cityscapes"])
    parser.add_argument("--size", default="512x1024")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--suffix", default=".png", choices=[".png", ".jpg"])
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of wall time")
    parser.add_argument("--boundary", action="store_true", help="with the boundary metrics")
    parser.add_argument("--csv", help="also write the rows to this file")
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    rows = []
    for name in options.models:
        for threads in options.threads:
            row = measure(name, (height, width), threads, options)
            rows.append(row | {"versions": f"torch {torch.__version__}, {platform.machine()}"})
            print_row(row)
    if options.csv:
        write_csv(options.csv, rows, run_facts())


if __name__ == "__main__":
    main()
