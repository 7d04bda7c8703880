"""Everything about one evaluation in a folder.

report.json, report.txt    the report
images.csv                 the score of every image
classes.png                the score of every class
confusion.csv, .png        pixel counts of (true, predicted) class, where every pixel has one
worst/01_NAME.png ...      prediction, truth and errors of the images with the lowest score, worst first
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from fapn_zoo.evaluate.loading import load_batch
from fapn_zoo.evaluate.measure import ImageScore, Loop, Measured
from fapn_zoo.evaluate.options import Options
from fapn_zoo.evaluate.report import render, to_json, write
from fapn_zoo.runtime.files import check_writable
from fapn_zoo.runtime.tables import as_csv
from fapn_zoo.tasks.drawing import save_image
from fapn_zoo.tasks.result import shown_pixels
from fapn_zoo.visualize.panels import answer_and_truth
from fapn_zoo.visualize.plots import plot_classes, plot_confusion, require_matplotlib


def check_folder(out: str | os.PathLike, worst: int) -> None:
    """What can be known to go wrong before hours of evaluation: ValueError, or OSError for `out` itself."""
    check_writable(Path(out) / "report.json")
    if worst < 0:
        raise ValueError(f"worst={worst}; expected 0 or more images")
    require_matplotlib()


def write_folder(
    out: str | os.PathLike, model: nn.Module, measured: Measured, options: Options, report: dict[str, Any], worst: int
) -> None:
    """Writes the files named above to `out`; those of an earlier evaluation there are replaced."""
    out, scorer = Path(out), measured.scorer
    write(out / "report.json", to_json(report))
    write(out / "report.txt", render(report) + "\n")
    rows = [[i.index, i.name, "" if i.score is None else f"{i.score:.6f}"] for i in measured.images]
    write(out / "images.csv", as_csv([["index", "image", scorer.rank_by], *rows]))
    counts = scorer.confusion(measured.tally)
    if counts is not None:
        columns = [*scorer.names, "other"][: counts.shape[1]]
        lines = [[name, *row] for name, row in zip(scorer.names, counts.tolist(), strict=True)]
        write(out / "confusion.csv", as_csv([["true / predicted", *columns], *lines]))
        plot_confusion(counts, scorer.names, out / "confusion.png")
    columns = measured.task.columns
    score, label = next(iter(columns.by_class.items()))
    title = f"{report['model']}\n{report['data']}"
    plot_classes(report["classes"], score, label, report[columns.main], title, out / "classes.png")
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
    return answer_and_truth(shown_pixels(sample.image), *scorer.maps(answer, sample), labels, ignore_index, title)
