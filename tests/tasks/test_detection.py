"""Detection from the image to the report: results, pictures, files, scores, and the fate of other tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys.detections import SMALL
from toys.detections import known_model as model

import fapn_zoo
from fapn_zoo.evaluate import compare, evaluate, render, write_report
from fapn_zoo.modules.heads.outputs import DetectionOutput, InstanceOutput
from fapn_zoo.predict.files import predict_files
from fapn_zoo.tasks.drawing import MOST_TEXTS, boxed, object_colours, write_texts

pytestmark = pytest.mark.unit


def test_result_of_a_detection():
    result = model().predict(np.full((64, 96, 3), 128, np.uint8))
    assert result.task == "detection" and result.labels is None is result.scores is result.masks
    assert result.boxes.tolist() == [[10, 20, 50, 40]] and result.boxes.dtype == np.float32
    (segment,) = result.segments
    assert segment["bbox"] == [10, 20, 40, 20] and segment["area"] == 800 and segment["category_id"] == 2
    assert segment["isthing"] and segment["score"] == pytest.approx(0.9)
    assert repr(result) == "Result('image', 96x64 pixels, detection, 1 object: 1 class_2)"
    assert json.loads(json.dumps(result.to_dict()))["size"] == [64, 96] and result.class_shares() == {}
    with pytest.raises(ValueError, match="a detection result has boxes and no class map"):
        result.label_image()


def test_pictures_show_boxes(tmp_path: Path):
    image = np.full((64, 96, 3), 128, np.uint8)
    result = model().predict(image)
    shown = np.array(result.overlay(legend=True))
    assert shown.shape == image.shape and (shown[20, 10:50] != 128).any(1).all() and (shown[30, 11:49] == 128).all()
    assert [p.name for p in result.save(tmp_path / "folder")] == ["image_overlay.png"]
    assert [p.name for p in result.save(tmp_path / "one.jpg")] == ["one.jpg"]


def test_texts_do_not_lie_on_each_other():
    image, boxes = np.zeros((400, 400, 3), np.uint8), np.float32([[100, 100, 180, 180]] * 3)
    places = write_texts(Image.fromarray(image), boxes, ["first 90%"] * 3, [(200, 0, 0)] * 3)
    assert len(places) == 3 and places[0][:2] == (100, 100 - (places[0][3] - places[0][1]))
    for n, (x1, y1, x2, y2) in enumerate(places):
        assert all(x2 <= a or c <= x1 or y2 <= b or d <= y1 for a, b, c, d in places[:n])
        assert x2 <= 100 or x1 >= 180 or y2 <= 100 or y1 >= 180, "it hides the object"
    close = np.float32([[x, y, x + 8, y + 8] for y in range(40, 360, 9) for x in range(40, 360, 9)])
    assert len(write_texts(Image.fromarray(image), close, ["cell 90%"] * len(close), [(9, 9, 9)] * len(close))) <= 40
    assert len(write_texts(Image.new("RGB", (64, 64)), boxes - 100, ["a long name 90%"] * 3, [(9, 9, 9)] * 3)) == 1
    many = np.float32([[x, 200, x + 1, 201] for x in range(200)])
    boxed(image, many, ["x"] * 200, [(0, 200, 0)] * 200)
    assert MOST_TEXTS < 200
    edges = np.float32([[0, 0, 400, 400], [399, 399, 400, 400], [0, 0, 0.2, 0.2]])
    boxed(image, edges, ["whole", "corner", "dot"], [(1, 2, 3)] * 3)
    assert boxed(image, np.zeros((0, 4), np.float32), [], []).size == (400, 400)


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_files_and_summary(head: str, tmp_path: Path):
    Image.new("RGB", (96, 64)).save(tmp_path / "a.png")
    summary = predict_files(model(head), tmp_path / "a.png", tmp_path / "out", progress=False)
    (entry,) = summary["images"]
    assert entry["segments"][0]["bbox"] == [10, 20, 40, 20] and entry["size"] == [64, 96]
    assert ("labels" in entry) == ("classes" in entry) == (head == "mask_rcnn")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"summary.json", "a_overlay.png"} | ({"a_labels.png"} if head == "mask_rcnn" else set())


def test_masks_and_boxes_of_one_model():
    made, image = model("mask_rcnn"), np.zeros((64, 96, 3), np.uint8)
    result = made.predict(image)
    assert result.task == "instance" and result.masks.shape == (1, 64, 96) and result.masks.sum() == 800
    assert result.segments[0]["area"] == 800 and result.boxes.tolist() == [[10, 20, 50, 40]]
    assert (result.labels[20:40, 10:50] == 2).all() and result.segment_map.max() == 1
    boxes = made.predict(image, task="detection")
    assert boxes.boxes.tolist() == result.boxes.tolist() and boxes.labels is None
    with pytest.raises(ValueError, match="task 'semantic'; mask_rcnn_fpn has instance, detection"):
        made.predict(image, task="semantic")


def test_boxes_follow_the_image_through_the_resize():
    made = model()
    made.spec = fapn_zoo.create_model(
        "faster_rcnn_fpn", num_classes=3, data=fapn_zoo.DataSpec(test_size=64), **SMALL
    ).spec
    result = made.predict(np.zeros((128, 192, 3), np.uint8))
    assert result.boxes.tolist() == [[20, 40, 100, 80]]


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_true_boxes_score_everything(head: str, tmp_path: Path):
    from fapn_zoo.data import open_dataset

    data = open_dataset("scenes:4@96x128", "test", ("segments",))
    made = fapn_zoo.create_model(
        f"{head}_fpn", num_classes=data.labels.num_classes, data=fapn_zoo.DataSpec(labels=data.labels.names), **SMALL
    ).eval()
    queue = iter([true_boxes(data.sample(i).objects, data.labels.things) for i in range(len(data))])
    made.head.forward = lambda *_: next(queue) if head == "faster_rcnn" else with_masks(next(queue))
    report = evaluate(made, data, task="detection", progress=False)
    assert report["box_ap"] == report["box_ap50"] == report["box_ar"] == 1.0
    assert "box AP" in render(report) and all(set(row) >= {"box_ap", "truth"} for row in report["classes"])
    write_report(report, csv=tmp_path / "scores.csv")
    header, row = (line.split(",") for line in (tmp_path / "scores.csv").read_text().splitlines())
    assert len(header) == len(set(header)) == len(row) and row[header.index("box_ap")] == "100.00"
    with pytest.raises(ValueError, match="cannot be compared"):
        compare([made, made], data, task="detection", progress=False)


def true_boxes(objects, things: tuple[int, ...]) -> DetectionOutput:
    rows = [m for m, c in enumerate(objects.classes) if c in things and not objects.crowd[m]]
    boxes = []
    for m in rows:
        y, x = np.nonzero(objects.ids == m + 1)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.linspace(1, 0.6, len(rows))
    return DetectionOutput((found[0],), (found[1],), (torch.from_numpy(objects.classes[rows]),))


def with_masks(found: DetectionOutput) -> InstanceOutput:
    return InstanceOutput(*found[:3], (torch.zeros(len(found.boxes[0]), 28, 28),))


def test_objects_of_a_class_are_told_apart():
    colours = object_colours([0] * 12 + [1], [(200, 30, 30), (30, 30, 200)])
    assert len(set(colours)) == 13 and colours[0] == (200, 30, 30) and colours[12] == (30, 30, 200)
    assert object_colours([], []) == []
