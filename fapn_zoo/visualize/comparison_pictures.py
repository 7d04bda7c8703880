"""The picture of a `Comparison`: predictions beside each other, and what is wrong with them or differs between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fapn_zoo.runtime.tables import percent
from fapn_zoo.tasks.drawing import boxed
from fapn_zoo.visualize.comparison import Comparison, ObjectComparison
from fapn_zoo.visualize.drawing import Colour, objects_laid_over
from fapn_zoo.visualize.plots import Panel, drawable, write_panels

WRONG, WRONG_NEAR, UNLABELLED, HIT = (205, 25, 40), (255, 165, 0), (105, 105, 115), (20, 150, 80)
DIFFERENT, ONLY_FIRST, ONLY_SECOND, NEITHER = (190, 30, 170), (30, 110, 220), (20, 150, 80), (60, 20, 30)


def write_sheet(found: Comparison | ObjectComparison, row: Mapping[str, Any], path: Path) -> None:
    """Writes one sheet, a .png file: the image and every model's answer, and what is wrong with them.

    `row` has the numbers of the image, as `side_by_side` returns them.
    """
    rows, legend = _of_classes(found, row) if isinstance(found, Comparison) else _of_objects(found, row)
    write_panels(rows, found.name, path, legend)


def _of_classes(found: Comparison, row: Mapping[str, Any]) -> tuple[list[list[Panel]], dict[str, Colour]]:
    """The classes of every model, with labels the truth and every model's errors, and where models differ."""
    first = found.results[0]
    rows = [_answers(found, [(result.overlay(alpha=0.65), "") for result in found.results])]
    difference, legend = _difference(found)
    if found.labels is not None:
        truth = dataclasses.replace(first, labels=found.labels).overlay(alpha=0.65)
        errors = [_errors(found, index) for index in range(len(found.models))]
        rows.append(
            _truth((truth, "truth", ""), errors, "mIoU {}, acc {}; near boundaries: mIoU {}, acc {}", found, row)
        )
        legend = {"wrong": WRONG, f"wrong, at most {found.band} px from a boundary": WRONG_NEAR} | legend
        legend |= {} if found.valid.all() else {"not labelled": UNLABELLED}
    rows.append([(difference, "where they differ", f"all agree on {percent(found.agreement)} % of the pixels")])
    maps = [result.labels for result in found.results] + ([] if found.labels is None else [found.labels])
    names = drawable(first.names)
    ids = [i for i in np.unique(np.concatenate([np.unique(one) for one in maps])) if i < len(names)]
    return rows, legend | {names[i]: first.palette[i] for i in ids if i != first.ignore_index}


def _of_objects(found: ObjectComparison, row: Mapping[str, Any]) -> tuple[list[list[Panel]], dict[str, Colour]]:
    """The objects of every model, and where there is truth, what is missed and wrong."""
    first, legend = found.results[0], {}
    rows = [_answers(found, [(one.overlay(), f"{len(one.segments)} objects") for one in found.results])]
    if found.truth is not None:
        truth = objects_laid_over(first.image, found.truth, first.image.shape[:2], first.names, first.palette)
        panel = truth, "truth", f"{len(found.true.classes)} objects"
        errors = [_object_errors(found, index) for index in range(len(found.models))]
        rows.append(_truth(panel, errors, "F1 {}: {} hit, {} missed, {} wrong", found, row))
        legend = {"hit": HIT, "missed": WRONG, "found where there is none": WRONG_NEAR}
    return rows, legend


def _answers(found: Comparison | ObjectComparison, pictures: Sequence[tuple[Any, str]]) -> list[Panel]:
    """The image, and every model's picture with a line of words."""
    named = enumerate(zip(found.models, pictures, strict=True))
    panels = [(picture, f"{_letter(index)}  {name}", words) for index, (name, (picture, words)) in named]
    return [(found.results[0].image, "image", ""), *panels]


def _truth(
    truth: Panel, errors: Sequence[np.ndarray], words: str, found: Comparison | ObjectComparison, row: Mapping[str, Any]
) -> list[Panel]:
    """The truth, and every model's errors with its scores in `words`."""
    panels = [truth]
    for index, (name, picture) in enumerate(zip(found.models, errors, strict=True)):
        scores = (str(score) if isinstance(score, int) else percent(score) for score in row["scores"][name].values())
        panels.append((picture, f"errors of {_letter(index)}", words.format(*scores)))
    return panels


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _object_errors(found: ObjectComparison, index: int) -> np.ndarray:
    hit, false = found.hit[index], found.false[index]
    boxes = np.concatenate([found.true.boxes[~hit], found.found[index].boxes[false], found.true.boxes[hit]])
    colours = [WRONG] * int((~hit).sum()) + [WRONG_NEAR] * int(false.sum()) + [HIT] * int(hit.sum())
    return np.asarray(boxed(_pale(found.results[0].image), boxes, [""] * len(boxes), colours))


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


def _difference(found: Comparison) -> tuple[np.ndarray, dict[str, Colour]]:
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
