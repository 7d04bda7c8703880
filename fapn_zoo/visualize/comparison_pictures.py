"""The picture of a `Comparison`: predictions beside each other, and what is wrong with them or differs between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fapn_zoo.runtime.tables import percent
from fapn_zoo.tasks import fonts
from fapn_zoo.tasks.drawing import boxed
from fapn_zoo.visualize import drawing
from fapn_zoo.visualize.comparison import Comparison
from fapn_zoo.visualize.object_comparison import ObjectComparison

WIDTHS = (320, 640)  # of a panel; larger images are reduced, smaller ones enlarged
TEXT = 16
WRONG, WRONG_NEAR, UNLABELLED, HIT = (205, 25, 40), (255, 165, 0), (105, 105, 115), (20, 150, 80)
DIFFERENT, ONLY_FIRST, ONLY_SECOND, NEITHER = (190, 30, 170), (30, 110, 220), (20, 150, 80), (60, 20, 30)


def comparison(found: Comparison, row: Mapping[str, Any]) -> Image.Image:
    """One sheet: the image and every model's classes, where the models differ, and the legends.

    Where there are labels, a row with the truth and every model's errors stands between them. `row` has the numbers of
    the image, as `side_by_side` returns them.
    """
    first, size = found.results[0], _panel_size(found.results[0].image.shape[:2])
    rows = [_answers(found, size, [(result.overlay(alpha=0.65), "") for result in found.results])]
    if found.labels is not None:
        truth = dataclasses.replace(first, labels=found.labels).overlay(alpha=0.65)
        errors = [_errors(found, index) for index in range(len(found.models))]
        words = "mIoU {}, acc {}; near boundaries: mIoU {}, acc {}"
        rows.append(_truth(found, size, truth, "", errors, words, row))
    difference, legend = _difference(found)
    words = f"all agree on {percent(found.agreement)} % of the pixels"
    legends = _legends(found, legend, rows[0].width - size[0] - drawing.GAP, size[1])
    rows.append(drawing.beside([_panel(difference, "where they differ", size, words), legends]))
    return _sheet(found.name, rows)


def object_comparison(found: ObjectComparison, row: Mapping[str, Any]) -> Image.Image:
    """One sheet: the image and every model's objects, and where there is truth, what is missed and wrong."""
    first, size = found.results[0], _panel_size(found.results[0].image.shape[:2])
    rows = [_answers(found, size, [(one.overlay(), f"{len(one.segments)} objects") for one in found.results])]
    if found.truth is not None:
        truth = drawing.objects_laid_over(first.image, found.truth, first.image.shape[:2], first.names, first.palette)
        errors = [_object_errors(found, index) for index in range(len(found.models))]
        words, count = "F1 {}: {} hit, {} missed, {} wrong", f"{len(found.true.classes)} objects"
        rows.append(_truth(found, size, truth, count, errors, words, row))
        rows.append(_swatches([("hit", HIT), ("missed", WRONG), ("found where there is none", WRONG_NEAR)]))
    return _sheet(found.name, rows)


def _answers(
    found: Comparison | ObjectComparison, size: tuple[int, int], pictures: Sequence[tuple[Image.Image, str]]
) -> Image.Image:
    """The image, and beside it every model's picture with a line of words."""
    panels = [_panel(found.results[0].image, "image", size)]
    for index, (name, (picture, words)) in enumerate(zip(found.models, pictures, strict=True)):
        panels.append(_panel(picture, f"{_letter(index)}  {name}", size, words))
    return drawing.beside(panels)


def _truth(
    found: Comparison | ObjectComparison,
    size: tuple[int, int],
    truth: Image.Image,
    detail: str,
    errors: Sequence[np.ndarray],
    words: str,
    row: Mapping[str, Any],
) -> Image.Image:
    """The truth, and beside it every model's errors with its scores in `words`."""
    panels = [_panel(truth, "truth", size, detail)]
    for index, (name, picture) in enumerate(zip(found.models, errors, strict=True)):
        scores = (str(score) if isinstance(score, int) else percent(score) for score in row["scores"][name].values())
        panels.append(_panel(picture, f"errors of {_letter(index)}", size, words.format(*scores)))
    return drawing.beside(panels)


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _sheet(name: str, rows: Sequence[Image.Image]) -> Image.Image:
    title = drawing.text_block([name], rows[0].width, TEXT + 3)
    return drawing.framed(drawing.stacked([title, *rows]))


