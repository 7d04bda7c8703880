"""Predictions of several models on the same images, side by side: pictures, and a line of numbers per image."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from torch import nn

from fapn_zoo.data.images import list_images, load_image
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sources import DataError, bad_ids, check_sizes, describe_bad_ids, open_dataset, read_labels
from fapn_zoo.metrics import ConfusionMatrix
from fapn_zoo.predict import predict
from fapn_zoo.runtime.files import make_folder, write_text
from fapn_zoo.runtime.progress import bar
from fapn_zoo.tasks.result import Result, full_names, save_image

SCORES = ("miou", "pixel_acc", "band_miou", "band_acc")


@dataclass(eq=False)
class Item:
    """One image to compare on: anything `load_image` takes; its true class ids (H, W) or None; and a name."""

    image: Any
    labels: np.ndarray | None
    name: str


def compare(
    models: Mapping[str, nn.Module], items: Iterable[Item], out: str | Path, *, band: int = 3, progress: bool = False
) -> dict[str, Any]:
    """Writes one picture per image, ``NAME.png``, and ``compare.json``.

    Args:
        models: two or more by the names to show, with the same classes in the same order.
        items: see `image_items` and `data_items`.
        out: a folder, made if missing.
        band: a pixel is near a boundary if another true class is at most so many rows and columns away.
        progress: a bar on stderr.

    Returns:
        What ``compare.json`` holds: "models", "band", "images" and "total". An image has "name", "file", "size",
        "agree" (share of pixels on which all models agree) and, where there are labels, "scores": a dict per model
        with "miou", "pixel_acc" and, of the pixels near boundaries, "band_miou" and "band_acc"; fractions 0..1, None
        where undefined. The total adds up the pixels of all images with labels.

    Raises:
        ValueError: fewer than two models, models with different classes, a band below 1. DataError, ImageError: as
            reading the images and labels does.
    """
    from fapn_zoo.visualize.comparison_pictures import comparison

    num_classes = len(check_models(models))
    if band < 1:
        raise ValueError(f"band={band}; expected 1 pixel or more")
    out = Path(out)
    rows: list[dict[str, Any]] = []
    totals: list[tuple[ConfusionMatrix, ConfusionMatrix]] | None = None
    for item in bar(progress, iterable=items, unit="image"):
        results = [predict(model, item.image, task="semantic", amp="no") for model in models.values()]
        found = Comparison(item.name, list(models), results, item.labels, band)
        file = _free_name(item.name, {row["file"] for row in rows})
        row = {"name": item.name, "file": file, "size": list(results[0].labels.shape), "agree": found.agreement}
        if item.labels is not None:
            counts = found.count(num_classes)
            row["scores"] = {name: _scores(*pair) for name, pair in zip(models, counts, strict=True)}
            totals = counts if totals is None else [_merged(a, b) for a, b in zip(totals, counts, strict=True)]
        make_folder(out)
        save_image(comparison(found, row), out / file)
        rows.append(row)
    if not rows:
        raise ValueError("no image to compare on")
    total: dict[str, Any] = {"agree": _agreement(rows)}
    if totals is not None:
        total["scores"] = {name: _scores(*pair) for name, pair in zip(models, totals, strict=True)}
    report = {"models": list(models), "band": band, "images": rows, "total": total}
    write_text(out / "compare.json", json.dumps(report, indent=1) + "\n")
    return report


@dataclass(eq=False)
class Comparison:
    """The results of all models on one image, in the order of ``models``, and the true labels or None."""

    name: str
    models: list[str]
    results: list[Result]
    labels: np.ndarray | None
    band: int

    def __post_init__(self) -> None:
        first = self.results[0].labels
        self.differ = np.zeros(first.shape, bool)
        for result in self.results[1:]:
            self.differ |= result.labels != first
        self.agreement = 1 - float(self.differ.mean())
        if self.labels is not None:
            self.valid = self.labels != self.results[0].ignore_index
            self.near = near_boundary(self.labels, self.band, self.results[0].ignore_index)

    def wrong(self, index: int) -> np.ndarray:
        """(H, W) bool: where a model's class is not the true one; never on unlabelled pixels."""
        return self.valid & (self.results[index].labels != self.labels)

    def count(self, num_classes: int) -> list[tuple[ConfusionMatrix, ConfusionMatrix]]:
        """For every model the counts of all pixels and of those near boundaries."""
        tables = []
        for result in self.results:
            whole, band = (ConfusionMatrix(num_classes, result.ignore_index) for _ in range(2))
            whole.update(result.labels, self.labels)
            band.update(result.labels[self.near], self.labels[self.near])
            tables.append((whole, band))
        return tables


