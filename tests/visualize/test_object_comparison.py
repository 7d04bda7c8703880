"""Objects of several models beside each other and the true ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fapn_zoo
from fapn_zoo.cli import main
from fapn_zoo.data.sample import BOXES, MASKS, SEGMENTS, Crop, Objects
from fapn_zoo.tasks.result import Result
from fapn_zoo.visualize import data_items, render, side_by_side
from fapn_zoo.visualize.comparison import ObjectComparison
from fapn_zoo.visualize.comparison_pictures import HIT, WRONG, WRONG_NEAR, _object_errors

pytestmark = pytest.mark.unit
TASKS = {"panoptic": SEGMENTS, "instance": MASKS, "detection": BOXES}
TINY = {"backbone": "resnet10t", "backbone_channels": (8, 8, 16, 16), "neck_out_channels": 16, "num_classes": 11}


def square(x: int, y: int, side: int = 8) -> Crop:
    return Crop(np.ones((side, side), bool), y, x)


def objects(*crops: Crop, classes: list[int], crowd: list[int] | None = None) -> Objects:
    return Objects(None, np.array(classes, np.int64), np.array(crowd or [0] * len(classes), bool), crops)


def answer(truth: Objects, task: str, size: tuple[int, int] = (40, 60), names: tuple[str, ...] = ("a", "b")) -> Result:
    """A result that is the truth but for its crowds."""
    truth = truth.only(~truth.crowd)
    segments = []
    for i, (category, (x1, y1, x2, y2)) in enumerate(zip(truth.classes.tolist(), truth.boxes.tolist(), strict=True), 1):
        bbox = [int(side) for side in (x1, y1, x2 - x1, y2 - y1)]
        segments.append({"id": i, "category_id": category, "isthing": True, "score": 1.0, "bbox": bbox})
    palette = ((9, 9, 9), (99, 9, 9)) * 6
    result = Result(np.zeros((*size, 3), np.uint8), None, None, segments, names, palette, task=task)
    if task == "detection":
        result.boxes = truth.boxes.astype(np.float32)
    else:
        result.segment_map = truth.map(size)
        result.labels = np.zeros(size, np.uint8)
    return result


@pytest.mark.parametrize("task", TASKS)
def test_hits_misses_and_wrong_ones(task: str) -> None:
    truth = objects(
        square(0, 0), square(20, 0), square(40, 20), square(50, 30, 9), classes=[0, 0, 1, 1], crowd=[0, 0, 0, 1]
    )
    moved = objects(square(2, 0), square(25, 0), square(40, 20), square(51, 31, 4), classes=[0, 0, 0, 1])
    found = ObjectComparison("x", ["same", "moved"], [answer(truth, task), answer(moved, task)], truth)
    same, other = found.count()
    assert same.scores() == {"f1": 1.0, "hits": 3, "missed": 0, "false": 0}
    # moved by 2 of 8: IoU 0.6; by 5: 0.23; another class; in a crowd, which counts for nothing
    assert other.scores() == {"f1": pytest.approx(1 / 3), "hits": 1, "missed": 2, "false": 2}
    colours = _object_errors(found, 1).reshape(-1, 3)
    assert all((colours == colour).all(1).any() for colour in (HIT, WRONG, WRONG_NEAR))
    assert found.agreement == pytest.approx(2 / 7)


def test_an_image_without_objects() -> None:
    none = objects(classes=[])
    found = ObjectComparison("x", ["a", "b"], [answer(none, "instance")] * 2, none)
    assert [one.scores()["f1"] for one in found.count()] == [None, None] and found.agreement == 1


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_of_scenes_hits_itself(task: str) -> None:
    names = {"panoptic": "panoptic_fpn_fpn", "instance": "mask_rcnn_fpn", "detection": "faster_rcnn_fpn"}
    model = fapn_zoo.create_model(names[task], things=(8, 9, 10), **TINY).eval()
    (item,) = data_items(model, "scenes:1@96x128", "val", needs=TASKS[task])
    empty = fapn_zoo.predict.predict(model, item.image, task=task, amp="no")
    truth = answer(item.objects, task, (96, 128), empty.names)
    found = ObjectComparison("x", ["a", "b"], [truth, empty], item.objects)
    assert found.count()[0].f1 == 1 and found.count()[0].hits == len(item.objects.classes) > 0


@pytest.mark.parametrize("task", TASKS)
def test_the_verb_writes_sheets_and_numbers(task: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for neck, options in (("fpn", {}), ("fapn", {"neck_deform_groups": 2})):
        torch.manual_seed(0)
        model = fapn_zoo.create_model(f"panoptic_fpn_{neck}", things=(8, 9, 10), **TINY, **options).eval()
        model.save(tmp_path / neck)
    models = [f"local-dir:{tmp_path / neck}" for neck in ("fpn", "fapn")]
    words = ["--data", "scenes:2@96x128", "--split", "val", "--out", str(tmp_path / "out"), "--task", task]
    assert not main(["compare", *models, *words])
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["task"] == task and len(report["images"]) == 2
    assert {"f1", "hits", "missed", "false"} == set(report["total"]["scores"][models[0]])
    sums = [row["scores"][models[0]]["missed"] for row in report["images"]]
    assert report["total"]["scores"][models[0]]["missed"] == sum(sums)
    with Image.open(tmp_path / "out" / report["images"][0]["file"]) as sheet:
        assert sheet.width > 900
    assert "A F1" in capsys.readouterr().out and "missed" in render(report)


def test_all_models_must_answer_the_task(tmp_path: Path) -> None:
    models = {name: fapn_zoo.create_model(name, **TINY).eval() for name in ("mask_rcnn_fpn", "faster_rcnn_fpn")}
    with pytest.raises(ValueError, match="task 'instance'; faster_rcnn_fpn has detection"):
        side_by_side(models, [], tmp_path)


def test_report_names_the_pictures_with_the_least_agreement():
    shares = (0.9, 0.2, 1, 0.5, 0.1, 0.8)
    rows = [{"name": str(i), "file": f"{i}.png", "agree": share} for i, share in enumerate(shares)]
    report = {"models": ["one", "two"], "task": "instance", "images": rows, "total": {"agree": 0.6}}
    assert "least agreement: 4.png, 1.png, 3.png, 5.png, 0.png" in render(report)
    assert "least agreement" not in render(report | {"images": rows[:5]})
