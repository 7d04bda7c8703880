"""The pictures of the claim: which scenes they show, and what their plots are made of."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fapn_zoo.data.generated import ScenesDataset

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claim_pictures", ROOT / "hub" / "claim_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_windows_hold_the_most_thin_pixels(pictures: ModuleType) -> None:
    dataset = ScenesDataset("scenes:4@100x130", "test")
    wanted = [dataset.labels.names.index(name) for name in pictures.THIN]
    chosen = pictures.thin_scenes(dataset)
    counts = [int(np.isin(dataset.sample(index).labels[window], wanted).sum()) for index, window in chosen]
    assert len(chosen) == pictures.SHOWN and counts == sorted(counts, reverse=True)
    height, width = pictures.CROP
    for index in range(4):
        thin = np.isin(dataset.sample(index).labels, wanted)
        best = max(int(thin[y : y + height, x : x + width].sum()) for y in range(11) for x in range(11))
        assert best <= counts[-1] or (index, best) in [(i, n) for (i, _), n in zip(chosen, counts, strict=True)]


def test_plots_are_drawn_of_the_recorded_bands(pictures: ModuleType, tmp_path: Path) -> None:
    with open(pictures.CLAIM, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["steps"] == "900"]
    found = [row for row in rows if row["dialect"] == "maskformer"]
    assert [len(values) for values in pictures.bands(found, "fapn")] == [5] * len(pictures.PIXELS)
    pictures.plot_bands(rows, tmp_path / "bands.png")
    pictures.plot_offsets({"one": {4: np.array([0.0, 2.0, 5000.0])}}, tmp_path / "offsets.png")
    for name in ("bands", "offsets"):
        assert np.ptp(np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))) > 100
