"""The ids of segments in COCO's panoptic PNG files, and all that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.metric_references import read_png, write_png

from fapn_zoo.data.reading import read_ids

pytestmark = pytest.mark.unit


def test_read_ids(tmp_path: Path):
    ids = np.random.default_rng(0).integers(0, 2**24, (7, 9)).astype(np.int32)
    file = write_png(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(read_ids(file), ids)
    np.testing.assert_array_equal(read_png(file), ids)
    assert read_ids(str(file)).dtype == np.int32
    with Image.open(file) as image:
        image.convert("RGBA").save(tmp_path / "alpha.png")
        image.save(tmp_path / "other.bmp")
        image.convert("L").save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_ids(tmp_path / "alpha.png"), ids)
    np.testing.assert_array_equal(read_ids(tmp_path / "other.bmp"), ids)  # not PNG, but as good
    with pytest.raises(ValueError, match=r"grey\.png must be 8-bit RGB, got 1 channels of uint8"):
        read_ids(tmp_path / "grey.png")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.png"):
        read_ids(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png is not an image"):
        read_ids(tmp_path / "text.png")
    (tmp_path / "cut.png").write_bytes(file.read_bytes()[:90])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        read_ids(tmp_path / "cut.png")
