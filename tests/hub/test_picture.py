"""The picture of the front page: how it is drawn, and that its caption says what was measured."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fapn_zoo.data.scenes import CLASSES, PALETTE, generate_scene
from fapn_zoo.tasks.result import Result
from fapn_zoo.visualize.alignment import Level

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("picture", ROOT / "hub" / "picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sheet_marks_where_only_one_is_right(picture: ModuleType, tmp_path: Path) -> None:
    scene = generate_scene(3)
    off = scene.semantic.copy()
    off[200:344, 250:442] = (off[200:344, 250:442] + 1) % len(CLASSES)
    results = {
        name: Result(scene.image, labels, np.ones(labels.shape, np.float32), [], CLASSES, PALETTE)
        for name, labels in {"FPN": off, "FaPN": scene.semantic}.items()
    }
    assert picture.wrong(results["FPN"], scene.semantic).sum() == (off != scene.semantic).sum()
    assert not picture.wrong(results["FaPN"], scene.semantic).any()
    maps = np.random.default_rng(0).normal(size=(2, 8, 90, 120)).astype(np.float32)
    picture.draw(results, scene.semantic, Level(0, 4, *maps), tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert (sheet == picture.SECOND).all(2).any() and not (sheet == picture.FIRST).all(2).any()


def test_the_caption_says_what_was_measured(picture: ModuleType) -> None:
    assert (ROOT / picture.PICTURE).stat().st_size < 400_000
    with open(ROOT / picture.SCORES, newline="", encoding="utf-8") as file:
        fpn, fapn = list(csv.DictReader(file))
    assert [fpn["weights"], fapn["weights"]] == [str(picture.folder(twin) / "model") for twin in picture.TWINS]
    settings = dict(pair.split("=") for pair in picture.TRAINING.split())
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for words in (
        f"{settings['steps']} steps",
        f"{settings['data'].removeprefix('scenes:')} generated scenes",
        f"On {fpn['images']} others",
        f"{float(fpn['miou']):.1f} and {float(fapn['miou']):.1f} mIoU",
        f"{float(fpn['band_3']):.1f} and {float(fapn['band_3']):.1f} within 3 pixels of a boundary",
    ):
        assert words in text, f"README.md does not say: {words}"
