"""The verb `fapn-zoo eval`: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_arguments(verb: argparse.ArgumentParser, size: Callable[[str], tuple[int, int]]) -> None:
    """``size`` reads ``512`` or ``512x1024``."""
    verb.add_argument("model", nargs="+", help="name, hf-hub:..., or weights folder; several: compared with the first")
    verb.add_argument("--data", required=True, help="folder, scenes:N, or several joined with ','")
    verb.add_argument("--split", default="test")
    verb.add_argument(
        "--task",
        choices=("semantic", "panoptic", "instance"),
        default="semantic",
        help="mean IoU; PQ; AP of masks and boxes. The last two on COCO's panoptic folders or scenes:N",
    )
    verb.add_argument("--json", type=Path, help="write the report here")
    verb.add_argument("--csv", type=Path, help="append a row here")
    verb.add_argument("--out", type=Path, help="folder for the report, plots, scores by image and the worst images")
    verb.add_argument("--worst", type=int, default=8, metavar="K", help="how many of the worst images to draw (8)")
    verb.add_argument("--resume", type=Path, metavar="DIR", help="keep what is done there, and go on from it")
    verb.add_argument("--boundary", action="store_true", help="also scores near boundaries")
    verb.add_argument("--scales", type=_scales, help="official, or factors and short sides: 0.5,1,1.5 or 512,768")
    verb.add_argument("--flip", action="store_true", help="also mirrored, at every size")
    verb.add_argument("--window", type=size, help="sliding windows of 512 or 512x1024 pixels")
    verb.add_argument("--stride", type=size, help="of the windows; default: two thirds of the window")
    verb.add_argument("--map", metavar="FILE", help="JSON: class of the model -> class of the data; or: names")
    verb.add_argument("--batch-size", type=int, default=1, help="images of equal size, or windows, run together")
    verb.add_argument("--amp", choices=("no", "bf16", "fp16"), default="no")
    verb.add_argument("--limit", type=int, help="only the first so many images")
    verb.add_argument("--seed", type=int, help="of the training run, noted in the row")
    verb.add_argument("--resamples", type=int, default=1000, help="of the bootstrap that compares models (1000)")
    verb.add_argument("--bootstrap-seed", type=int, default=0)
    verb.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")


def run(args: argparse.Namespace, load: Callable[[str, str | None], Any]) -> None:
    """``load`` makes a model of a name and a device."""
    from fapn_zoo.evaluate import compare, evaluate, render, render_comparison, write_report
    from fapn_zoo.evaluate.report import check_csv, to_json, write
    from fapn_zoo.runtime.files import check_writable

    main = os.environ.get("RANK", "0") == "0"  # one voice, however many processes torchrun started
    if args.csv is not None:
        check_csv(args.csv)
    if args.json is not None:
        check_writable(args.json)
    options = {
        "split": args.split,
        "task": args.task,
        "batch_size": args.batch_size,
        "amp": args.amp,
        "limit": args.limit,
        "scales": args.scales,
        "flip": args.flip,
        "window": args.window,
        "stride": args.stride,
        "class_map": args.map,
        "boundary": args.boundary,
        "resume": args.resume,
        "out": args.out,
        "worst": args.worst,
        "seed": args.seed,
        "progress": sys.stderr.isatty(),
    }
    models = [load(name, args.device) for name in args.model]
    try:
        if len(models) == 1:
            report = evaluate(models[0], args.data, weights=args.model[0], **options)
            reports, text = [report], render(report)
        else:
            report = compare(
                models, args.data, args.model, resamples=args.resamples, bootstrap_seed=args.bootstrap_seed, **options
            )
            reports, text = report["reports"], render_comparison(report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with --resume {args.resume}" if args.resume else "") from None
    if not main:
        return
    print(text)
    if args.json is not None:
        write(args.json, to_json(report))
    for one in reports:
        write_report(one, csv=args.csv)


def _scales(text: str) -> str | list[float]:
    if text == "official":
        return text
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; write official, or numbers such as 0.5,1,1.5") from None
    return [int(number) if number.is_integer() else number for number in numbers]
