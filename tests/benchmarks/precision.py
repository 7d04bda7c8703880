"""What bfloat16 changes in the answers of `predict`, and in their time.

    python tests/benchmarks/precision.py --data camvid --csv hub/results/precision.csv

Every image is predicted in float32 and in bfloat16 by turns, from the array in memory to the finished `Result`; the
times are medians. Agreement is the share of pixels that get the same class, over all images and on the worst one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from table import print_row, run_facts, write_csv

import fapn_zoo
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.runtime.device import device_name


def measure(name: str, data: str, split: str, limit: int | None) -> dict[str, Any]:
    model = fapn_zoo.create_model(name, pretrained=True)
    dataset = open_dataset(data, split)
    times, shares, pixels = {"no": [], "bf16": []}, [], []
    for amp in times:
        model.predict(dataset.sample(0).image, amp=amp)  # kernels are loaded, or compiled
    for i in range(min(len(dataset), limit or len(dataset))):
        image, labels = dataset.sample(i).image, {}
        for amp, spent in times.items():
            start = time.perf_counter()
            labels[amp] = model.predict(image, amp=amp).labels
            spent.append(1e3 * (time.perf_counter() - start))
        shares.append((labels["no"] == labels["bf16"]).mean())
        pixels.append(labels["no"].size)
    agreement = sum(share * size for share, size in zip(shares, pixels, strict=True)) / sum(pixels)
    ms = {amp: statistics.median(spent) for amp, spent in times.items()}
    return {
        "model": name, "source": data, "part": split, "images": len(shares),
        "agreement_percent": round(100 * agreement, 2), "worst_image_percent": round(100 * min(shares), 2),
        "float32_ms": round(ms["no"], 1), "bfloat16_ms": round(ms["bf16"], 1), "ratio": round(ms["bf16"] / ms["no"], 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="perpixel_fapn_resnet18_slim_camvid")
    parser.add_argument("--data", required=True, help="folder, or scenes:N")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="of images")
    parser.add_argument("--csv", help="also write the row to this file")
    options = parser.parse_args()
    row = measure(options.model, options.data, options.split, options.limit)
    row |= {"device": device_name(torch.device("cpu")), "torch": torch.__version__, **run_facts()}
    print_row(row)
    if options.csv:
        write_csv(options.csv, [row])


if __name__ == "__main__":
    main()
