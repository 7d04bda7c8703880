"""Overlays are the same in bands, and a photo full of objects needs little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fapn_zoo.tasks import drawing

pytestmark = pytest.mark.unit

PHOTO = Path(__file__).resolve().parents[1] / "benchmarks" / "photo.py"


@pytest.mark.parametrize("manner", ["plain", "legend"])
def test_300_objects_on_12_megapixels(manner):
    """The photo itself, maps of classes, scores and segments, the overlay, and what the encoder needs."""
    command = [sys.executable, str(PHOTO), "--measure", "jpg", manner]
    peaks: list[float] = []
    while not peaks or (peaks[-1] >= 270 and len(peaks) < 3):  # a busy system may load pages of libraries anew
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert 180 < peaks[-1] < 270, peaks


@pytest.mark.parametrize("thickest", [None, np.array([3, 1, 2, 9])])
def test_bands_leave_no_seam(thickest, monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (150, 90, 3), np.uint8)
    ids = rng.integers(0, 4, (15, 9)).repeat(10, 0).repeat(10, 1)
    colours = np.array([[0, 0, 0], [250, 10, 10], [10, 10, 20], [200, 200, 0]], np.uint8)
    shown = np.array([False, True, True, True])
    whole = drawing.overlay(image, ids, colours, shown, 0.5, True, thickest)
    monkeypatch.setattr(drawing, "BAND", 7)
    assert np.array_equal(drawing.overlay(image, ids, colours, shown, 0.5, True, thickest), whole)


def test_texts_are_no_larger_than_their_objects_allow():
    boxes = np.array([[150, 100, 158, 108], [20, 20, 28, 28], [180, 200, 290, 290]])
    picture = Image.new("RGB", (300, 300))
    places = drawing.write_texts(picture, boxes, 3 * ["nucleus 99%"], 3 * [(200, 0, 0)])
    assert len(places) == 2  # the first object has its text; the second is as small, the third is large


def test_no_text_hides_an_object():
    crowd = np.array([[x, y, x + 8, y + 8] for y in range(0, 60, 9) for x in range(0, 80, 9)])
    picture = Image.new("RGB", (87, 65))
    assert drawing.write_texts(picture, crowd, ["nucleus 99%"] * len(crowd), [(200, 0, 0)] * len(crowd)) == []
    assert picture.getbbox() is None
