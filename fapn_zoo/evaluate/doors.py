"""A model, a data set, one report; and models side by side on the same images, each difference with an interval."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fapn_zoo.evaluate.measure import Measured, Options, measure
from fapn_zoo.evaluate.report import check_folder, doubts, manner, write_folder
from fapn_zoo.runtime.device import device_name
from fapn_zoo.runtime.files import write_json, write_text
from fapn_zoo.runtime.provenance import circumstances
from fapn_zoo.runtime.tables import aligned, percent
from fapn_zoo.tasks import TASKS
from fapn_zoo.tasks.protocol import plain

CONFIDENCE = 0.95


def evaluate(
    model: nn.Module,
    data: Any,
    split: str = "test",
    task: str | None = None,
    *,
    seed: int | None = None,
    weights: str = "",
    resume: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    worst: int = 8,
    drawn: int = 0,
    should_stop: Callable[[], bool] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Scores a model at the original size of every image.

    Under `accelerate launch` or torchrun every process takes every n-th batch and all get the same report, equal to
    that of one process to the last digit: all counts are integers, and which images share a batch depends on their
    sizes alone.

    Args:
        model: a ZooModel.
        data: a source for `open_dataset` (a folder, scenes:N), or an opened data set.
        split, task, options: how it is evaluated, the attributes of `fapn_zoo.evaluate.measure.Options`.
        seed, weights: of the training run and where the weights came from; only noted in the report.
        resume: a folder that keeps what is done (a few images at a time, written whole). If it holds a part of this
            very evaluation, the rest is done; the report is that of an uninterrupted run, with any number of processes.
        out: a folder to write everything to: report, plots (needs matplotlib), scores by image, and the `worst`
            images of lowest score as pictures, and so many (`drawn`) of all, always the same. See
            `fapn_zoo.evaluate.report`.
        should_stop: asked between images; once it says True in one process, all raise `Stopped`.

    Returns:
        The report: plain JSON types; scores are fractions 0..1, undefined ones None. "data" is the data set's name,
        "source" what was opened, "boundary" (where asked for) the means near boundaries, "notes" sentences about what
        the scores cannot say: nothing is scored, or one class only.

    Raises:
        ValueError: an argument that makes no sense, an empty data set, class tables that differ between model and data
            (the differences and the map that would fix it are named), a label out of range or truth of another size
            than its image (the image is named), a state of another evaluation, or plots without matplotlib.
        FileNotFoundError: no such data or class map.
    """
    chosen = Options(split=split, task=task, **options)
    if out is not None:
        check_folder(out, worst)
    started = time.perf_counter()
    measured = measure(model, data, chosen, resume, should_stop=should_stop)
    report = make_report(measured, time.perf_counter() - started, seed, weights)
    if out is not None and measured.group.main:
        write_folder(out, measured, report, worst, drawn)
    measured.group.wait()  # the main process may still be writing
    return report


def make_report(measured: Measured, seconds: float, seed: int | None, weights: str) -> dict[str, Any]:
    """What was measured, of what, and how: plain JSON types."""
    job = measured.job
    views, classes, options = job.views, job.classes, job.options
    report = {"model": job.model.spec.name, "params": sum(p.numel() for p in job.model.parameters())}
    report |= {"device": device_name(next(job.model.parameters()).device)} | circumstances()
    report |= {"weights": weights, "data": job.dataset.name, "source": job.source, "split": options.split}
    report |= {"task": job.task.name, "images": len(measured.images), "amp": options.amp, "seed": seed}
    report |= {"batch_size": options.batch_size, "scales": list(views.scales), "flip": views.flip}
    report |= {"window": list(views.window or ()), "stride": list(views.stride or ())}
    report |= {"class_map": classes.mapping, "unscored": list(classes.unscored), "seconds": round(seconds, 4)}
    report |= job.scorer.scores(measured.tally)
    return report | {"notes": [*job.notes, *doubts(report)]}


