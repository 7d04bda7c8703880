"""The band around boundaries as a map of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from fapn_zoo.metrics import BoundaryBands
from fapn_zoo.metrics.boundary import near_boundary

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("step", "ignore", "dtype"), [(1, 255, np.uint8), (90, 255, np.int64), (1, 2, np.uint8), (1, -1, np.int32)]
)
@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_band_is_that_of_the_metric(width: int, step: int, ignore: int, dtype: type) -> None:
    """Ids with steps of 90 need more than a byte."""
    rng = np.random.default_rng(1)
    labels = step * np.kron(rng.integers(0, 4, (5, 6)), np.ones((7, 8))).astype(dtype)
    labels[rng.random(labels.shape) < 0.1] = ignore
    ids, valid = labels.astype(int), labels != ignore
    highest = ndimage.maximum_filter(np.where(valid, ids, -1), 2 * width + 1, mode="nearest")
    lowest = ndimage.minimum_filter(np.where(valid, ids, 1000), 2 * width + 1, mode="nearest")
    near = near_boundary(labels, width, ignore)
    assert near.dtype == bool and np.array_equal(near, valid & (highest != lowest)) and 0 < near.sum() < valid.sum()
    bands = BoundaryBands(3 * step + 1, (width,), ignore)
    bands.update(np.zeros_like(labels), labels)
    assert int(bands.confusion(width).sum()) == near.sum()


def test_no_boundary() -> None:
    assert not near_boundary(np.full((4, 5), 255, np.uint8), 2, 255).any()
    assert not near_boundary(np.full((4, 5), 7, np.uint8), 2, 255).any()
