"""Makes the folder of an embedded model from a finished training run: half precision, measured, with its card.

    python hub/embed.py NAME RUN --data DATA

NAME is a model of hub/embedded.json, which says what its card tells, RUN the OUT folder of its training, DATA what it
is scored on: docs/embedded-model.md has the commands. The score in the card is that of the half-precision weights, and
the same row is appended to hub/results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

import fapn_zoo
from fapn_zoo.evaluate import evaluate, render, write_report

ROOT = Path(__file__).resolve().parent.parent
TABLE = json.loads((ROOT / "hub" / "embedded.json").read_text(encoding="utf-8"))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=TABLE)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()

    row, settings = TABLE[args.name], json.loads((args.run / "settings.json").read_text())
    model = fapn_zoo.create_model(f"local-dir:{args.run / 'model'}", pretrained=True)
    model.spec = dataclasses.replace(model.spec, name=args.name)
    folder = ROOT / "fapn_zoo" / "weights" / "embedded" / args.name
    for parameter in [*model.parameters(), *model.buffers()]:  # the values that half precision keeps
        if parameter.is_floating_point():
            parameter.data = parameter.data.half().float()
    report = evaluate(model, args.data, split=row["split"], weights="embedded", seed=settings["seed"])
    print(render(report))
    write_report(report, csv=ROOT / "hub" / "results" / row["results"])
    model.save(
        folder,
        dtype=torch.float16,
        license=row["license"],
        metrics={name: 100 * report[key] for name, key in row["metrics"].items()},
        source=row["source"],
        training={key: settings[key] for key in TOLD if settings.get(key) not in ("", (), [])},
        text="\n".join(row["text"]),
    )
    print(f"{folder.relative_to(ROOT)}: {(folder / 'model.safetensors').stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
