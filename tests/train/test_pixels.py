"""Pictures of more than 8 bits, other bands than RGB and EXIF orientations, from training to prediction."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from toys.deep import png16, tag

from fapn_zoo import create_model
from fapn_zoo.cli import main
from fapn_zoo.data.images import load_image
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.evaluate import evaluate
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings
from fapn_zoo.visualize.comparison import data_items

pytestmark = pytest.mark.train
SIZE = (48, 64)


def discs(root: Path, write, ending: str, **said) -> Path:
    """Bright discs on a noisy ground, as values 0..1 to `write(file, values)`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            y, x = np.mgrid[: SIZE[0], : SIZE[1]]
            disc = (y - rng.integers(14, 34)) ** 2 + (x - rng.integers(14, 50)) ** 2 < 12**2
            values = (0.2 + 0.5 * disc + rng.normal(0, 0.06, SIZE)).clip(0, 1)
            write(root / split / "images" / f"{i}{ending}", values)
            Image.fromarray(disc.astype(np.uint8)).save(root / split / "labels" / f"{i}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["ground", "disc"], **said}))
    return root


def deep(file: Path, values: np.ndarray) -> None:
    png16(file, (values * 4095).astype(np.uint16))


def bands(count: int, kind: str, white: float):
    def write(file: Path, values: np.ndarray) -> None:
        many = np.stack([values * (1 - 0.05 * i) for i in range(count)], 2) * white
        options = {"photometric": "minisblack", "planarconfig": "contig"} if count > 1 else {}
        tifffile.imwrite(file, many.astype(kind).squeeze(), **options)

    return write


@pytest.fixture
def quick(tiny: Settings) -> Settings:
    return tiny.replace(steps=30, lr=1e-2, model_args=tiny.model_args | {"head_dropout": 0.0})


def told(model: Path) -> dict:
    return json.loads((model / "config.json").read_text())["model"]["data"]


def test_twelve_bits_in_sixteen(tmp_path, quick):
    root = discs(tmp_path / "d", deep, ".png", white_level=4095)
    folder = train(quick.replace(data=str(root), cache=True, workers=2))
    model = create_model(f"local-dir:{folder}", pretrained=True)
    assert model.data.white_level == 4095 and model.data.exif == "apply"
    report = evaluate(model, root, "val", progress=False)
    assert report["miou"] > 0.85
    (root / "classes.json").write_text(json.dumps({"names": ["ground", "disc"]}))
    assert evaluate(model, root, "val", progress=False)["miou"] == report["miou"]  # the model knows
    assert evaluate(model, root, "val", progress=False, white_level=65535)["miou"] < 0.6
    file, truth = (root / "val" / kind / "0.png" for kind in ("images", "labels"))
    for source in (file, Image.open(file), file.read_bytes()):
        assert (model.predict(source).labels == np.asarray(Image.open(truth))).mean() > 0.9
    assert model.predict(file, white_level=65535).labels.mean() < 0.05
    assert np.array_equal(model.predict(file).labels, model.predict(file, white_level=4095).labels)
    item = next(iter(data_items(model, root, "val")))
    pixels = load_image(file, **Reading.of_model(model.data).options).pixels
    assert np.array_equal(load_image(item.image).pixels, pixels)
    assert np.array_equal(model.predict(item.image).labels, model.predict(file).labels)


@pytest.mark.parametrize("count, kind, white, ending", [(1, "uint8", 255, ".tif"), (2, "float32", 1, ".tiff"),
                                                        (4, "uint8", 255, ".tif"), (5, "uint16", 10000, ".tif"),
                                                        (8, "float32", 10000, ".tif")])  # fmt: skip
def test_any_number_of_bands(tmp_path, quick, count, kind, white, ending):
    root = discs(tmp_path / "d", bands(count, kind, white), ending)
    level = None if white in (1, 255) else white
    folder = train(quick.replace(data=str(root), in_chans=count, white_level=level, cache=True))
    model = create_model(f"local-dir:{folder}", pretrained=True)
    assert model.spec.in_chans == count == len(model.data.mean) and model.data.white_level == level
    assert evaluate(model, root, "val", progress=False, out=tmp_path / "report", worst=1)["miou"] > 0.8
    result = model.predict(root / f"val/images/0{ending}")
    assert result.overlay().size == SIZE[::-1] and result.image.shape == (*SIZE, 3)
    assert main(["predict", str(root / "val/images"), "--model", str(folder), "--out", str(tmp_path / "p")]) == 0
    assert len(json.loads((tmp_path / "p/summary.json").read_text())["images"]) == 3


def test_bands_that_do_not_fit_are_named(tmp_path, quick):
    root = discs(tmp_path / "d", bands(4, "uint8", 255), ".tif")
    with pytest.raises(
        ValueError, match=r"\d.tif \(8-bit TIFF of 4 bands\) has 4 bands, the model takes 3.*in_chans=4"
    ):
        train(quick.replace(data=str(root)))
    grey = discs(
        tmp_path / "g", lambda file, values: Image.fromarray((values * 255).astype(np.uint8)).save(file), ".png"
    )
    with pytest.raises(ValueError, match=r"\d.png .*has 1 channel, the model takes 4"):
        train(quick.replace(data=str(grey), in_chans=4))
    with pytest.raises(ValueError, match="in_chans must be at least 1, got 0"):
        quick.replace(in_chans=0)


def test_folders_of_different_white(tmp_path, quick):
    a = discs(tmp_path / "a", deep, ".png", white_level=4095)
    b = discs(tmp_path / "b", lambda f, v: Image.fromarray((v * 255).astype(np.uint8)).save(f), ".png")
    c = discs(tmp_path / "c", bands(3, "float32", 2000), ".tif", white_level=2000)
    folder = train(quick.replace(data=f"{a},{b},{c}", val_data=str(b)))
    assert "white_level" not in told(folder)
    for root in (a, b, c):
        model = create_model(f"local-dir:{folder}", pretrained=True)
        assert evaluate(model, root, "val", progress=False)["miou"] > 0.8


def test_orientations_that_labels_lack_are_said_and_can_be_ignored(tmp_path, quick, caplog):
    root = discs(tmp_path / "d", lambda f, v: Image.fromarray((v * 255).astype(np.uint8)).save(f), ".png")
    for file in root.rglob("images/*.png"):
        tag(file, 3)
    with caplog.at_level(logging.WARNING):
        train(quick.replace(data=str(root), steps=0))
    (line,) = [r.getMessage() for r in caplog.records if "EXIF" in r.getMessage()]
    assert line.startswith("d train: EXIF orientations turn 6 pictures otherwise than the labels: if the")
    caplog.clear()
    folder = train(quick.replace(data=str(root), exif="ignore", out=str(tmp_path / "ignore")))
    assert not [r for r in caplog.records if "EXIF" in r.getMessage()] and told(folder)["exif"] == "ignore"
    model = create_model(f"local-dir:{folder}", pretrained=True)
    assert evaluate(model, root, "val", progress=False)["miou"] > 0.8
    assert evaluate(model, root, "val", progress=False, exif="apply")["miou"] < 0.7
    file = root / "val/images/0.png"
    assert (model.predict(file).labels == np.asarray(Image.open(root / "val/labels/0.png"))).mean() > 0.85
    with pytest.raises(ValueError, match="exif"):
        train(quick.replace(data=str(root), exif="apply", out=str(tmp_path / "ignore"), resume="auto"))


def test_a_twelve_bit_photo_given_to_a_released_model(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fapn_zoo.data.images._SAID", set())
    values = np.random.default_rng(0).random((64, 64, 3))
    png16(tmp_path / "deep.png", (values * 4095).astype(np.uint16))
    Image.fromarray((values * 255).round().astype(np.uint8)).save(tmp_path / "plain.png")
    paths = [str(tmp_path / name) for name in ("deep.png", "plain.png")]
    with caplog.at_level(logging.WARNING):
        assert main(["predict", paths[0], "--out", str(tmp_path / "a"), "--device", "cpu"]) == 0
    assert "deep.png: the highest value is 4" in caplog.text and "white_level=4095" in caplog.text
    caplog.clear()
    assert main(["predict", *paths, "--white-level", "4095", "--out", str(tmp_path / "b"), "--device", "cpu"]) == 0
    assert not caplog.records or "highest value" not in caplog.text
    one, two = (np.asarray(Image.open(tmp_path / f"b/{name}_labels.png")) for name in ("deep", "plain"))
    assert (one == two).mean() > 0.95
