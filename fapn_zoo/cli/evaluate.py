"""The verb `eval`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from fapn_zoo.cli.common import MODEL, Verbs, add_device, add_reading, add_verb, load_model, size, speaks


def add(verbs: Verbs) -> None:
    text = "mean IoU, per-class IoU and pixel accuracy on a data set; several models side by side"
    verb = add_verb(verbs, "eval", run, text)
    verb.add_argument("model", nargs="+", help=f"{MODEL}; several: compared with the first")
    verb.add_argument("--data", required=True, help="folder, scenes:N, or several joined with ','")
    verb.add_argument("--split", default="test")
    text = (
        "semantic: mean IoU; panoptic: PQ; instance: AP of masks and boxes; detection: AP of boxes, the last three on "
        "COCO's folders or scenes:N; default: the model's own"
    )
    verb.add_argument("--task", help=text)
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
    text = "JSON: class of the model -> class of the data; or: names"
    verb.add_argument("--map", dest="class_map", metavar="FILE", help=text)
    verb.add_argument("--batch-size", type=int, default=1, help="images of equal size, or windows, run together")
    verb.add_argument("--amp", default="no", help="bf16 or fp16; no: full precision, the same on every processor")
    add_reading(verb)
    verb.add_argument("--limit", type=int, help="only the first so many images")
    verb.add_argument("--seed", type=int, help="of the training run, noted in the row")
    verb.add_argument("--resamples", type=int, default=1000, help="of the bootstrap that compares models (1000)")
    verb.add_argument("--bootstrap-seed", type=int, default=0)
    add_device(verb)


def run(args: argparse.Namespace) -> None:
    from fapn_zoo.evaluate import compare, evaluate, render, render_comparison, write_report
    from fapn_zoo.evaluate.measure import Options
    from fapn_zoo.evaluate.report import check_csv
    from fapn_zoo.runtime.files import check_writable, write_json
    from fapn_zoo.tasks import TASKS

    if args.csv is not None:
        check_csv(args.csv)
    if args.json is not None:
        check_writable(args.json)
    names = {field.name for field in dataclasses.fields(Options)} | {"seed", "resume", "out", "worst"}
    options = {name: value for name, value in vars(args).items() if name in names}
    models = [load_model(name, args.device) for name in args.model]
    try:
        if len(models) == 1:
            report = evaluate(models[0], args.data, weights=args.model[0], **options)
            reports, text = [report], render(report)
        else:
            options |= {"resamples": args.resamples, "bootstrap_seed": args.bootstrap_seed}
            report = compare(models, args.data, args.model, **options)
            reports, text = report["reports"], render_comparison(report)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"go on with --resume {args.resume}" if args.resume else "") from None
    for one in reports:
        if one[TASKS[one["task"]].columns.main] is None:  # a table of nothing would look like a success
            raise ValueError(one["notes"][-1] if one["notes"] else "nothing is scored: no class has a score")
    if not speaks():
        return
    print(text)
    if args.json is not None:
        write_json(args.json, report)
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
