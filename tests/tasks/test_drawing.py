"""Overlays are the same in bands, and a photo full of objects needs little memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fapn_zoo.tasks import drawing

pytestmark = pytest.mark.unit

PHOTO = """
import resource, sys
import torch
from fapn_zoo.data.images import LoadedImage
from fapn_zoo.postprocess.answers import Instances, Segment
from fapn_zoo.postprocess.cropped import SoftMasks
from fapn_zoo.tasks import TASKS
from fapn_zoo.zoo.spec import DataSpec

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def draw(height, width, count, path):
    g = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=g) * torch.tensor([0.9 * width, 0.9 * height])
    boxes = torch.cat([corners, corners + 20 + torch.rand(count, 2, generator=g) * 0.1 * height], 1)
    masks = SoftMasks(torch.randn(count, 28, 28, generator=g) + 2, boxes, (height, width))
    segments = tuple(Segment(m + 1, m % 2, True, 0.9, 500) for m in range(count))
    pixels = torch.randint(0, 255, (3, height, width), dtype=torch.uint8, generator=g)
    data = DataSpec(labels=("cell", "leaf"), palette=((200, 0, 0), (0, 200, 0)), things=(0, 1))
    image = LoadedImage(pixels, "photo")
    before = peak()
    TASKS["instance"].result(Instances(masks, segments, boxes), image, data).save(path)
    return peak() - before

draw(64, 64, 2, sys.argv[1])  # fonts, encoders
print(draw(3000, 4000, 300, sys.argv[1]))
"""


def test_300_objects_on_12_megapixels(tmp_path):
    """Beside the photo itself: maps of classes, scores and segments, the overlay, and what the encoder needs."""
    command = [sys.executable, "-c", PHOTO, str(tmp_path / "photo.jpg")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 100 < float(run.stdout) < 300


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
