"""Makes the folder of the embedded model from a finished training run: half precision, measured, with its card.

    python hub/embed.py RUN --data CAMVID

RUN is the OUT folder of the second stage, recipes/perpixel_fapn_resnet18_slim_camvid_balanced.py, CAMVID the folder
with the test split. The score in the card is that of the half-precision weights, and the same row is appended to
hub/results/semantic.csv.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import fapn_zoo
from fapn_zoo.evaluate import evaluate, render, write_report

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "hub" / "results" / "semantic.csv"
# Settings worth telling in the card; folders of the machine that trained are not.
TOLD = (
    "train_split",
    "crop",
    "scale",
    "rare_classes",
    "rare_prob",
    "class_weights",
    "steps",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "poly_power",
    "warmup_steps",
    "clip_norm",
    "ema",
    "amp",
    "seed",
)
TEXT = """\
A small street-scene model that ships inside the package, so that everything can be tried without a download: a
per-pixel classifier on a FaPN of 64 channels over a narrow ResNet-18, trained from random weights in two stages: 4500
steps of plain cross-entropy, then the steps listed below with rare classes weighted up.

**Data.** CamVid in the 480x360, 11-class form of the SegNet tutorial (train and val splits, 468 images, CC BY-NC 4.0)
together with {scenes} generated scenes of `fapn_zoo.data.scenes`. The score below is on CamVid's test split (233
images, whole image at 480x360, single scale), which training never saw. It is a single run.

**Terms.** CamVid is for personal and research use only, and so are these weights: CC BY-NC 4.0.

**Limits.** Few video sequences of one English town by day, one camera height; classes that are rare there
(bicyclists, pedestrians, fences, signs) are found least well. Not for driving anything."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()

    settings = json.loads((args.run / "settings.json").read_text())
    model = fapn_zoo.create_model(f"local-dir:{args.run / 'model'}", pretrained=True)
    folder = ROOT / "fapn_zoo" / "weights" / "embedded" / model.spec.name
    for parameter in [*model.parameters(), *model.buffers()]:  # the values that half precision keeps
        if parameter.is_floating_point():
            parameter.data = parameter.data.half().float()
    report = evaluate(model, args.data, split="test", weights="embedded", seed=settings["seed"])
    print(render(report))
    write_report(report, csv=RESULTS)
    model.save(
        folder,
        dtype=torch.float16,
        license="cc-by-nc-4.0",
        metrics={"CamVid test mIoU": 100 * report["miou"], "CamVid test pixel accuracy": 100 * report["pixel_acc"]},
        source="recipes/perpixel_fapn_resnet18_slim_camvid.py, then perpixel_fapn_resnet18_slim_camvid_balanced.py",
        training={key: settings[key] for key in TOLD},
        text=TEXT.format(scenes=settings["data"].rpartition("scenes:")[2]),
    )
    print(f"{folder.relative_to(ROOT)}: {(folder / 'model.safetensors').stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