def _object_errors(found: ObjectComparison, index: int) -> np.ndarray:
    hit, false = found.hit[index], found.false[index]
    boxes = np.concatenate([found.true.boxes[~hit], found.found[index].boxes[false], found.true.boxes[hit]])
    colours = [WRONG] * int((~hit).sum()) + [WRONG_NEAR] * int(false.sum()) + [HIT] * int(hit.sum())
    return np.asarray(boxed(_pale(found.results[0].image), boxes, [""] * len(boxes), colours))


def _panel_size(size: tuple[int, int]) -> tuple[int, int]:
    width = min(max(size[1], WIDTHS[0]), WIDTHS[1])
    return width, max(round(width * size[0] / size[1]), 1)


def _panel(pixels: np.ndarray | Image.Image, caption: str, size: tuple[int, int], detail: str = "") -> Image.Image:
    return drawing.captioned(drawing.enlarged(np.asarray(pixels), size), caption, TEXT, detail)


def _pale(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 in light greys, on which colours stand out."""
    grey = image.astype(np.float32).mean(2, keepdims=True)
    return np.repeat((165 + grey * (85 / 255)).astype(np.uint8), 3, 2)


def _errors(found: Comparison, index: int) -> np.ndarray:
    picture, wrong = _pale(found.results[index].image), found.wrong(index)
    picture[wrong] = WRONG
    picture[wrong & found.near] = WRONG_NEAR
    picture[~found.valid] = UNLABELLED
    return picture


def _difference(found: Comparison) -> tuple[np.ndarray, dict[str, drawing.Colour]]:
    """Where models differ, in colours, and what the colours mean: of two models with labels, which one is right."""
    picture = _pale(found.results[0].image)
    if found.labels is None or len(found.results) > 2:
        picture[found.differ] = DIFFERENT
        return picture, {"the models differ": DIFFERENT}
    first, second = (found.wrong(index) for index in (0, 1))
    differ = found.differ & found.valid
    picture[differ & ~first] = ONLY_FIRST
    picture[differ & ~second] = ONLY_SECOND
    picture[differ & first & second] = NEITHER
    picture[~found.valid] = UNLABELLED
    return picture, {
        "only A is right": ONLY_FIRST,
        "only B is right": ONLY_SECOND,
        "both are wrong, in different ways": NEITHER,
    }


def _legends(found: Comparison, legend: dict[str, drawing.Colour], width: int, height: int) -> Image.Image:
    """What the colours of errors and differences mean, and beside it the classes that occur, as many as fit."""
    entries = dict(legend)
    if found.labels is not None:
        errors = {"wrong": WRONG, f"wrong, at most {found.band} px from a boundary": WRONG_NEAR}
        entries = errors | entries | ({} if found.valid.all() else {"not labelled": UNLABELLED})
    first = found.results[0]
    maps = [result.labels for result in found.results] + ([] if found.labels is None else [found.labels])
    ids = np.unique(np.concatenate([np.unique(one) for one in maps]))
    names = fonts.class_names(first.names)
    classes = {names[i]: tuple(first.palette[i]) for i in ids if i < len(names) and i != first.ignore_index}
    line = drawing.text_height(TEXT)
    per_column = max((height + line) // line, 1)
    rows = list(classes.items())
    columns = [rows[start : start + per_column] for start in range(0, len(rows), per_column)]
    pictures: list[Image.Image] = []
    for column in [list(entries.items()), *columns]:
        picture = _swatches(column)
        if sum(p.width + 2 * drawing.GAP for p in pictures) + picture.width > width and pictures:
            break  # a narrow sheet shows the first classes only
        pictures.append(picture)
    return drawing.beside(pictures, 2 * drawing.GAP)


def _swatches(entries: list[tuple[str, drawing.Colour]]) -> Image.Image:
    size, line = TEXT - 1, drawing.text_height(TEXT)
    width = round(max(fonts.length(name, size) for name, _ in entries)) + line + 6
    sheet = Image.new("RGB", (width, line * len(entries) + line), drawing.PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (name, colour) in enumerate(entries):
        top = line * row + line  # in line with the picture beside it, which has a caption
        draw.rectangle((0, top + 3, line - 6, top + line - 4), fill=tuple(colour), outline=drawing.GREY)
        fonts.write(draw, (line + 2, top), name, drawing.INK, size)
    return sheet
