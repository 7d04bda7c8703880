"""The panels of an evaluation's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.visualize.plots import WRONG, marked_errors, write_answer

pytestmark = pytest.mark.unit


def test_errors_are_red_and_ignored_pixels_are_not(tmp_path: Path) -> None:
    labels = LabelMap(("a", "b"), ((0, 0, 255), (0, 255, 0)))
    image = np.full((20, 30, 3), 100, np.uint8)
    found, truth = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    truth[:10] = 1
    truth[:, :5] = 255
    found[10:, 25:] = 2  # an answer that is no class of the data
    red = (marked_errors(image, found, truth, 255) == WRONG).all(2)
    expected = (found != truth) & (truth != 255)
    assert np.array_equal(red, expected) and 0 < expected.sum() < expected.size
    write_answer(image, found, truth, labels, 255, "title", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    height, third = sheet.shape[0], sheet.shape[1] // 3
    assert third > 300 and height > 200
    blue, green, errors = (sheet[:, start : start + third].reshape(-1, 3) for start in (0, third, 2 * third))
    assert (blue[:, 2] > blue[:, 0] + 30).any() and (green[:, 1] > green[:, 0] + 30).any()
    assert (errors == WRONG).all(1).any() and not (blue == WRONG).all(1).any()
