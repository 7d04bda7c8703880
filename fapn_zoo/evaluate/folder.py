"""Everything about one evaluation in a folder.

report.json, report.txt    the report
images.csv                 the score of every image
classes.png                the score of every class
confusion.csv, .png        pixel counts of (true, predicted) class, where every pixel has one
worst/01_NAME.png ...      prediction, truth and errors of the images with the lowest score, worst first
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from fapn_zoo.data.images import load_image
from fapn_zoo.evaluate.loading import load_batch
from fapn_zoo.evaluate.measure import ImageScore, Measured, Options
from fapn_zoo.evaluate.report import BY_CLASS, MEANS, render, to_json, write
from fapn_zoo.predict.predict import inference
from fapn_zoo.runtime.files import check_writable
from fapn_zoo.tasks.result import save_image
from fapn_zoo.visualize.panels import answer_and_truth
from fapn_zoo.visualize.plots import plot_classes, plot_confusion, require_matplotlib


def check_folder(out: str | os.PathLike, worst: int) -> None:
    """What can be known to go wrong before hours of evaluation: ValueError, or OSError for ``out`` itself."""
    check_writable(Path(out) / "report.json")
    if worst < 0:
        raise ValueError(f"worst={worst}; expected 0 or more images")
    require_matplotlib()


def write_folder(
    out: str | os.PathLike, model: nn.Module, measured: Measured, options: Options, report: dict[str, Any], worst: int
) -> None:
    """Writes the files named above to ``out``; those of an earlier evaluation there are replaced."""
    out, names = Path(out), measured.task.names
    write(out / "report.json", to_json(report))
    write(out / "report.txt", render(report) + "\n")
    rows = [[i.index, i.name, "" if i.score is None else f"{i.score:.6f}"] for i in measured.images]
    write(out / "images.csv", _csv([["index", "image", measured.task.rank_by], *rows]))
    if hasattr(measured.task, "confusion"):
        counts = measured.task.confusion(measured.counts)
        columns = [*names, "other"][: counts.shape[1]]
        lines = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
        write(out / "confusion.csv", _csv([["true / predicted", *columns], *lines]))
        plot_confusion(counts, names, out / "confusion.png")
    score, label = next(iter(BY_CLASS[options.task].items()))
    mean, title = report[next(iter(MEANS[options.task]))], f"{report['model']}\n{report['data']}"
    plot_classes(report["classes"], score, label, mean, title, out / "classes.png")
    for old in (out / "worst").glob("[0-9]*_*.png"):
        old.unlink()
    for place, image in enumerate(worst_images(measured.images, worst), 1):
        (out / "worst").mkdir(exist_ok=True)
        plain_name = re.sub(r"[^\w.-]+", "_", image.name)
        save_image(_picture(model, measured, options, image), out / "worst" / f"{place:02d}_{plain_name}.png")


def worst_images(images: Sequence[ImageScore], count: int) -> list[ImageScore]:
    """The images of lowest score, worst first, the earlier one where two are equal."""
    scored = [image for image in images if image.score is not None]
    return sorted(scored, key=lambda image: (image.score, image.index))[:count]


def _picture(model: nn.Module, measured: Measured, options: Options, image: ImageScore) -> Image.Image:
    """The image is run once more, so that no prediction had to be kept."""
    classes, task = measured.classes, measured.task
    loaded = load_batch(measured.dataset, (image.index,), model.data, measured.views)
    sample = loaded.samples[0]
    size = sample.image.shape[:2]
    with inference(model):
        answer = task.answer(model, loaded.images, [size], measured.views, options.amp, options.batch_size)[0]
    found, truth = task.maps(answer, sample)
    shown = load_image(sample.image).pixels.permute(1, 2, 0).numpy().round().astype(np.uint8)
    title = f"{image.name}: {MEANS[options.task][task.rank_by]} {image.score:.1%}"
    return answer_and_truth(shown, found, truth, measured.dataset.labels, classes.ignore_index, title)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
