"""The panels of an evaluation's images."""

from __future__ import annotations

import numpy as np
import pytest

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.visualize.plots import answer_and_truth

pytestmark = pytest.mark.unit


def test_errors_are_red_and_ignored_pixels_are_not() -> None:
    labels = LabelMap(("a", "b"), ((0, 0, 255), (0, 255, 0)))
    image = np.full((20, 30, 3), 100, np.uint8)
    found, truth = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    truth[:10] = 1
    truth[:, :5] = 255
    found[10:, 25:] = 2  # an answer that is no class of the data
    sheet = np.asarray(answer_and_truth(image, found, truth, labels, 255, "title"))
    assert sheet.shape == (64, 102, 3)
    panels = [sheet[44:, start : start + 30] for start in (0, 36, 72)]
    red = (panels[2] == (230, 30, 30)).all(2)
    expected = (found != truth) & (truth != 255)
    assert np.array_equal(red, expected) and 0 < expected.sum() < expected.size
    assert panels[0][15, 10, 2] > panels[0][15, 10, 1] and panels[1][5, 15, 1] > panels[1][5, 15, 2]
    assert (panels[0][15, 28] == 100).all() and (panels[1][5, 2] == 100).all()
    large = answer_and_truth(
        np.zeros((1200, 2400, 3), np.uint8), *[np.zeros((1200, 2400), np.uint8)] * 2, labels, 255, "x"
    )
    assert large.size == (3 * 1024 + 12, 512 + 44)
