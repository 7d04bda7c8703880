"""COCO's run lengths of cropped masks beside pycocotools' of full ones."""

from __future__ import annotations

import numpy as np
import pytest

from fapn_zoo.data.mask_encoding import RunLengths

pytestmark = pytest.mark.unit
official = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.8, 1.0])
def test_cropped_masks_have_pycocotools_bytes(share: float):
    rng = np.random.default_rng(round(10 * share))
    for _ in range(200):
        size = tuple(rng.integers(1, 14, 2).tolist())
        h, w = (int(rng.integers(0, side + 1)) for side in size)
        y, x = (int(rng.integers(0, side - part + 1)) for side, part in zip(size, (h, w), strict=True))
        crop = rng.random((h, w)) < share
        full = np.zeros(size, bool)
        full[y : y + h, x : x + w] = crop
        found = RunLengths.of(crop, y, x, size)
        theirs = official.encode(np.asfortranarray(full.astype(np.uint8)))
        assert found.to_coco() == {"size": list(size), "counts": theirs["counts"].decode()}
        x1, y1, x2, y2 = found.box
        assert found.area == full.sum() and [x1, y1, x2 - x1, y2 - y1] == official.toBbox(theirs).tolist()
        assert np.array_equal(official.decode(found.to_coco()).astype(bool), full)


def test_long_runs_and_many_runs():
    rng = np.random.default_rng(0)
    for full in (rng.random((211, 307)) < 0.5, np.ones((5000, 5000), bool), np.zeros((5000, 4), bool)):
        theirs = official.encode(np.asfortranarray(full.astype(np.uint8)))["counts"].decode()
        assert RunLengths.of(full, 0, 0, full.shape).text == theirs
