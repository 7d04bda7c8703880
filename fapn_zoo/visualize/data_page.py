"""One HTML page of a data set, for the eye: samples with their labels drawn, bars of the classes, sizes of pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fapn_zoo.data.check_report import CheckReport
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import printable
from fapn_zoo.data.sample import DataError, Dataset, Sample
from fapn_zoo.runtime.files import write_text
from fapn_zoo.tasks import drawing
from fapn_zoo.tasks.result import shown_pixels
from fapn_zoo.visualize.drawing import objects_laid_over, resized_ids

SAMPLES = 24  # of all splits together
SIDE = 360  # pixels, of the longer side of a sample


def write_page(report: CheckReport, file: str | Path, samples: int = SAMPLES) -> None:
    """Writes the page, whole and in one file: pictures are inside of it, and there are no scripts.

    Args:
        report: of `check_data`. samples: how many are drawn, spread evenly over every split.
    """
    import jinja2

    template = Path(__file__).with_name("data_page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=True)
    count, sizes = samples // max(len(report.opened), 1), report.pictures.sizes
    facts = {
        "title": printable(report.root.name or str(report.root)),
        "kind": "error" if not report.ok else "good" if not report.problems else "note",
        "verdict": report.verdict(),
        "splits": [
            {"name": split, "total": len(data), "samples": list(_samples(data, max(1, count)))}
            for split, data in report.opened.items()
        ],
        "sizes": sizes,  # (height, width) -> pictures
        "highest": max((h for h, _ in sizes), default=0),
        "widest": max((w for _, w in sizes), default=0),
        "found": report.render(limit=100),
    }
    write_text(Path(file), environment.from_string(template).render(**facts, **_classes(report)) + "\n")


def _samples(data: Dataset, count: int) -> Iterator[dict[str, str]]:
    for index in np.linspace(0, len(data) - 1, min(len(data), count)).round().astype(int).tolist():
        try:
            sample = data.sample(index)
        except DataError as error:
            yield {"error": str(error)}
            continue
        stream = io.BytesIO()
        drawn(sample, data.labels).save(stream, "JPEG", quality=85)
        height, width = sample.size
        objects = "" if sample.objects is None else f", {len(sample.objects.classes)} objects"
        caption = f"{sample.name}, {width}x{height}{objects}"
        yield {"jpeg": base64.b64encode(stream.getvalue()).decode(), "caption": caption}


def drawn(sample: Sample, labels: LabelMap, side: int = SIDE) -> Image.Image:
    """A sample with its objects or its class map laid over it, its longer side `side` pixels."""
    height, width = sample.size
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    image = np.asarray(Image.fromarray(shown_pixels(sample.image)).resize(size, Image.Resampling.BILINEAR))
    if (objects := sample.objects) is None:
        table = np.zeros((max(labels.num_classes, labels.ignore_index) + 1, 3), np.uint8)
        table[: labels.num_classes] = labels.palette
        shown = np.arange(len(table)) < labels.num_classes
        shown[labels.ignore_index] = False
        return drawing.overlay(image, resized_ids(sample.labels, size), table, shown, 0.5, True)
    return objects_laid_over(image, objects, sample.size, labels.names, labels.palette)


def _classes(report: CheckReport) -> dict[str, Any]:
    """Of the classes names and colours; of every split their shares, and in how many pictures they are."""
    if report.labels is None or not report.splits:
        return {}
    unit = next(iter(report.splits.values())).unit
    shares = {split: counts.pixels / max(int(counts.pixels.sum()), 1) for split, counts in report.splits.items()}
    classes = list(zip(report.labels.names, map(tuple, report.labels.palette), strict=True))
    if unit == "pixel":
        classes.append(("(ignored)", (255, 255, 255)))
    pictures = {split: counts.images.tolist() for split, counts in report.splits.items()}
    most = max((float(share.max()) for share in shares.values()), default=0) or 1
    return {"unit": unit, "classes": classes, "shares": shares, "pictures": pictures, "most": most}