def near_boundary(labels: np.ndarray, width: int, ignore_index: int) -> np.ndarray:
    """(H, W) class ids -> bool: another class is at most ``width`` rows and columns away.

    The band of `fapn_zoo.metrics.BoundaryBands`: unlabelled pixels are in no band and of no class.
    """
    ids, valid = labels.astype(np.int32), labels != ignore_index
    window = 2 * width + 1
    highest = ndimage.maximum_filter(np.where(valid, ids, -1), window, mode="nearest")
    lowest = ndimage.minimum_filter(np.where(valid, ids, np.iinfo(np.int32).max), window, mode="nearest")
    return valid & (highest != lowest)


def check_models(models: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """The class names of all models; ValueError where they are not the same."""
    if len(models) < 2:
        raise ValueError("name two models or more to compare")
    first, *others = models
    names = full_names(models[first].data.labels, models[first].num_classes)
    for other in others:
        theirs = full_names(models[other].data.labels, models[other].num_classes)
        if len(theirs) != len(names):
            raise ValueError(f"{first} has {len(names)} classes, {other} has {len(theirs)}: they cannot be compared")
        # a model without names has as many classes; that they are the same ones is taken on trust
        if models[first].data.labels and models[other].data.labels and names != theirs:
            i = next(i for i, (a, b) in enumerate(zip(names, theirs, strict=True)) if a != b)
            raise ValueError(f"class {i} is {names[i]!r} for {first} and {theirs[i]!r} for {other}")
    return names


# Images -------------------------------------------------------------------------------------------------------------


def image_items(model: nn.Module, images: Sequence[str | Path], labels: Sequence[str | Path] = ()) -> Iterator[Item]:
    """Image files, URLs and folders of images, with their labels where given.

    Args:
        model: whose classes the labels are checked against.
        images: in the order of ``labels``.
        labels: nothing; a PNG of class ids per image; or a folder with ``NAME.png`` for every image ``NAME.*``.

    Raises:
        ValueError: another number of labels than of images. FileNotFoundError, ImageError, DataError: what is missing,
            cannot be read or does not fit, naming the file.
    """
    paths = [path for image in images for path in (list_images(image) if Path(image).is_dir() else [image])]
    files: list[Path | None] = [Path(file) for file in labels]
    if len(files) == 1 and files[0].is_dir():
        files = [files[0] / f"{Path(path).stem}.png" for path in paths]
    if files and len(files) != len(paths):
        raise ValueError(f"{len(files)} label files for {len(paths)} images; give one each, or a folder of them")
    return (_item(model, path, file) for path, file in zip(paths, files or [None] * len(paths), strict=True))


def _item(model: nn.Module, path: str | Path, file: Path | None) -> Item:
    loaded = load_image(path, len(model.data.mean))
    if file is None:
        return Item(path, None, loaded.name)
    if not file.is_file():
        raise FileNotFoundError(f"no label file {file}")
    labels = read_labels(file)
    check_sizes(loaded.pixels.permute(1, 2, 0).numpy(), labels, Path(path), file)
    table = LabelMap(full_names(model.data.labels, model.num_classes), (), model.data.ignore_index)
    if found := bad_ids(labels, table):
        raise DataError(f"{file}: {describe_bad_ids(found, table)}")
    return Item(path, labels, loaded.name)


def data_items(model: nn.Module, source: str | Path, split: str = "test", limit: int | None = None) -> Iterator[Item]:
    """The images and labels of a data set, see `fapn_zoo.data.sources.open_dataset`; the first ``limit`` of them.

    Raises:
        ValueError: the data set's classes are not the model's. FileNotFoundError, DataError: as opening it does.
    """
    dataset = open_dataset(source, split)
    ours, theirs = tuple(model.data.labels), tuple(dataset.labels.names)
    if model.num_classes != len(theirs) or (ours and ours != theirs):
        different = [f"{a!r} / {b!r}" for a, b in zip(ours, theirs, strict=False) if a != b]
        shown = f"; names that differ: {', '.join(different[:5])}" if different else ""
        raise ValueError(f"the models have {model.num_classes} classes, {dataset.name} has {len(theirs)}{shown}")
    count = len(dataset) if limit is None else min(len(dataset), limit)
    return (_sample(dataset, index, model.data.ignore_index) for index in range(count))


def _sample(dataset: Any, index: int, ignore_index: int) -> Item:
    """A sample whose unlabelled pixels have the model's value for them."""
    sample = dataset.sample(index)
    labels = sample.labels
    if dataset.labels.ignore_index != ignore_index:
        labels = np.where(labels == dataset.labels.ignore_index, ignore_index, labels.astype(np.int32))
    return Item(sample.image, labels, sample.name)


# Numbers ------------------------------------------------------------------------------------------------------------


def _scores(whole: ConfusionMatrix, band: ConfusionMatrix) -> dict[str, float | None]:
    everywhere, near = whole.compute(), band.compute()
    values = (everywhere["miou"], everywhere["pixel_acc"], near["miou"], near["pixel_acc"])
    return {name: None if math.isnan(value) else value for name, value in zip(SCORES, values, strict=True)}


def _agreement(rows: list[dict[str, Any]]) -> float:
    pixels = [math.prod(row["size"]) for row in rows]
    return sum(n * row["agree"] for n, row in zip(pixels, rows, strict=True)) / sum(pixels)


def _merged(one: tuple[ConfusionMatrix, ...], other: tuple[ConfusionMatrix, ...]) -> tuple[ConfusionMatrix, ...]:
    return tuple(a.merge(b) for a, b in zip(one, other, strict=True))


def _free_name(name: str, taken: set[str]) -> str:
    stem, file, number = Path(name).stem or "image", f"{Path(name).stem or 'image'}.png", 1
    while file in taken:
        number += 1
        file = f"{stem}_{number}.png"
    return file


def render(report: Mapping[str, Any]) -> str:
    """The report of `compare` as text: a line per image, and one for all; scores in percent."""
    letters = [chr(ord("A") + i) for i in range(len(report["models"]))]
    lines = [f"{letter} = {name}" for letter, name in zip(letters, report["models"], strict=True)]
    rows = [*report["images"], report["total"] | {"name": "all"}]
    scored = any("scores" in row for row in rows)
    head = ["image", "agree"]
    for letter in letters if scored else ():
        head += [f"{letter} mIoU", "acc", "mIoU near", "acc near"]
    table = [head]
    for row in rows:
        cells = [row["name"], percent(row["agree"])]
        for name in report["models"] if "scores" in row else ():
            cells += [percent(row["scores"][name][score]) for score in SCORES]
        table.append(cells)
    widths = [max(len(row[i]) for row in table if i < len(row)) for i in range(len(head))]
    for row in table:
        numbers = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=False)]
        lines.append("  ".join([f"{row[0]:<{widths[0]}}", *numbers]))
    if scored:
        lines.append(f"near: at most {report['band']} rows and columns from another true class")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def with_labels(result: Result, labels: np.ndarray) -> Result:
    """The result with other class ids, for a picture of the truth."""
    return dataclasses.replace(result, labels=labels)
