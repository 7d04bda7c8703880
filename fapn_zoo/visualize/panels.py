"""Panels beside each other for one image of an evaluation: the answer, the truth, and where they differ."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.tasks.result import Result
from fapn_zoo.visualize import drawing

LONGEST = 1024  # side of a panel, in pixels
GAP = 6
WRONG = (230, 30, 30)


def answer_and_truth(
    image: np.ndarray, found: np.ndarray, truth: np.ndarray, labels: LabelMap, ignore_index: int, title: str
) -> Image.Image:
    """Prediction, truth, and where they differ, one beside the other.

    Args:
        image: (H, W, 3) uint8.
        found, truth: (H, W) ids; without colour where they are no class of `labels`.
        ignore_index: truth that is not scored, and never an error.
    """
    errors = np.repeat(image.mean(2, keepdims=True) * 0.6 + 60, 3, axis=2)
    ignored = truth == ignore_index
    errors[ignored] *= 0.35
    errors[(found != truth) & ~ignored] = WRONG
    panels = {
        "prediction": _overlay(image, found, labels, ignore_index),
        "truth": _overlay(image, truth, labels, ignore_index),
        "errors": Image.fromarray(errors.astype(np.uint8)),
    }
    for panel in panels.values():
        panel.thumbnail((LONGEST, LONGEST))
    row = drawing.beside([drawing.captioned(panel, name) for name, panel in panels.items()], GAP)
    return drawing.stacked([drawing.text_block([title], row.width), row], 0)


def _overlay(image: np.ndarray, ids: np.ndarray, labels: LabelMap, ignore_index: int) -> Image.Image:
    scores = np.zeros(ids.shape, np.float32)
    return Result(image, ids, scores, [], labels.names, labels.palette, ignore_index).overlay(alpha=0.6)
