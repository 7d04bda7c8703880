"""`evaluate`: a model, a data set, one report."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fapn_zoo.evaluate.folder import check_folder, write_folder
from fapn_zoo.evaluate.measure import Measured, Options, measure
from fapn_zoo.runtime.device import device_name
from fapn_zoo.runtime.provenance import circumstances


def evaluate(
    model: nn.Module,
    data: Any,
    split: str = "test",
    task: str = "semantic",
    batch_size: int = 1,
    device: str | torch.device | None = None,
    amp: str = "no",
    limit: int | None = None,
    progress: bool = True,
    seed: int | None = None,
    weights: str = "",
    *,
    scales: str | Sequence[float] | None = None,
    flip: bool = False,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    class_map: Any = None,
    boundary: bool = False,
    threads: int | None = None,
    resume: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    worst: int = 8,
) -> dict[str, Any]:
    """Scores a model at the original size of every image.

    Under `accelerate launch` or torchrun every process takes every n-th batch and all get the same report, equal to
    that of one process to the last digit: all counts are integers, and which images share a batch depends on their
    sizes alone.

    Args:
        model: a ZooModel.
        data: a source for `open_dataset` (a folder, scenes:N), or an opened data set.
        split: which part of a source to open; only noted for an opened one.
        task: a key of `fapn_zoo.tasks.TASKS`: "semantic"; for mask classification models also
            "panoptic" (PQ) and "instance" (AP of masks and of the boxes around them; needs the extra ``coco``).
        batch_size: how many images of equal (resized and padded) size, or how many windows, are run together.
        device: where to run; None = where the model is.
        amp: "bf16" or "fp16" autocast, or "no": full precision. Scores are to be the same on every processor, so there
            is no "auto" here as in `predict`.
        limit: the first so many images only.
        progress: show a progress bar (main process only).
        seed, weights: of the training run and where the weights came from; only noted in the report.
        scales: also other sizes, and the mean of their scores: "official" (the list of the model's paper), factors of
            the test size, or short sides in pixels. See `fapn_zoo.predict.views` for what is averaged: as in the
            official code, logits of per-pixel heads and class scores of MaskFormer, resized to the original image.
        flip: also mirrored, at every size.
        window, stride: sliding windows, (height, width) in pixels of the resized image or one number; the stride is
            two thirds of the window if not given. The scores of all windows over a pixel are averaged.
        class_map: how to score where model and data have other classes: see `fapn_zoo.evaluate.match_classes`.
        boundary: also mIoU in bands around true boundaries, Boundary IoU and boundary F-score.
        threads: that read images, ahead of the model where it leaves a core free; None = one per core, up to 4.
        resume: a folder that keeps what is done (a few images at a time, written whole). If it holds a part of this
            very evaluation, the rest is done; the report is that of an uninterrupted run, with any number of processes.
        out: a folder to write everything to: report, plots (needs matplotlib), scores by image, and the ``worst``
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
    options = Options(
        split=split,
        task=task,
        batch_size=batch_size,
        device=device,
        amp=amp,
        limit=limit,
        progress=progress,
        scales=scales,
        flip=flip,
        window=window,
        stride=stride,
        class_map=class_map,
        boundary=boundary,
        threads=threads,
    )
    if out is not None:
        check_folder(out, worst)
    started = time.perf_counter()
    measured = measure(model, data, options, resume)
    report = make_report(model, measured, options, time.perf_counter() - started, seed, weights)
    if out is not None and measured.group.main:
        write_folder(out, model, measured, options, report, worst)
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
