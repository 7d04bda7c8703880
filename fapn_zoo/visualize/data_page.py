"""One HTML page of a data set, for the eye: samples with their labels drawn, bars of the classes, sizes of pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from fapn_zoo.data.check_report import CheckReport
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import printable
from fapn_zoo.data.sample import DataError, Sample
from fapn_zoo.runtime.files import write_text
from fapn_zoo.tasks import drawing
from fapn_zoo.tasks.result import shown_pixels
from fapn_zoo.visualize.drawing import objects_laid_over, resized_ids

SAMPLES = 24  # of all splits together
SIDE = 360  # pixels, of the longer side of a sample
PLOT = (420, 260)  # width and height
STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:1240px;padding:0 1em;color:#222}
pre{background:#f4f4f4;padding:1em;overflow:auto}figure{margin:0}figcaption{font-size:13px;color:#555}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:14px}.grid img{width:100%}
table{border-collapse:collapse}td,th{padding:1px 10px 1px 0;text-align:left;font-weight:normal}
.bar{display:inline-block;height:11px;background:#4a7ab5;min-width:1px}.chip{display:inline-block;width:12px;height:12px}
.error{color:#b00020}.note{color:#8a6d00}.good{color:#1b7f3b}h1 small{font-size:60%}
"""


def write_page(report: CheckReport, file: str | Path, samples: int = SAMPLES) -> None:
    """Writes the page, whole and in one file: pictures are inside of it, and there are no scripts.

    Args:
        report: of `check_data`. samples: how many are drawn, spread evenly over every split.
    """
    kind = "error" if not report.ok else "good" if not report.problems else "note"
    title = escape(printable(report.root.name or str(report.root)))
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<style>{STYLE}</style></head><body><h1>{title} <small class="{kind}">{report.verdict()}</small></h1>',
        *_samples(report, samples),
        *_bars(report),
        *_sizes(report),
        f"<h2>All that was found</h2><pre>{escape(report.render(limit=100))}</pre></body></html>\n",
    ]
    write_text(Path(file), "\n".join(parts))


def _samples(report: CheckReport, count: int) -> Iterator[str]:
    for split, data in report.opened.items():
        number = min(len(data), max(1, count // len(report.opened)))
        yield f'<h2>{escape(split)}: {number} of {len(data):,}</h2><div class="grid">'
        for index in np.linspace(0, len(data) - 1, number).round().astype(int).tolist():
            try:
                sample = data.sample(index)
            except DataError as error:
                yield f'<figure class="error">{escape(str(error))}</figure>'
                continue
            stream = io.BytesIO()
            drawn(sample, data.labels).save(stream, "JPEG", quality=85)
            source = base64.b64encode(stream.getvalue()).decode()
            picture = f'<img alt="" src="data:image/jpeg;base64,{source}">'
            yield f"<figure>{picture}<figcaption>{_caption(sample)}</figcaption></figure>"
        yield "</div>"


def _caption(sample: Sample) -> str:
    height, width = sample.size
    objects = "" if sample.objects is None else f", {len(sample.objects.classes)} objects"
    return escape(f"{sample.name}, {width}x{height}{objects}")


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


def _bars(report: CheckReport) -> Iterator[str]:
    if report.labels is None or not report.splits:
        return
    unit = next(iter(report.splits.values())).unit
    shares = {split: counts.pixels / max(int(counts.pixels.sum()), 1) for split, counts in report.splits.items()}
    most = max((float(share.max()) for share in shares.values()), default=0) or 1
    heads = "".join(f"<th>{escape(split)}</th>" for split in shares)
    yield f"<h2>Classes, share of all {unit}s</h2><table><tr><th></th><th></th>{heads}</tr>"
    for i, name in enumerate((*report.labels.names, *["(ignored)"] * (unit == "pixel"))):
        colour = report.labels.palette[i] if i < report.labels.num_classes else (255, 255, 255)
        cells = [
            f'<td><span class="chip" style="background:rgb{tuple(colour)}"></span> {escape(name)}</td><td>{i}</td>'
        ]
        for split, share in shares.items():
            number = f"{share[i]:.2%} in {report.splits[split].images[i]:,}"
            cells.append(f'<td><span class="bar" style="width:{160 * share[i] / most:.0f}px"></span> {number}</td>')
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</table><p>and the number of pictures with the class</p>"


def _sizes(report: CheckReport) -> Iterator[str]:
    """A dot for every size of pictures, the larger the more of them."""
    sizes = report.pictures.sizes
    if not sizes:
        return
    (width, height), most = PLOT, max(sizes.values())
    wide, high = max(w for _, w in sizes), max(h for h, _ in sizes)
    yield f'<h2>Sizes of pictures, in pixels</h2><svg width="{width + 60}" height="{height + 30}" font-size="12">'
    yield f'<path d="M40 5V{height + 5}H{width + 50}" fill="none" stroke="#888"/>'
    yield f'<text x="{width}" y="{height + 22}">{wide} wide</text><text x="44" y="14">{high} high</text>'
    for (h, w), count in sizes.items():
        x, y, r = 40 + width * w / wide, 5 + height * (1 - h / high), 3 + 7 * (count / most) ** 0.5
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="#4a7ab5" fill-opacity=".6">'
        yield f"{dot}<title>{w}x{h}: {count:,}</title></circle>"
    yield "</svg>"
