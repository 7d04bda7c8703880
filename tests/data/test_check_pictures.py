"""What `check-data` and the start of a training say of range, bands and EXIF orientations."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from toys.deep import png16, ppm, tag
from toys.panoptic import write_coco

from fapn_zoo.data.check import check_data
from fapn_zoo.data.check_pictures import turned_pictures
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.sources import open_dataset

pytestmark = pytest.mark.unit
SIZE = (12, 16)


def folder(root: Path, white: int, write, count: int = 3, size=SIZE, **said) -> Path:
    """Pictures 0..white by `write(path without ending, values (H, W))`, labels of two classes."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True)
    for i in range(count):
        labels = rng.integers(0, 2, size, dtype=np.uint8)
        values = (rng.random(size) * 0.5 + labels * 0.5) * white
        values[0, 0] = white - i
        write(root / f"train/images/{i}", values)
        Image.fromarray(labels).save(root / f"train/labels/{i}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], **said}))
    return root


def grey8(file, values):
    Image.fromarray(values.astype(np.uint8)).save(f"{file}.png")


def deep(file, values):
    png16(Path(f"{file}.png"), values.astype(np.uint16))


def bands(kind, count):
    def write(file, values):
        many = np.stack([values] * count, 2).astype(kind)
        tifffile.imwrite(f"{file}.tif", many, photometric="minisblack", planarconfig="contig")

    return write


def said(root: Path, **options) -> str:
    return check_data(root, progress=False, **options).render()


WHERE = "(in classes.json or as a setting)"


@pytest.mark.parametrize("white, level", [(255, 255), (1000, 1023), (4095, 4095), (16000, 16383)])
def test_range_is_reported_and_a_level_proposed(tmp_path, white, level):
    root = folder(tmp_path / "d", white, deep)
    line = f"  3 pictures (16-bit PNG): highest value {white} in train/images/0.png, white is 65535 (the container's)"
    line += f"; if they hold fewer bits, set white_level={level} {WHERE}"
    assert line in said(root) and check_data(root, progress=False).ok
    assert f"white is {level} (white_level)\n" in said(root, reading=Reading(level))
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], "white_level": level}))
    assert f"white is {level} (white_level)\n" in said(root)
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], "white_level": white - 5}))
    assert f"white is {white - 5} (white_level); higher values are clipped: is white_level={level} meant?" in said(root)
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], "white_level": white * 10}))
    assert f"nearly black: is white_level={level} meant?" in said(root)


def test_ranges_that_need_no_word(tmp_path):
    assert "range of" not in said(folder(tmp_path / "a", 255, grey8, white_level=4095))
    assert "white is 65535 (the container's)\n" in said(folder(tmp_path / "b", 65535, deep))
    states = folder(tmp_path / "c", 1023, lambda f, v: ppm(Path(f"{f}.ppm"), v.astype(int), 1023))
    assert "(10-bit PPM): highest value 1023 in train/images/0.ppm, white is 1023 (stated in the files)\n" in said(
        states
    )


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_an_unknown_white_is_one_error(tmp_path, kind):
    root = folder(tmp_path / "d", 4095, lambda f, v: tifffile.imwrite(f"{f}.tif", v.astype(kind)))
    report = check_data(root, progress=False)
    (problem,) = [p for p in report.problems if p.error]
    assert problem.kind == "white level unknown" and f"set white_level=4095 {WHERE}" in problem.detail
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], "white_level": 4095}))
    assert check_data(root, progress=False).ok


def test_bands_are_counted(tmp_path):
    root = folder(tmp_path / "d", 255, bands("uint8", 5))
    assert "pictures have 5 bands: train with in_chans=5" in said(root) and check_data(root, progress=False).ok
    grey8(root / "train/images/1", np.zeros(SIZE))
    (root / "train/images/1.tif").unlink()
    report = check_data(root, progress=False)
    assert not report.ok and "pictures: 1 of 3 (such as train/images/1.png), 2 of 5 (such as train/images/0.tif)" in (
        report.render()
    )