def compare(
    models: Sequence[nn.Module],
    data: Any,
    names: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    bootstrap_seed: int = 0,
    seed: int | None = None,
    resume: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    worst: int = 8,
    **options: Any,
) -> dict[str, Any]:
    """Evaluates several models on the same images and compares each with the first.

    The interval of a difference is a paired bootstrap over images: in every resample the same images, drawn with
    replacement, count for both models, and the interval holds the middle 95 % of the differences. It says how much
    of a difference hangs on which images are in the data set, nothing of how much a second training would change.

    Args:
        models: at least two; all are scored against the data's classes.
        names: where the weights of each came from; noted in the reports.
        resamples, bootstrap_seed: number of resamples, and the seed of the draws.
        data, seed, resume, out, worst, options: as in `evaluate`, for all models alike; every model has its own folder
            (1_NAME, 2_NAME, ...) in `resume` and `out`, and `out` also gets comparison.json and comparison.txt.

    Returns:
        Plain JSON types: "reports", "resamples", "bootstrap_seed", "confidence" and "differences": for each model but
        the first a dict of "model" (its place, from 0) and "measures": name -> {"first", "value", "difference", "low",
        "high", "classes"}, where "classes" has the same for every class. Undefined values are None.

    Raises:
        ValueError: fewer than two models, a task whose scores are no sums over images, or as `evaluate`.
    """
    if len(models) < 2:
        raise ValueError(f"a comparison needs at least two models, got {len(models)}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    chosen = Options(**options)
    if out is not None:
        check_folder(out, worst)
    names, reports, tables = list(names or [""] * len(models)), [], []
    for place, (model, name) in enumerate(zip(models, names, strict=True), 1):
        own = f"{place}_{re.sub(r'[^A-Za-z0-9.-]+', '_', model.spec.name)}"
        started = time.perf_counter()
        state = None if resume is None else Path(resume) / own
        measured = measure(model, data, chosen, state, compact=True, first=models[0])
        reports.append(make_report(measured, time.perf_counter() - started, seed, name))
        tables.append(np.stack([image.compact for image in measured.images]))
        if out is not None and measured.group.main:
            write_folder(Path(out) / own, measured, reports[-1], worst)
    settings = {"resamples": resamples, "bootstrap_seed": bootstrap_seed, "confidence": CONFIDENCE}
    draws = resample(len(tables[0]), resamples, bootstrap_seed)
    comparison = {"reports": reports, **settings, "differences": _differences(measured, tables, draws)}
    if out is not None and measured.group.main:
        write_json(Path(out) / "comparison.json", comparison)
        write_text(Path(out) / "comparison.txt", render_comparison(comparison) + "\n")
    measured.group.wait()
    return comparison


def _differences(measured: Measured, tables: Sequence[np.ndarray], draws: np.ndarray) -> list[dict[str, Any]]:
    """Of every measure, from counts per image (N, R, K) of every model: values, difference and interval."""
    measures, names = measured.job.scorer.measures, measured.job.scorer.names
    cuts = np.cumsum([kind.height for kind in measures])[:-1]
    sums = [np.split(table.sum(0), cuts, axis=-2) for table in tables]
    resampled = [np.split(bootstrap_sums(table, draws), cuts, axis=-2) for table in tables]
    found = []
    for place in range(1, len(tables)):
        named = {}
        for kind, *rows in zip(measures, sums[0], sums[place], resampled[0], resampled[place], strict=True):
            first, value, *drawn = map(kind.of, rows)
            whole = _interval(_mean(first), _mean(value), _mean(drawn[1]) - _mean(drawn[0]))
            cells = zip(names, first, value, (drawn[1] - drawn[0]).T, strict=True)
            classes = [{"id": i, "name": name} | _interval(*cell) for i, (name, *cell) in enumerate(cells)]
            named[kind.name] = whole | {"classes": classes}
        found.append({"model": place, "measures": named})
    return found


def resample(images: int, resamples: int, seed: int) -> np.ndarray:
    """How often every image is drawn in every resample: (resamples, images) float64 whose rows sum to `images`."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)


def bootstrap_sums(table: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Counts per image (N, R, K) -> their sums in every resample (B, R, K) float64, by one matrix product."""
    return (draws @ table.reshape(len(table), -1).astype(np.float64)).reshape(len(draws), *table.shape[1:])


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without NaN; NaN where there is nothing."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    return np.divide(np.where(known, values, 0).sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def _interval(first: float, value: float, differences: np.ndarray) -> dict[str, float | None]:
    known = differences[~np.isnan(differences)]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(known, [tail, 100 - tail]) if known.size else (np.nan, np.nan)
    found = {"first": first, "value": value, "difference": value - first, "low": low, "high": high}
    return {name: plain(float(number)) for name, number in found.items()}


def render_comparison(comparison: dict[str, Any]) -> str:
    """The comparison as text tables, in percent; a star marks intervals without zero."""
    reports = comparison["reports"]
    first = reports[0]
    lines = [
        f"{first['data']} {first['split']}: {first['images']} images; {comparison['resamples']} resamples, "
        f"{comparison['confidence']:.0%} intervals, * where zero lies outside",
        *filter(None, [manner(first), *first.get("notes", ())]),
    ]
    labels = ["ABCDEFGHIJ"[i] if i < 10 else str(i) for i in range(len(reports))]
    lines += [f"{label}  {r['model']}  {r['weights']}".rstrip() for label, r in zip(labels, reports, strict=True)]
    columns = TASKS[first["task"]].columns
    names = {**columns.means, **columns.near}
    for entry in comparison["differences"]:
        other, measures = labels[entry["model"]], entry["measures"]
        classes = next(iter(measures.values()))["classes"]
        table = [[next(iter(columns.by_class.values())), "A", other, f"{other} - A", "interval", ""]]
        table += [_row(row["name"], row) for row in classes]
        table += [[""], *(_row(names[name], row) for name, row in measures.items())]
        lines += ["", *map(str.rstrip, aligned(table))]
    return "\n".join(lines)


def _row(name: str, row: dict[str, Any]) -> list[str]:
    cells = [name, percent(row["first"]), percent(row["value"])]
    if row["difference"] is None or row["low"] is None:
        return [*cells, "-"]
    star = "*" if row["low"] > 0 or row["high"] < 0 else ""
    return [*cells, f"{100 * row['difference']:+.2f}", f"{100 * row['low']:+.2f} .. {100 * row['high']:+.2f}", star]
