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
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.evaluate.loading import load_batch
from fapn_zoo.evaluate.measure import ImageScore, Loop, Measured, Options
from fapn_zoo.evaluate.report import render, to_json, write
from fapn_zoo.runtime.files import check_writable
from fapn_zoo.tasks.drawing import save_image
from fapn_zoo.tasks.result import Result, shown_pixels
from fapn_zoo.visualize.plots import plot_classes, plot_confusion, require_matplotlib

PANEL = 1024  # longest side of a picture's panels, in pixels
GAP = 6


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
    out, scorer = Path(out), measured.scorer
    write(out / "report.json", to_json(report))
    write(out / "report.txt", render(report) + "\n")
    rows = [[i.index, i.name, "" if i.score is None else f"{i.score:.6f}"] for i in measured.images]
    write(out / "images.csv", _csv([["index", "image", scorer.rank_by], *rows]))
    counts = scorer.confusion(measured.tally)
    if counts is not None:
        columns = [*scorer.names, "other"][: counts.shape[1]]
        lines = [[name, *row] for name, row in zip(scorer.names, counts.tolist(), strict=True)]
        write(out / "confusion.csv", _csv([["true / predicted", *columns], *lines]))
        plot_confusion(counts, scorer.names, out / "confusion.png")
    plot_classes(report, out / "classes.png")
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
    task, scorer = measured.task, measured.scorer
    shown = load_batch(measured.dataset, (image.index,), model.data, measured.views)
    loop = Loop(model, measured.dataset, task, scorer, measured.views, options, None)
    (((_, sample), answer),) = loop.answers(iter(shown))
    title = f"{image.name}: {task.columns.means[scorer.rank_by]} {image.score:.1%}"
    labels, ignore_index = measured.dataset.labels, measured.classes.ignore_index
    return side_by_side(shown_pixels(sample.image), *scorer.maps(answer, sample), labels, ignore_index, title)


def side_by_side(
    photo: np.ndarray, found: np.ndarray, truth: np.ndarray, labels: LabelMap, ignore_index: int, title: str
) -> Image.Image:
    """Prediction, truth, and where they differ, one beside the other.

    Args:
        photo: (H, W, 3) uint8.
        found, truth: (H, W) ids; without colour where they are no class of ``labels``.
        ignore_index: truth that is not scored, and never an error.
    """
    panels = [_overlay(photo, ids, labels, ignore_index) for ids in (found, truth)]
    grey = np.repeat(photo.mean(2, keepdims=True) * 0.6 + 60, 3, axis=2)
    ignored = truth == ignore_index
    grey[ignored] *= 0.35
    grey[(found != truth) & ~ignored] = (230, 30, 30)
    panels.append(Image.fromarray(grey.astype(np.uint8)))
    for panel in panels:
        panel.thumbnail((PANEL, PANEL))
    width, height = panels[0].size
    font = ImageFont.load_default(14)
    sheet = Image.new("RGB", (3 * width + 2 * GAP, height + 44), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 2), title, fill="black", font=font)
    for n, (panel, name) in enumerate(zip(panels, ("prediction", "truth", "errors"), strict=True)):
        draw.text((n * (width + GAP) + 4, 22), name, fill="black", font=font)
        sheet.paste(panel, (n * (width + GAP), 44))
    return sheet


def _overlay(photo: np.ndarray, ids: np.ndarray, labels: LabelMap, ignore_index: int) -> Image.Image:
    result = Result(
        image=photo, labels=ids, scores=np.zeros(ids.shape, np.float32), segments=[], names=labels.names,
        palette=labels.palette, ignore_index=ignore_index,
    )  # fmt: skip
    return result.overlay(alpha=0.6)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
