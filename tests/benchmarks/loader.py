"""Time of training batches from JPEG pictures, against torchvision's transforms v2 with PyTorch's DataLoader.

    python tests/benchmarks/loader.py [--sizes 360x480 1224x1632] [--workers 2] [--rounds 9] [--csv FILE]

The pictures are generated scenes, saved as JPEG of quality 90 with PNG labels. All decode with Pillow and do the same:
scale by 0.5 to 2, cut or pad to the crop, flip, change brightness, contrast, saturation and hue, and stack images
(float32, 0..255) and class ids (int64). torchvision does it once on tensors and once on PIL images before they become
tensors. In every round each contender makes the same number of batches in its turn, the first not counted; medians over
the rounds are compared. Beside the wall clock, which other work on the machine disturbs, stands the processor time of
all processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from table import print_row, run_facts, write_csv
from torchvision import tv_tensors
from torchvision.transforms import v2

from fapn_zoo.data import open_dataset
from fapn_zoo.data.loader import StepBatches, train_batches
from fapn_zoo.data.scenes import CLASSES, generate_scene
from fapn_zoo.data.transforms import TrainTransform
from fapn_zoo.runtime.device import processor
from fapn_zoo.tasks import TASKS
from fapn_zoo.tasks.targets import collate

CROPS = {(360, 480): (360, 480), (1224, 1632): (512, 512)}
BATCH = 8
COLOURS = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.03}
FILL = (123.675, 116.28, 103.53)


def write_pictures(root: Path, count: int, size: tuple[int, int]) -> None:
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True)
    for i in range(count):
        scene = generate_scene(i, size)
        Image.fromarray(scene.image).save(root / f"train/images/{i}.jpg", quality=90)
        Image.fromarray(scene.semantic).save(root / f"train/labels/{i}.png")
    (root / "classes.json").write_text(json.dumps({"names": CLASSES}))


def ours(root: Path, crop: tuple[int, int], workers: int, steps: int) -> Iterator[Any]:
    dataset = open_dataset(root, "train")
    stream = StepBatches(dataset, TrainTransform(crop, (0.5, 2), **COLOURS), BATCH, 0, 0, steps)
    return train_batches(stream, lambda samples: collate(samples, TASKS["semantic"], dataset.labels, 1), workers)


class Plain(torch.utils.data.Dataset):
    """What a user of torchvision writes."""

    def __init__(self, root: Path, size: tuple[int, int], crop: tuple[int, int], pictures: bool) -> None:
        self.images = sorted((root / "train/images").iterdir())
        fill = {tv_tensors.Image: FILL, Image.Image: tuple(map(round, FILL)), tv_tensors.Mask: 255}
        self.transform = v2.Compose(
            [
                *([] if pictures else [v2.ToImage()]),
                v2.ScaleJitter(size, (0.5, 2)),
                v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(**COLOURS),
                *([v2.ToImage()] if pictures else []),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}),
            ]
        )

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> Any:
        image = self.images[index % len(self.images)]
        labels = np.array(Image.open(image.parents[1] / f"labels/{image.stem}.png"))
        return self.transform(Image.open(image).convert("RGB"), tv_tensors.Mask(torch.from_numpy(labels)))


def plain(root: Path, size: tuple[int, int], crop: tuple[int, int], workers: int, pictures: bool) -> Iterator[Any]:
    return iter(
        torch.utils.data.DataLoader(
            Plain(root, size, crop, pictures), BATCH, shuffle=True, num_workers=workers, drop_last=True
        )
    )


def processor_seconds() -> float:
    """Of this process and its living children."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def timed(make: Callable[[], Iterator[Any]], steps: int) -> tuple[float, float]:
    """Wall and processor milliseconds of a picture."""
    batches = make()
    next(batches)
    start, before = time.perf_counter(), processor_seconds()
    for _ in range(steps):
        next(batches)
    wall, spent = time.perf_counter() - start, processor_seconds() - before
    del batches
    return wall * 1e3 / steps / BATCH, spent * 1e3 / steps / BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["360x480", "1224x1632"], help="of the pictures, height x width")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--steps", type=int, default=12, help="batches of 8 that a round counts")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--csv", help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for text in options.sizes:
        size = tuple(map(int, text.split("x")))
        crop = CROPS.get(size, size)
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_pictures(root, options.pictures, size)
            common = (options.workers, options.steps + 8)
            contenders = {
                "ours": lambda: ours(root, crop, *common),  # noqa: B023 - called before the next size
                "torchvision, tensors": lambda: plain(root, size, crop, options.workers, False),  # noqa: B023
                "torchvision, PIL": lambda: plain(root, size, crop, options.workers, True),  # noqa: B023
            }
            times = {name: [] for name in contenders}
            for _ in range(options.rounds):
                for name, make in contenders.items():
                    times[name].append(timed(make, options.steps))
        medians = {
            name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in times.items()
        }
        for name, (wall, spent) in medians.items():
            row = {"size": text, "crop": "x".join(map(str, crop)), "workers": options.workers, "contender": name}
            row |= {"ms": f"{wall:.2f}", "cpu_ms": f"{spent:.2f}", "images_s": f"{1e3 / wall:.1f}"}
            row |= {
                "times_ours": f"{wall / medians['ours'][0]:.2f}",
                "times_ours_cpu": f"{spent / medians['ours'][1]:.2f}",
            }
            rows.append(row | {"rounds": options.rounds})
            print_row(rows[-1])
    if options.csv:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "pillow", "numpy"))
        write_csv(options.csv, rows, {"processor": processor(), "versions": versions, **run_facts()})


if __name__ == "__main__":
    main()
