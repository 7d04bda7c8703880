"""`evaluate`: a model, a data set, one report."""

from __future__ import annotations

import os
import time
from typing import Any

from torch import nn

from fapn_zoo.evaluate.folder import check_folder, write_folder
from fapn_zoo.evaluate.measure import Measured, measure
from fapn_zoo.evaluate.options import Options
from fapn_zoo.runtime.device import device_name
from fapn_zoo.runtime.provenance import circumstances


def evaluate(
    model: nn.Module,
    data: Any,
    split: str = "test",
    task: str = "semantic",
    *,
    seed: int | None = None,
    weights: str = "",
    resume: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    worst: int = 8,
    **options: Any,
) -> dict[str, Any]:
    """Scores a model at the original size of every image.

    Under `accelerate launch` or torchrun every process takes every n-th batch and all get the same report, equal to
    that of one process to the last digit: all counts are integers, and which images share a batch depends on their
    sizes alone.

    Args:
        model: a ZooModel.
        data: a source for `open_dataset` (a folder, scenes:N), or an opened data set.
        split, task, options: how it is evaluated, the attributes of `fapn_zoo.evaluate.options.Options`.
        seed, weights: of the training run and where the weights came from; only noted in the report.
        resume: a folder that keeps what is done (a few images at a time, written whole). If it holds a part of this
            very evaluation, the rest is done; the report is that of an uninterrupted run, with any number of processes.
        out: a folder to write everything to: report, plots (needs matplotlib), scores by image, and the `worst`
            images of lowest score as pictures. See `fapn_zoo.evaluate.folder`.

    Returns:
        The report: plain JSON types; scores are fractions 0..1, undefined ones None. "data" is the data set's name,
        "source" what was opened, "boundary" (where asked for) the means near boundaries.

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
    measured = measure(model, data, chosen, resume)
    report = make_report(model, measured, chosen, time.perf_counter() - started, seed, weights)
    if out is not None and measured.group.main:
        write_folder(out, model, measured, chosen, report, worst)
    measured.group.wait()  # the main process may still be writing
    return report


def make_report(
    model: nn.Module, measured: Measured, options: Options, seconds: float, seed: int | None = None, weights: str = ""
) -> dict[str, Any]:
    """What was measured, of what, and how: plain JSON types."""
    views, classes = measured.views, measured.classes
    report = {"model": model.spec.name, "params": sum(p.numel() for p in model.parameters())}
    report |= {"device": device_name(next(model.parameters()).device)} | circumstances()
    report |= {"weights": weights, "data": measured.dataset.name, "source": measured.source, "split": options.split}
    report |= {"task": options.task, "images": len(measured.images), "amp": options.amp, "seed": seed}
    report |= {"batch_size": options.batch_size, "scales": list(views.scales), "flip": views.flip}
    report |= {"window": list(views.window or ()), "stride": list(views.stride or ())}
    report |= {"class_map": classes.mapping, "unscored": list(classes.unscored), "seconds": round(seconds, 4)}
    return report | measured.scorer.scores(measured.tally)
