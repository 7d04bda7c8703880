"""What can be wrong in COCO's instance json: refused in one line with file and entry, or used and told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import coco

from fapn_zoo.data import DataError, open_dataset
from fapn_zoo.data.check import check_data
from fapn_zoo.data.sample import BOXES, MASKS
from fapn_zoo.data.supervision import check_supervision
from fapn_zoo.data.transforms import TrainTransform
from fapn_zoo.tasks import TASKS
from fapn_zoo.tasks.targets import collate

pytestmark = pytest.mark.unit
HEIGHT, WIDTH = coco.SIZE


def changed(root: Path, change: Callable[[dict[str, Any]], Any], **options: Any) -> Path:
    content = coco.table(**options)
    coco.write(root, content)
    change(content)
    (root / "annotations_train.json").write_text(json.dumps(content))
    return root


def entry(**values: Any) -> Callable[[dict[str, Any]], Any]:
    """Changes annotation 5, of 002.png."""
    return lambda content: content["annotations"][4].update(values)


RLE = {"size": [HEIGHT, WIDTH], "counts": [100, 10, HEIGHT * WIDTH - 110]}
REFUSED = {
    "outside": (entry(bbox=[60, 2, 5, 5]), r"annotation 5 of 002.png has bbox .*5\], which is outside .*56x40"),
    "left of it": (entry(bbox=[-9, 2, 9, 5]), "annotation 5 of 002.png has bbox .*which is outside"),
    "inverted": (entry(bbox=[9, 9, -3, 4]), r"annotation 5 of 002.png has bbox \[9, 9, -3, 4\]: width and height"),
    "zero": (entry(bbox=[9, 9, 0, 4], segmentation=[]), "annotation 5 of 002.png has bbox .*must be above 0"),
    "NaN": (entry(bbox=[9, 9, float("nan"), 4]), r"annotation 5 of 002.png has bbox \[9, 9, nan, 4\]; expected four"),
    "three numbers": (entry(bbox=[9, 9, 4]), "annotation 5 of 002.png has bbox .*expected four numbers"),
    "text": (entry(bbox=["9", 9, 4, 4]), "annotation 5 of 002.png has bbox .*expected four numbers"),
    "neither": (entry(bbox=[], segmentation=[]), "annotation 5 of 002.png has neither a bbox nor a segmentation"),
    "two points": (entry(segmentation=[[1, 2, 3, 4]]), "annotation 5 of 002.png has a polygon of 2 points; expected 3"),
    "odd": (entry(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 5 of 002.png has a polygon .*expected num"),
    "pairs": (entry(segmentation=[[[1, 2], [3, 4], [5, 6]]]), "annotation 5 of 002.png has a polygon .*expected num"),
    "flat": (entry(segmentation=[1, 2, 3, 4, 5, 6]), "annotation 5 of 002.png has segmentation .*expected polygons"),
    "NaN polygon": (entry(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "annotation 5 of 002.png has a polygon"),
    "another size": (entry(segmentation=RLE | {"size": [9, 8]}), "annotation 5 of 002.png has run lengths .* of 8x9, "),
    "turned size": (entry(segmentation=RLE | {"size": [WIDTH, HEIGHT]}), "of a picture of 40x56, its own is 56x40"),
    "no counts": (entry(segmentation={"size": [HEIGHT, WIDTH]}), "annotation 5 of 002.png has run lengths None; "),
    "text category": (entry(category_id="2"), "annotation 5 of 002.png has category_id '2'; expected a whole number"),
    "unknown category": (entry(category_id=9), "annotation 5 of 002.png is of category 9, which is not .* 1, 2, 3"),
    "unknown image": (entry(image_id=77), "annotation 5 is of image 77, which is not among the 3 images"),
    "text image": (entry(image_id="2"), "annotation 5 is of image '2', which is not among"),
    "crowd of 2": (entry(iscrowd=2), "annotation 5 of 002.png has iscrowd 2; expected 0 or 1"),
    "area": (entry(area=-3), "annotation 5 of 002.png has area -3; expected a number of 0 or more"),
    "no object": (lambda c: c["annotations"].insert(0, None), r"annotations\[0\] is None; expected an object"),
    "image id twice": (lambda c: c["images"][2].update(id=1), "image id 1 is of two pictures, 001.png and 003.png"),
    "file twice": (lambda c: c["images"][2].update(file_name="001.png"), "001.png is of two images 1 and 3"),
    "no size": (lambda c: c["images"][1].pop("width"), r"images\[1\] lacks width \(int\)"),
    "size of 0": (lambda c: c["images"][1].update(width=0), r"images\[1\] \(002.png\) has height 40 and width 0"),
    "outside of it": (lambda c: c["images"][1].update(file_name="../x.png"), r"images\[1\] names the file '../x.png'"),
    "no picture": (lambda c: c["images"][1].update(file_name="9.png"), "9.png.*annotations_train.json"),
    "category twice": (lambda c: c["categories"][1].update(id=1), "category id 1 is listed twice"),
    "name twice": (lambda c: c["categories"][1].update(name="kind 1"), "class names must differ; repeated: 'kind 1'"),
    "no category": (lambda c: c.update(categories=[]), "at least one; got none"),
    "no list": (lambda c: c.update(images={}), "is no COCO file: expected an object with lists images, annotations"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, case: str):
    change, message = REFUSED[case]
    root = changed(tmp_path, change)
    with pytest.raises(DataError, match=message) as error:
        open_dataset(root, "train", BOXES)
    text = str(error.value)
    assert "\n" not in text and str(tmp_path / "annotations_train.json") in text
    report = check_data(root, progress=False)
    errors = [problem.detail for problem in report.problems if problem.error and "image 3, which" not in problem.detail]
    assert not report.ok and len(errors) == 1 and errors[0] in report.render()


def test_how_many_more_there_are_is_said_and_all_are_listed(tmp_path: Path):
    def spoil(content: dict[str, Any]) -> None:
        for one in content["annotations"][2:6]:
            one["bbox"][2] = 0
            one["segmentation"] = []
        content["annotations"][7]["category_id"] = 50

    root = changed(tmp_path, spoil)
    with pytest.raises(
        DataError, match=r"annotation 3 of 001.png .*\(bad box: 3 more\); 1 other kinds of errors too, fap"
    ):
        open_dataset(root, "train", BOXES)
    report = check_data(root, progress=False)
    assert [problem.kind for problem in report.problems if problem.error] == ["bad box"] * 4 + [
        "of nothing that is listed"
    ]
    assert report.splits["train"].pixels.tolist() == [2, 1, 1, 0]  # what is good is counted


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (entry(bbox=[-4, 30, 20, 12.25]), "annotation 5 of 002.png reaches out by 4 pixels"),
        (entry(bbox=[9, 9, 0, 4]), "annotation 5 of 002.png has bbox [9, 9, 0, 4]; it is not trained"),
        (entry(id=3), "annotation 3 is there 2 times; all are used"),
        (entry(segmentation=[[1, 2, 3, 4], [1, 1, 9, 1, 9, 9]]), "1 of its 2 polygons have fewer than 3 points"),
        (entry(segmentation=None), "only boxes are used: 1 of 9 objects have no mask, such as annotation 5"),
        (entry(segmentation=[[]]), "only boxes are used: 1 of 9 objects have no mask, such as annotation 5"),
    ],
)  # fmt: skip
def test_what_is_used_and_told(tmp_path: Path, change: Callable, told: str, caplog: pytest.LogCaptureFixture):
    root = changed(tmp_path, change)
    data = open_dataset(root, "train", BOXES)
    assert told in caplog.text and sum(len(data.sample(i).objects.classes) for i in range(3)) == 9
    report = check_data(root, progress=False)
    assert report.ok and told in report.render()


def test_a_box_is_scored_as_annotated_and_trained_within_the_picture(tmp_path: Path):
    data = open_dataset(changed(tmp_path, entry(bbox=[-4, 30, 20, 12.25])), "train", BOXES)
    sample = data.sample(1)
    assert sample.objects.boxes[1].tolist() == [-4, 30, 16, 42.25]
    moved = TrainTransform((HEIGHT, WIDTH), (1, 1), flip=0, needs=BOXES)(sample, 0)
    assert moved.objects.boxes[1].tolist() == [0, 30, 16, 40]


def test_run_lengths_that_do_not_add_up_are_found_when_they_are_read(tmp_path: Path):
    for number, counts in enumerate(([5, 5], "zz~", "0", [-4, HEIGHT * WIDTH + 4])):
        root = changed(tmp_path / str(number), entry(segmentation=RLE | {"counts": counts}))
        data = open_dataset(root, "train", MASKS)
        with pytest.raises(DataError, match="annotations_train.json: annotation 5 of 002.png: its run lengths"):
            data.sample(1)
        assert len(data.sample(0).objects.classes) == 3
        assert [problem.kind for problem in check_data(root, progress=False).problems] == ["bad mask"]


def test_json_that_is_none(tmp_path: Path):
    root = coco.write(tmp_path, coco.table())
    file = root / "annotations_train.json"
    text = file.read_text()
    file.write_text("\ufeff" + text, encoding="utf-8")
    assert len(open_dataset(root, "train", BOXES)) == 3  # a byte-order mark does no harm
    for content in (text[:-40].encode(), b"", text.encode("utf-16"), b"[1]", b"\xff" + text.encode()):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"annotations_train.json is n(ot readable JSON|o COCO file)"):
            open_dataset(root, "train", BOXES)
        assert not check_data(root, progress=False).ok


def test_a_picture_of_another_size_or_turned(tmp_path: Path):
    root = changed(tmp_path, lambda content: content["images"][1].update(height=WIDTH, width=HEIGHT))
    data = open_dataset(root, "train", BOXES)
    with pytest.raises(DataError, match=r"40x56 in .*annotations_train.json, 56x40 in .*002.png"):
        data.sample(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    picture.save(root / "train/images/002.png", exif=exif)
    assert data.sample(1).size == (WIDTH, HEIGHT)  # labelled on what a browser shows
    picture.save(root / "train/images/003.png", exif=exif)
    with pytest.raises(
        DataError, match="40x56 in .*003.png .the picture is turned by its EXIF orientation 6, its labels are not; "
    ):
        data.sample(2)
    report = check_data(root, progress=False)
    assert [problem.kind for problem in report.problems if problem.error] == ["size mismatch"]
    (root / "classes.json").write_text('{"names": ["x"], "exif": "ignore"}')
    assert open_dataset(root, "train", BOXES).sample(2).size == (HEIGHT, WIDTH)
    with pytest.raises(DataError, match="56x40 in .*002.png .*exif=apply would fit"):
        open_dataset(root, "train", BOXES).sample(1)


def test_pictures_without_objects_are_trained_and_a_set_without_any_is_refused(tmp_path: Path):
    def without(image: int) -> Callable:
        return lambda c: c.update(annotations=[one for one in c["annotations"] if one["image_id"] == image])

    data = open_dataset(changed(tmp_path / "a", without(2)), "train", BOXES)
    check_supervision(data, None, BOXES)
    samples = [TrainTransform((32, 32), needs=BOXES)(data.sample(i), i) for i in (0, 2)]
    batch = collate(samples, TASKS["detection"], data.labels, 32)
    assert [len(boxes) for boxes in batch.targets.boxes] == [0, 0] and batch.targets.boxes[0].shape == (0, 4)
    data = open_dataset(changed(tmp_path / "b", without(9)), "train", MASKS)
    assert data.holds == MASKS
    samples = [TrainTransform((32, 32), needs=MASKS)(data.sample(i), i) for i in (0, 2)]
    assert collate(samples, TASKS["instance"], data.labels, 32).targets.masks[1].shape == (0, 32, 32)
    with pytest.raises(
        DataError, match="nothing to learn: b, to train on: no object of any class that is no crowd, of kind"
    ):
        check_supervision(data, None, MASKS)
    crowds = open_dataset(
        changed(tmp_path / "c", lambda c: [o.update(iscrowd=1) for o in c["annotations"]]), "train", BOXES
    )
    with pytest.raises(DataError, match="no object of any class that is no crowd"):
        check_supervision(crowds, None, BOXES)
    report = check_data(tmp_path / "a", progress=False)
    assert (
        report.ok
        and "3 pictures, 2 without objects; 3 objects (3 small, 0 medium, 0 large), 0 crowds" in report.render()
    )
    assert not check_data(tmp_path / "b", progress=False).ok and not check_data(tmp_path / "c", progress=False).ok


def test_one_pixel_and_three_hundred_objects(tmp_path: Path):
    def many(content: dict[str, Any]) -> None:
        one = {"size": [HEIGHT, WIDTH], "counts": [0, 1, HEIGHT * WIDTH - 1]}
        content["annotations"] = [coco.annotation(1, 1, 1, [0, 0, 1, 1], segmentation=one, area=1)]
        rng = np.random.default_rng(0)
        for number in range(2, 302):
            box = [*rng.integers(0, 30, 2).tolist(), 8, 6]
            content["annotations"].append(coco.annotation(number, 2, 3, box, segmentation=coco.polygon(box)))

    root = changed(tmp_path, many)
    data = open_dataset(root, "train", MASKS)
    objects = data.sample(0).objects
    assert objects.areas.tolist() == [1] and objects.crop(0).pixels.tolist() == [[True]]
    sample = data.sample(1)
    targets = TASKS["instance"].targets(sample, data.labels)
    assert targets.masks[0].shape == (300, HEIGHT, WIDTH) and targets.boxes[0].dtype == torch.float32


def test_the_same_picture_in_two_splits_is_an_error(tmp_path: Path):
    coco.write(tmp_path, coco.table())
    coco.write(tmp_path, coco.table(), "annotations_val.json", "val/images")
    report = check_data(tmp_path, progress=False)
    assert [problem.kind for problem in report.problems] == ["same picture in two splits"] * 3


def test_a_class_that_nobody_uses_stays_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = changed(tmp_path, lambda c: c["categories"].append({"id": 9, "name": "rare"}))
    data = open_dataset(root, "train", BOXES)
    assert data.labels.names[3] == "rare" and data.labels.category_ids == (1, 2, 3, 9)
    with caplog.at_level(logging.WARNING):
        check_supervision(data, None, BOXES)
    assert "classes that never occur" in caplog.text and "rare" in caplog.text
