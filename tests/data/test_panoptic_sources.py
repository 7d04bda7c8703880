"""Data sets with segments: COCO panoptic folders in every layout, scenes, and everything that can be wrong in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys.panoptic import CATEGORY, write_coco

from fapn_zoo.data import DataError, LabelMap, open_dataset
from fapn_zoo.data.sample import SEGMENTS
from fapn_zoo.data.scenes import CLASSES, PALETTE, THINGS, generate_scene

pytestmark = pytest.mark.unit


def open_panoptic(source, split):
    return open_dataset(source, split, needs=("segments",))


@pytest.mark.parametrize("split", ["val2017", None])
def test_a_folder_gives_what_was_written(tmp_path: Path, split: str | None):
    file = write_coco(tmp_path, range(3), split=split)
    data = open_panoptic(tmp_path, "val")
    assert data.holds == SEGMENTS and len(data) == 3 and data.name == tmp_path.name
    assert data.labels == LabelMap(tuple(CLASSES), PALETTE, 255, tuple(THINGS), CATEGORY)
    for seed in range(3):
        scene, sample = generate_scene(seed, (48, 64)), data.sample(seed)
        assert data.size(seed) == (48, 64) and sample.name == f"{seed:06d}" and data.files(seed)[2] == file
        ids, classes, crowd = sample.objects.ids, sample.objects.classes, sample.objects.crowd
        for found, expected in (
            (sample.image.permute(1, 2, 0), scene.image),
            (sample.labels, scene.semantic),
            (ids, scene.panoptic),
        ):
            np.testing.assert_array_equal(found, expected)
        assert ids.dtype == np.int32 and sample.labels.dtype == np.uint8
        for category, many, area, theirs in zip(classes, crowd, sample.objects.areas, scene.segments, strict=True):
            assert (category, area) == (theirs["category_id"], theirs["area"])
            assert many == (theirs["isthing"] and theirs["id"] % 5 == 0)
    assert any(data.sample(i).objects.crowd.any() for i in range(3))


def test_a_folder_of_segments_serves_labels_alone(tmp_path: Path):
    write_coco(tmp_path, range(2))
    data = open_dataset(tmp_path, "val", num_classes=len(CLASSES))
    assert np.array_equal(data.sample(1).labels, generate_scene(1, (48, 64)).semantic)
    with pytest.raises(DataError, match=f"num_classes is 3, but .* lists {len(CLASSES)} categories"):
        open_dataset(tmp_path, "val", num_classes=3)


def test_scenes_with_their_segments():
    data = open_panoptic("scenes:2@48x64", "test")
    assert data.holds == SEGMENTS and len(data) == 2 and data.labels.things == tuple(THINGS)
    scene, sample = generate_scene(data.seed(1), (48, 64)), data.sample(1)
    np.testing.assert_array_equal(sample.objects.ids, scene.panoptic)
    assert sample.objects.areas.tolist() == [s["area"] for s in scene.segments]
    assert sample.only({"labels"}).objects is None and sample.only({"segments"}).labels is None
    with pytest.raises(DataError, match="cannot understand 'scenes'"):
        open_panoptic("scenes", "test")


def test_coco_itself():
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("FAPN_ZOO_DATA", beside)) / "coco_panoptic_sample"
    if not folder.is_dir():
        pytest.skip(f"no COCO panoptic sample at {folder}: set FAPN_ZOO_DATA to the folder that holds it")
    data = open_panoptic(folder, "val")
    table = json.loads((folder / "panoptic.json").read_text())
    assert len(data) == 2 and data.labels.num_classes == 133 and len(data.labels.things) == 80
    for i, annotation in enumerate(table["annotations"]):
        sample = data.sample(i)
        objects = sample.objects
        assert sample.size == objects.ids.shape == sample.labels.shape == data.size(i)
        rows = zip(objects.classes, objects.crowd, objects.areas, annotation["segments_info"], strict=True)
        for label, crowd, area, listed in rows:
            assert (area, crowd) == (listed["area"], listed["iscrowd"])
            category = next(c for c in table["categories"] if c["id"] == listed["category_id"])
            assert data.labels.names[label] == category["name"]
            assert (label in data.labels.things) == bool(category["isthing"])


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no data folder .*nowhere"):
        open_panoptic(tmp_path / "nowhere", "val")
    with pytest.raises(FileNotFoundError, match=r"no panoptic_val\*\.json or panoptic\.json in"):
        open_panoptic(tmp_path, "val")
    file = write_coco(tmp_path, range(1))
    with pytest.raises(FileNotFoundError, match="no split 'test' in .*; it has val2017"):
        open_panoptic(tmp_path, "test")
    assert len(open_panoptic(tmp_path, "val2017")) == 1
    other = file.with_name("panoptic_val2014.json")
    other.write_text("{}")
    with pytest.raises(DataError, match="several splits 'val': val2014, val2017"):
        open_panoptic(tmp_path, "val")
    other.unlink()
    pictures = tmp_path / "val2017"
    pictures.rename(tmp_path / "pictures")
    with pytest.raises(FileNotFoundError, match=r"no folder with the pictures of .*images/val2017, .*images$"):
        open_panoptic(tmp_path, "val")
    (tmp_path / "images").mkdir()
    (tmp_path / "pictures").rename(tmp_path / "images" / "val2017")
    assert open_panoptic(tmp_path, "val").sample(0).name == "000000"
    file.with_suffix("").rename(tmp_path / "segments")
    with pytest.raises(FileNotFoundError, match="no folder with the segments of"):
        open_panoptic(tmp_path, "val")


def set_at(*path: Any) -> Callable[[dict], None]:
    """A change of the annotation file: keys and places, and the new value."""

    def change(table: dict) -> None:
        *keys, last, value = path
        for key in keys:
            table = table[key]
        table[last] = value

    return change


BROKEN = {
    "categories": (set_at("categories", {}), r"is no COCO panoptic file: expected an object with lists images"),
    "no name": (set_at("categories", 2, "name", None), r"categories\[2\] lacks name \(str\)"),
    "a name twice": (set_at("categories", 3, "name", "Car"), "class names must differ; repeated: 'Car'"),
    "an id twice": (set_at("categories", 2, "id", 3), "category id 3 is listed twice"),
    "no height": (set_at("images", 0, "height", "48"), r"images\[0\] lacks height \(int\)"),
    "outside": (set_at("images", 0, "file_name", "../x.png"), r"names the file '../x.png', which is outside"),
    "absolute": (set_at("annotations", 0, "file_name", "/x.png"), r"names the file '/x.png', which is outside"),
    "an image that is not there": (set_at("annotations", 0, "image_id", 9), "000000.png is of image 9, which is not"),
    "an image twice": (set_at("annotations", 1, "image_id", 0), "image 0 has two annotations, 000000.png and 000001"),
    "no category": (set_at("annotations", 0, "segments_info", 0, {"id": 4}), r"a segment of 000000\.png lacks categ"),
    "strange category": (
        set_at("annotations", 0, "segments_info", 0, "category_id", 4), r"segment \d+ of 000000.png is of category 4"),
    "void listed": (set_at("annotations", 0, "segments_info", 0, "id", 0), "000000.png lists segment 0 twice, or it"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_annotation_file_is_named(tmp_path: Path, what: str):
    change, message = BROKEN[what]
    file = write_coco(tmp_path, range(2))
    table = json.loads(file.read_text())
    change(table)
    file.write_text(json.dumps(table))
    with pytest.raises(DataError, match=f"{file.name}.*{message}") as error:
        open_panoptic(tmp_path, "val")
    assert "\n" not in str(error.value)


def test_bad_files_are_named_with_their_segments(tmp_path: Path):
    file = write_coco(tmp_path, range(1))
    png = file.with_suffix("") / "000000.png"
    kept, table = png.read_bytes(), json.loads(file.read_text())
    segments = table["annotations"][0]["segments_info"]

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message) as error:
            open_panoptic(tmp_path, "val").sample(0)
        assert "\n" not in str(error.value)

    first = segments.pop(0)
    file.write_text(json.dumps(table))
    refused(rf"000000\.png has pixels of segment {first['id']}, which .*panoptic_val2017\.json does not list")
    segments[:0] = [first, {**first, "id": 12345}]
    file.write_text(json.dumps(table))
    refused(r"000000\.png has no pixel of segment 12345, which .*panoptic_val2017\.json lists")
    del segments[1]
    file.write_text(json.dumps(table))
    open_panoptic(tmp_path, "val").sample(0)
    Image.new("RGB", (60, 48), (1, 2, 3)).save(png)
    refused("000000.png has pixels of segment 197121")
    png.write_bytes(kept[:100])
    refused(r"000000\.png cannot be read")
    png.unlink()
    refused(r"000000\.png is missing, which .*panoptic_val2017\.json lists")
    png.write_bytes(kept)
    table["images"][0]["width"] = 65
    file.write_text(json.dumps(table))
    refused(r"sizes differ: 65x48 in .*panoptic_val2017\.json, 64x48 in .*val2017.000000\.png")
    (tmp_path / "val2017" / "000000.png").write_bytes(b"no picture")
    refused(r"val2017.000000\.png is not an image that can be read")
    file.write_text("{")
    refused(r"panoptic_val2017\.json is not readable JSON")


def test_files_that_are_not_used_or_missing_are_named_when_it_opens(tmp_path: Path, caplog):
    file = write_coco(tmp_path, range(2))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # a byte-order mark
    Image.new("RGB", (4, 4)).save(tmp_path / "val2017" / "more.png")
    (tmp_path / "val2017" / "x.heic").touch()
    assert len(open_panoptic(tmp_path, "val")) == 2
    assert caplog.messages == [
        f"{tmp_path}/val2017: not used: 1 without annotation: more.png",
        f"{tmp_path}/val2017: not used: another ending (1 .heic): x.heic",
    ]
    for name in ("000000.png", "000001.png"):
        (tmp_path / "val2017" / name).unlink()
    (tmp_path / "val2017" / "000000.png").symlink_to("gone.png")
    with pytest.raises(
        DataError, match=r"000000.png, which .*2017.json lists: a link to gone.png, which .*; 1 others too"
    ):
        open_panoptic(tmp_path, "val")