@pytest.mark.parametrize("orientation", [2, 3, 4, 6])
def test_turned_pictures_are_told(tmp_path, orientation, caplog):
    root = folder(tmp_path / "d", 255, grey8, count=4, size=(12, 12))
    for i in range(3):
        tag(root / f"train/images/{i}.png", orientation)
    line = "EXIF orientations turn 3 pictures otherwise than the labels: if the labels were drawn on the stored "
    line += f"pixels, set exif=ignore {WHERE}"
    assert line in said(root)
    assert turned_pictures(open_dataset(root, "train")) == line
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], "exif": "ignore"}))
    assert "3 pictures or labels have an EXIF orientation, which exif=ignore leaves out" in said(root)
    assert turned_pictures(open_dataset(root, "train")) == ""


def test_labels_with_the_tag_are_turned_alike(tmp_path):
    root = folder(tmp_path / "d", 255, grey8)
    plain = open_dataset(root, "train").sample(0)
    for file in root.rglob("*.png"):
        tag(file, 6)
    dataset = open_dataset(root, "train")
    sample = dataset.sample(0)
    assert np.array_equal(sample.labels, np.rot90(plain.labels, -1)) and dataset.size(0) == SIZE[::-1]
    assert np.array_equal(sample.image, np.rot90(plain.image, -1, (1, 2)))
    assert (
        "EXIF orientations turn 3 pictures and the labels alike" in said(root) and check_data(root, progress=False).ok
    )
    assert turned_pictures(dataset) == ""
    for file in (root / "train/labels").iterdir():
        tag(file, 8)
    line = "EXIF orientations turn 3 pictures otherwise than the labels"
    assert line in said(root) and turned_pictures(dataset).startswith(line)
    for file in (root / "train/labels").iterdir():
        tag(file, 6)
    grey8(root / "train/images/0", np.zeros(SIZE))
    assert "EXIF orientations turn 1 picture otherwise than the labels" in said(root)


def test_sizes_tell_which_setting_fits(tmp_path):
    root = folder(tmp_path / "d", 255, grey8)
    for i in range(3):
        tag(root / f"train/images/{i}.png", 8)
    text = said(root)
    assert f"the sizes of 3 fit exif=ignore only: set it {WHERE}" in text
    assert "12x16 in train/images/0.png (the picture is turned by its EXIF orientation 8, its labels are not" in text
    with pytest.raises(ValueError, match="set exif=ignore, in classes.json or as a setting"):
        open_dataset(root, "train").sample(0)
    for i in range(3):
        Image.fromarray(np.zeros(SIZE[::-1], np.uint8)).save(root / f"train/labels/{i}.png")
    assert "the sizes of 3 fit the turned pictures: exif=apply is right" in said(root)
    assert turned_pictures(open_dataset(root, "train")) == ""
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], "exif": "ignore"}))
    with pytest.raises(ValueError, match="exif=apply would fit"):
        open_dataset(root, "train").sample(0)


def test_panoptic_folders_tell_the_same(tmp_path):
    write_coco(tmp_path, range(2), size=(48, 48))
    dataset = open_dataset(tmp_path, "val", ("segments",))
    assert "white" not in said(tmp_path) and "EXIF" not in said(tmp_path)
    for index, high in ((0, 4000), (1, 3000)):
        picture = dataset.files(index)[0]
        values = np.random.default_rng(0).integers(0, high, (48, 48), dtype=np.uint16)
        values[0, 0] = high
        data = io.BytesIO()
        Image.fromarray(values).save(data, "PNG")
        picture.write_bytes(data.getvalue())
    assert f"set white_level=4095 {WHERE}" in said(tmp_path)
    assert "white is 4095 (white_level)" in said(tmp_path, reading=Reading(white_level=4095))
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(picture, "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(picture).save(picture, "JPEG", exif=exif)
    assert "EXIF orientations turn 1 picture otherwise than the labels" in said(tmp_path)


def test_large_sets_are_sampled(tmp_path, monkeypatch):
    root = folder(tmp_path / "d", 255, grey8, count=9)
    for i in range(9):
        tag(root / f"train/images/{i}.png", 3)
    monkeypatch.setattr("fapn_zoo.data.check_pictures.SCANNED", 3)
    assert turned_pictures(open_dataset(root, "train")).startswith(
        "EXIF orientations turn 3 pictures of 3 that were looked at "
    )
