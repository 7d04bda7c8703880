"""What `predict` answers: its fields, pictures and files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from toys.prediction import PLAIN, BrightSquare, box, square

from fapn_zoo.predict import predict
from fapn_zoo.tasks.result import Result, describe_regions

pytestmark = pytest.mark.unit


@pytest.fixture
def result() -> Result:
    return predict(BrightSquare(), square())


def test_result_fields(result):
    assert result.labels.dtype == np.uint8 and result.scores.dtype == np.float32
    assert 0.5 <= result.scores.min() and result.scores.max() <= 1
    assert np.array_equal(result.image, square())
    assert result.names == PLAIN.labels and result.palette == PLAIN.palette and result.ignore_index == 255
    assert [s["name"] for s in result.segments] == ["ground", "square"] and result.segments[0]["id"] == 1
    assert sum(s["area"] for s in result.segments) == 135 * 203
    assert result.segments[1]["score"] == pytest.approx(result.scores[result.labels == 1].mean(), abs=1e-5)
    assert repr(result) == "Result('image', 203x135 pixels, semantic: ground 94%, square 6%)"
    summary = json.loads(json.dumps(result.to_dict()))
    assert summary["size"] == [135, 203] and sum(summary["classes"].values()) == pytest.approx(1)


def test_overlay(result):
    picture = result.overlay()
    assert picture.mode == "RGB" and picture.size == (203, 135)
    assert np.array_equal(np.array(result.overlay(alpha=0, boundaries=False)), result.image)
    colours = np.array(result.overlay(alpha=1, boundaries=False))
    assert np.array_equal(colours, np.array(PLAIN.palette, np.uint8)[result.labels])
    half = np.array(result.overlay(alpha=0.5, boundaries=False)).astype(int)
    assert np.abs(half - (result.image.astype(int) + colours) / 2).max() <= 1
    line = (np.array(result.overlay(alpha=0)) != result.image).any(2)
    assert 140 < line.sum() < 180 and line[60, 59] and not line[60, 60], "one pixel wide"
    legend = (np.array(result.overlay(legend=True)) != np.array(picture)).any(2)
    assert legend[:20, :20].any() and not legend[-20:, -20:].any()
    with pytest.raises(ValueError, match="alpha=2"):
        result.overlay(alpha=2)


def test_label_image(result, tmp_path):
    result.label_image().save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P" and np.array_equal(np.array(image), result.labels)
        assert np.array_equal(np.array(image.convert("RGB")), np.array(PLAIN.palette, np.uint8)[result.labels])
    result.labels = result.labels.astype(np.int64) + 300
    result.label_image().save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert np.array_equal(np.array(image), result.labels)


def test_save(result, tmp_path):
    assert result.save(tmp_path / "out.png") == [tmp_path / "out.png"]
    result.save(str(tmp_path / "out.jpg"), alpha=0.3, legend=True)
    result.name = "street.jpeg"
    assert [p.name for p in result.save(tmp_path / "new" / "folder")] == ["street_overlay.png", "street_labels.png"]
    with Image.open(tmp_path / "out.png") as image:
        assert np.array_equal(np.array(image), np.array(result.overlay()))
    with pytest.raises(ValueError, match=r"out.bmp: the name must end in one of .png"):
        result.save(tmp_path / "out.bmp")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "out.jpg", "out.png"]


def test_a_failed_write_leaves_the_old_file(result, tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        result.save(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_names_and_colours_are_made_up_where_a_model_has_none():
    model = BrightSquare(dataclasses.replace(PLAIN, labels=(), palette=()))
    result = predict(model, square())
    assert result.names == ("class_0", "class_1") and len(set(result.palette)) == 2
    assert result.overlay().size == (203, 135)


def test_equal_names_stay_apart(result):
    result.names = ("same", "same")
    assert list(result.class_shares()) == ["same", "same (1)"]
    result.overlay(legend=True)


def test_many_classes_use_wide_labels():
    model = BrightSquare(dataclasses.replace(PLAIN, labels=(), palette=(), ignore_index=65535))
    result = predict(model, square())
    assert result.labels.dtype == np.int64 and box(result) == [60, 40, 40, 40]


def test_describe_regions():
    ids = np.array([[0, 0, 3], [0, 3, 3]])
    assert describe_regions(ids, np.float32([[1, 1, 0], [0.4, 0.5, 1]])) == {
        0: {"area": 3, "bbox": [0, 0, 2, 2], "score": 0.8}, 3: {"area": 3, "bbox": [1, 0, 2, 2], "score": 0.5},
    }  # fmt: skip
