"""Hugging Face data sets in the layouts that are found on the Hub, written as parquet, and read without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from toys.hub_rows import NAMES, H, W, ids, named, picture, png, semantic, write

from fapn_zoo.data.fingerprint import Fingerprint
from fapn_zoo.data.formats.hub_rows import held_out
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.sample import DataError, Dataset
from fapn_zoo.data.sources import open_dataset

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def check(data: Dataset, index: int = 1) -> None:
    sample = data.sample(index)
    assert sample.size == data.size(index) == (H, W) and data.labels.names == tuple(NAMES)
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), picture(index))


# The layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image, mask", [("pixel_values", "label"), ("image", "annotation"), ("original_image", "mask")]
)
def test_semantic(image: str, mask: str, tmp_path: Path) -> None:
    folder = named(write(tmp_path / "set", semantic(4, image, mask), "train", **{mask: datasets.Image()}))
    write(folder, semantic(2, image, mask), "validation", **{mask: datasets.Image()})
    data = open_dataset(f"hf:{folder}", "train")
    assert len(data) == 4 and len(open_dataset(f"hf:{folder}", "val")) == 2
    check(data)
    assert np.array_equal(data.sample(3).labels, ids(3)) and data.labels.ignore_index == 255


def test_panoptic(tmp_path: Path) -> None:
    rows = []
    for i in range(3):
        colours = np.zeros((H, W, 3), np.uint8)
        colours[:, 5:] = (7, 1, 0)
        colours[3:9, 10:20] = (1, 0, 2)
        info = [{"id": 7 + 256, "category_id": 1, "isthing": 0}, {"id": 1 + 2 * 65536, "category_id": 2, "isthing": 1}]
        rows.append({"image": png(picture(i)), "label": png(colours), "segments_info": info})
    data = open_dataset(f"hf:{named(write(tmp_path / 'set', rows))}?image=image", "train", {"segments"})
    check(data)
    sample = data.sample(1)
    assert data.labels.things == (2,) and sample.objects.classes.tolist() == [1, 2]
    assert sample.objects.areas.tolist() == [H * (W - 5) - 60, 60]
    assert sample.labels[0, 0] == 255 and sample.labels[0, 6] == 1 and sample.labels[4, 12] == 2


@pytest.mark.parametrize("form", ["lists", "dicts"])
def test_objects_with_boxes(form: str, tmp_path: Path) -> None:
    boxes, categories = [[2.0, 3.0, 10.5, 6.0], [20.0, 4.0, 5.0, 9.0]], [2, 0]
    objects: Any = {"bbox": boxes, "category": categories}
    if form == "dicts":
        objects = [{"bbox": b, "category": c} for b, c in zip(boxes, categories, strict=True)]
    rows = [{"image": png(picture(i)), "objects": objects} for i in range(3)]
    inner = {"bbox": datasets.List(datasets.Value("float32"), 4), "category": datasets.ClassLabel(names=NAMES)}
    kind = {key: datasets.List(value) for key, value in inner.items()} if form == "lists" else datasets.List(inner)
    data = open_dataset(f"hf:{write(tmp_path / 'set', rows, objects=kind)}", "train", {"boxes"})
    check(data)
    found = data.sample(0).objects
    assert found.classes.tolist() == [2, 0] and not found.has_masks
    assert found.boxes.tolist() == [[2, 3, 12.5, 9], [20, 4, 25, 13]]


def test_objects_with_polygons(tmp_path: Path) -> None:
    polygon = [[2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]]
    objects = [{"bbox": [2.0, 3.0, 10.0, 6.0], "segmentation": polygon, "category": "car"}]
    rows = [{"image": png(picture(i)), "objects": objects} for i in range(3)]
    data = open_dataset(f"hf:{write(tmp_path / 'set', rows)}", "train", {"masks"})
    assert data.labels.names == ("car",)
    crop = data.sample(2).objects.crop(0)
    assert (crop.x, crop.y, crop.pixels.shape, crop.pixels.all()) == (2, 3, (6, 10), True)


def test_instances_in_an_rgb_annotation(tmp_path: Path) -> None:
    rows = []
    for i in range(2):
        colours = np.zeros((H, W, 3), np.uint8)
        colours[2:6, 3:9], colours[10:14, 3:9], colours[16:20, 20:30] = (2, 1, 0), (2, 2, 0), (1, 1, 0)
        table = {name: k for k, name in enumerate(NAMES)}
        rows.append({"image": png(picture(i)), "annotation": png(colours), "semantic_class_to_id": table})
    data = open_dataset(f"hf:{write(tmp_path / 'set', rows, annotation=datasets.Image())}", "train", {"masks"})
    check(data)
    found = data.sample(0).objects
    assert sorted(found.classes.tolist()) == [1, 2, 2] and sorted(found.areas.tolist()) == [24, 24, 40]


def test_an_image_folder_with_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for i in range(3):
        for kind, pixels in (("images", picture(i)), ("masks", ids(i))):
            for split in ("train", "validation"):
                file = folder / split / kind / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(png(pixels))
    with pytest.raises(DataError, match=r"were read as classes of column 'label'.*metadata\.jsonl.*mask_file_name"):
        open_dataset(f"hf:{folder}", "train")
    lines = [{"file_name": f"images/{i}.png", "mask_file_name": f"masks/{i}.png"} for i in range(3)]
    for split in ("train", "validation"):
        (folder / split / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = open_dataset(f"hf:{named(folder)}", "train")
    check(data, 0)
    assert np.array_equal(data.sample(2).labels, ids(2))


# Splits, names, what is wrong --------------------------------------------------------------------------------------


def test_a_tenth_is_held_out_and_known_again(tmp_path: Path) -> None:
    folder = named(write(tmp_path / "set", semantic(20), alone=True))
    train, val = (open_dataset(f"hf:{folder}", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (18, 2) and "drawn with seed 0" in train.unused[-1]
    kept = [val.sample(i).image.permute(1, 2, 0).numpy() for i in range(2)]
    assert all(np.array_equal(kept[i], picture(row)) for i, row in enumerate(held_out(20)))
    now = Fingerprint.of(train)
    assert now.differences(Fingerprint.of(open_dataset(f"hf:{folder}", "train"))) == ""
    write(folder, semantic(21), alone=True)
    assert "rows" in now.differences(Fingerprint.of(open_dataset(f"hf:{folder}", "train")))
    with pytest.raises(FileNotFoundError, match="no split 'test' in .*; it has train"):
        open_dataset(f"hf:{folder}", "test")


def test_nameless_classes_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", semantic())
    said = r'Stored in 4 masks: 1 \(.*255 \(0\.12%\).*"class_2"\].*"ignored_values": \[255\]'
    with pytest.raises(DataError, match=said) as error:
        open_dataset(f"hf:{folder}", "train")
    file = tmp_path / "classes.json"
    file.write_text(str(error.value)[str(error.value).index("{") :])
    assert open_dataset(f"hf:{folder}?classes={file}", "train").labels.num_classes == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda row: row | {"mask": row["label"]},
            "several columns may be its mask: label, mask; name it as .mask=COLUMN",
        ),
        (lambda row: {"photo": row["image"], "label": row["label"]}, r"no column is its image.*photo \(struct"),
        (lambda row: {"image": row["image"]}, "neither a mask nor objects"),
        (lambda row: row | {"label": png(picture(0))}, r"row 0, column label holds colours \(mode RGB\)"),
        (lambda row: row | {"label": png(ids(0)[:20])}, "sizes differ: 36x20 in the mask of .* row 0, "),
        (
            lambda row: row | {"label": png(ids(0) + np.uint8(1) * (ids(0) == 2))},
            r"row 0, column label: class ids out of range: 3 \(",
        ),
        (lambda row: row | {"image": b"no picture"}, "row 0: "),
    ],
)
def test_what_is_wrong_is_named(change: Any, message: str, tmp_path: Path) -> None:
    folder = named(write(tmp_path / "set", [change(row) for row in semantic(3)]))
    with pytest.raises(DataError, match=message):
        open_dataset(f"hf:{folder}", "train").sample(0)


def test_boxes_that_are_corners_are_asked_about(tmp_path: Path) -> None:
    objects = {"bbox": [[20.0, 10.0, 30.0, 20.0]] * 3, "category": ["car"] * 3}
    folder = write(tmp_path / "set", [{"image": png(picture(i)), "objects": objects} for i in range(4)])
    with pytest.raises(DataError, match="12 of its 12 boxes reach out of their pictures, as corners none"):
        open_dataset(f"hf:{folder}", "train", {"boxes"})
    data = open_dataset(f"hf:{folder}?boxes=corners", "train", {"boxes"})
    assert data.sample(0).objects.boxes[0].tolist() == [20, 10, 30, 20]


@pytest.mark.parametrize(
    "name, message",
    [
        ("hf:", "cannot understand 'hf:'"),
        ("hf:./nowhere", "no such folder"),
        ("hf:a/b?colour=x", "unknown option 'colour'; there are image, mask"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(name, "train")


SEGMENTS = ({"id": 263, "category_id": 1, "isthing": 0}, {"id": 131073, "category_id": 2, "isthing": 1})


@pytest.mark.parametrize(
    "more, message",
    [
        (SEGMENTS[1], "row 0: segment 131073 of segments_info is listed twice"),
        ({"id": 0, "category_id": 0, "isthing": 0}, "row 0: segment 0 of segments_info means none"),
        ({"id": 99, "category_id": 0, "isthing": 0}, "row 0: segment 99 of segments_info has no pixel"),
        ({"id": 99, "category_id": 9, "isthing": 1}, "category 9 has no name; there are 3"),
        ({"id": 99, "category_id": 2, "isthing": 0}, "category 2 is marked as a thing and as none"),
    ],
)
def test_segments_that_are_wrong(more: dict[str, int], message: str, tmp_path: Path) -> None:
    colours = np.zeros((H, W, 3), np.uint8)
    colours[:, 5:], colours[3:9, 10:20] = (7, 1, 0), (1, 0, 2)
    row = {"image": png(picture(0)), "label": png(colours), "segments_info": [*SEGMENTS, more]}
    with pytest.raises(DataError, match=message):
        open_dataset(f"hf:{named(write(tmp_path / 'set', [row]))}", "train", {"segments"}).sample(0)


def test_a_row_with_other_classes(tmp_path: Path) -> None:
    colours = np.full((H, W, 3), (1, 1, 0), np.uint8)
    row = {"image": png(picture(0)), "annotation": png(colours)}
    rows = [row | {"semantic_class_to_id": json.dumps({"a": i, "b": 1 - i})} for i in (0, 1)]
    data = open_dataset(f"hf:{write(tmp_path / 'set', rows)}", "train", {"masks"})
    assert data.sample(0).objects.classes.tolist() == [1]
    with pytest.raises(DataError, match="row 1: its semantic_class_to_id is another than that of row 0"):
        data.sample(1)


@pytest.mark.parametrize("option", ["", "?boxes=widths", "?boxes=corners"])
def test_boxes_in_shares_are_refused(option: str, tmp_path: Path) -> None:
    objects = {"bbox": [[0.1, 0.2, 0.3, 0.4]] * 3, "category": ["car"] * 3}
    folder = write(tmp_path / "set", [{"image": png(picture(i)), "objects": objects} for i in range(2)])
    with pytest.raises(DataError, match="all numbers of its boxes lie in 0..1"):
        open_dataset(f"hf:{folder}{option}", "train", {"boxes"})


def test_the_rules_of_a_classes_file_beside_the_data(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", semantic())
    table = {"names": NAMES, "things": [2], "white_level": 4095, "exif": "ignore"}
    (folder / "classes.json").write_text(json.dumps(table))
    data = open_dataset(f"hf:{folder}", "train")
    assert data.labels.things == (2,) and (data.reading.white_level, data.reading.exif) == (4095, "ignore")
    (folder / "classes.json").write_text(json.dumps({"names": NAMES, "pallete": []}))
    with pytest.raises(DataError, match="unknown key 'pallete'; nearest: palette"):
        open_dataset(f"hf:{folder}", "train")


def test_what_nobody_says_is_read_as_the_model_does(tmp_path: Path) -> None:
    folder = named(write(tmp_path / "set", semantic()))
    reading = Reading(otherwise=Reading(white_level=1023, exif="ignore"))
    found = open_dataset(f"hf:{folder}", "train", reading=reading).reading
    assert (found.white_level, found.exif) == (1023, "ignore")
