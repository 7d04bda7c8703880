"""The doors of this room: each runs models, draws what they did, and writes pictures and numbers into a folder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.predict import predict
from fapn_zoo.runtime.files import make_folder, read_json, short_name, write_json, write_whole
from fapn_zoo.runtime.progress import bar
from fapn_zoo.visualize.alignment import arrays, read_alignment, summary, write_levels
from fapn_zoo.visualize.comparison import Comparison, Item, ObjectComparison, check_models, comparison_task
from fapn_zoo.visualize.comparison_pictures import write_sheet
from fapn_zoo.visualize.plots import require_matplotlib


def visualize_alignment(model: nn.Module, image: Any, out: str | Path) -> dict[str, Any]:
    """Writes what a model's neck does to an image: a PNG per level, `alignment.png` with all of them, and numbers.

    Args:
        model, image: see `read_alignment`.
        out: a folder, made if missing.

    Returns:
        What `alignment.json` holds: see `summary`, and "files", the names of all files. `alignment.npz` has the arrays
        behind the pictures, see `arrays`. Every file appears whole or not at all.

    Raises:
        ValueError: matplotlib is not installed, the image would be replaced, or as `read_alignment`.
    """
    require_matplotlib()
    found, out = read_alignment(model, image), Path(out)
    pictures = {f"level{level.index}.png": ([level], 3.6) for level in found.levels}
    pictures["alignment.png"] = found.levels, 2.4
    if isinstance(image, (str, Path)) and Path(image).resolve() in {(out / name).resolve() for name in pictures}:
        raise ValueError(f"the image {image} would be replaced by a picture of that name; use another output folder")
    make_folder(out)
    for name, (levels, side) in pictures.items():
        write_levels(found, levels, side, out / name)
    write_whole(out / "alignment.npz", lambda file: np.savez_compressed(file, **arrays(found)))
    numbers = summary(found) | {"files": [*pictures, "alignment.npz", "alignment.json"]}
    write_json(out / "alignment.json", numbers)
    return numbers


def side_by_side(
    models: Mapping[str, nn.Module],
    items: Iterable[Item],
    out: str | Path,
    *,
    task: str | None = None,
    band: int = 3,
    progress: bool = False,
) -> dict[str, Any]:
    """Writes one picture per image, `NAME.png`, and `compare.json`.

    Args:
        models: two or more, by the names to show, with equal classes.
        items: see `image_items` and `data_items`.
        out: a folder, made if missing. Only pictures of an earlier comparison there are replaced: where NAME.png is
            something else, the picture is NAME_2.png.
        task: what is compared; None is the first model's own.
        band: a pixel is near a boundary if another true class is at most so many rows and columns away.
        progress: a bar on stderr.

    Returns:
        What `compare.json` holds: "models", "task", "band", "images" and "total". An image has "name", "file", "size",
        "agree" (share of pixels on which all models agree; of objects see `ObjectComparison`) and, where there is
        truth, "scores": a dict per model, see `Counts.scores` and `Hits.scores`. The total adds up the pixels or
        objects of all images with truth; its "agree" is weighted by pixels.

    Raises:
        ValueError: matplotlib is not installed, fewer than two models, models with different classes, a band below 1.
            DataError, ImageError: as reading the images and labels does.
    """
    require_matplotlib()
    num_classes, asked = len(check_models(models)), comparison_task(models, task)
    if band < 1:
        raise ValueError(f"band={band}; expected 1 pixel or more")
    out = Path(out)
    earlier = _earlier_files(out)
    rows: list[dict[str, Any]] = []
    totals: list[Any] = []
    for item in bar(progress, iterable=items, unit="image"):
        results = [predict(model, item.image, task=asked.name, amp="no") for model in models.values()]
        if asked.name == "semantic":
            found = Comparison(item.name, list(models), results, item.labels, num_classes, band)
        else:
            found = ObjectComparison(item.name, list(models), results, item.objects)
        file = _free_name(item.name, out, earlier, {row["file"] for row in rows})
        row = {"name": item.name, "file": file, "size": list(results[0].image.shape[:2]), "agree": found.agreement}
        if item.labels is not None or item.objects is not None:
            counts = found.count()
            row["scores"] = dict(zip(models, (one.scores() for one in counts), strict=True))
            totals = [total.merge(one) for total, one in zip(totals, counts, strict=True)] if totals else counts
        make_folder(out)
        write_sheet(found, row, out / file)
        rows.append(row)
    if not rows:
        raise ValueError("no image to compare on")
    report = {"models": list(models), "task": asked.name, "band": band, "images": rows}
    report["total"] = _total(rows, dict(zip(models, totals, strict=False)))
    write_json(out / "compare.json", report)
    return report


def _total(rows: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]) -> dict[str, Any]:
    """The row of all images; the counts of every model are empty where no image has truth."""
    pixels = [math.prod(row["size"]) for row in rows]
    agreed = sum(n * row["agree"] for n, row in zip(pixels, rows, strict=True))
    scores = {"scores": {name: counts.scores() for name, counts in totals.items()}} if totals else {}
    return {"agree": agreed / sum(pixels)} | scores


def _earlier_files(out: Path) -> set[str]:
    """Names of the pictures that an earlier comparison wrote to this folder."""
    try:
        return {row["file"] for row in read_json(out / "compare.json")["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _free_name(name: str, out: Path, earlier: set[str], taken: set[str]) -> str:
    path = Path(name.replace("/", "_"))  # a sample in a subfolder is called "aachen/x"
    stem = short_name(path.stem if path.suffix.lower() in EXTENSIONS else path.name) or "image"
    names = itertools.chain([f"{stem}.png"], (f"{stem}_{number}.png" for number in itertools.count(2)))
    return next(file for file in names if file not in taken and (file in earlier or not (out / file).exists()))
