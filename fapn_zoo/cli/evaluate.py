"""The verbs `eval`, `compare`, `visualize` and `benchmark`: how good models are, what they do, and how fast."""

from __future__ import annotations

import argparse
import dataclasses

from fapn_zoo.cli.common import load_model, speaks

# Arguments that `fapn_zoo.benchmark.benchmark` takes under the same names.
BENCHMARK = ("batch", "device", "dtype", "compile", "channels_last", "threads", "rounds", "num_classes", "memory")


def run_eval(args: argparse.Namespace) -> None:
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


def run_visualize(args: argparse.Namespace) -> None:
    from fapn_zoo.visualize import visualize_alignment

    numbers = visualize_alignment(load_model(args.model, args.device), args.image, args.out)
    for name in numbers["files"]:
        print(args.out / name)


def run_compare(args: argparse.Namespace) -> None:
    from fapn_zoo.visualize import comparison_task, data_items, image_items, render, side_by_side

    if bool(args.images) == bool(args.data):
        raise ValueError("name images, or give --data")
    names = [args.a, args.b, *args.also]
    if len(set(names)) < len(names):
        raise ValueError(f"a model is named twice: {', '.join(names)}")
    models = {name: load_model(name, args.device) for name in names}
    first, task = models[args.a], comparison_task(models, args.task)
    if args.data:
        items = data_items(first, args.data, args.split, args.limit, task.needs)
    else:
        items = image_items(first, args.images)
    print(render(side_by_side(models, items, args.out, task=task.name, band=args.band, progress=True)))
    print(f"pictures: {args.out}")


def run_benchmark(args: argparse.Namespace) -> None:
    from fapn_zoo.benchmark import REALTIME, append_csv, benchmark, csv_text, parse_size, render

    if args.realtime == bool(args.models) or (args.realtime and args.size):
        raise ValueError("name models (and sizes), or give --realtime, which has models and sizes of its own")
    sizes = [parse_size(size) for size in args.size or ["512x1024"]]
    jobs = REALTIME if args.realtime else [(model, size) for size in sizes for model in args.models]
    if args.csv is not None:
        csv_text(args.csv)  # a file that cannot take the rows is better known now
    report = benchmark(jobs, progress=True, **{name: getattr(args, name) for name in BENCHMARK})
    print(render(report))
    if args.csv is not None:
        append_csv(report, args.csv)
