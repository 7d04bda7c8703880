"""Results in COCO's forms, by the folder too: what other readers find in them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toys.detections import Known, known_model
from toys.panoptic import Oracle, Painted
from toys.prediction import BrightSquare, square

from fapn_zoo.data import open_dataset
from fapn_zoo.modules.heads.outputs import InstanceOutput
from fapn_zoo.predict import predict
from fapn_zoo.predict.files import predict_files

pytestmark = pytest.mark.unit
IDS = (0, 7, 90)


def model(head: str = "mask_rcnn", **found) -> nn.Module:
    """Category ids with a 0 and gaps; the second class is found nowhere."""
    made = known_model(head, **found)
    data = dataclasses.replace(made.data, labels=("cell", "unused", "dust"), category_ids=IDS)
    made.spec = dataclasses.replace(made.spec, data=data)
    return made


def image(path: Path, size: tuple[int, int] = (64, 96)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1]).save(path)
    return path


def test_entries_of_detections_and_instances():
    picture = np.zeros((64, 96, 3), np.uint8)
    (entry,) = model("faster_rcnn").predict(picture).to_coco(image_id=17)
    assert entry == {"image_id": 17, "category_id": 90, "bbox": [10, 20, 40, 20], "score": pytest.approx(0.9)}
    masks = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")
    result = model().predict(picture)
    (entry,) = result.to_coco("a.png")
    assert json.loads(json.dumps(entry)) == entry and entry["segmentation"]["size"] == [64, 96]
    assert np.array_equal(masks.decode(entry["segmentation"]).astype(bool), result.masks[0])
    unnamed = dataclasses.replace(result, category_ids=())
    assert unnamed.to_coco()[0]["category_id"] == 3


def test_entries_of_classes_and_panoptic_segments():
    masks = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")
    result = predict(BrightSquare(), square())
    decoded = [masks.decode(e["segmentation"]).astype(bool) for e in result.to_coco()]
    found = zip(decoded, result.segments, strict=True)
    assert all(np.array_equal(mask, result.labels == s["category_id"]) for mask, s in found)
    with pytest.raises(ValueError, match="a semantic result is no panoptic map"):
        result.to_coco_panoptic()
    truth = Painted(open_dataset("scenes:1@96x128", "test", ("segments",))).sample(0)
    result = predict(Oracle(), truth.image, task="panoptic")
    picture, segments = result.to_coco_panoptic()
    values = np.asarray(picture).astype(int) @ [1, 256, 65536]
    assert np.array_equal(values, result.segment_map) and len(segments) == len(result.segments) > 3
    assert [s["category_id"] for s in segments] == [s["category_id"] + 1 for s in result.segments]
    assert sum(e["segmentation"]["counts"] != "" for e in result.to_coco()) == len(segments)


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_a_folder_reads_back(head: str, tmp_path: Path):
    for name in ("a", "b"):
        image(tmp_path / "data" / "val" / f"{name}.png")
    file = tmp_path / "data" / "annotations_val.json"
    made, out = model(head), tmp_path / "out"
    for _ in range(2):
        predict_files(made, tmp_path / "data" / "val", out, coco=file, progress=False)
    data = open_dataset(tmp_path / "data", "val", ("masks",) if head == "mask_rcnn" else ("boxes",))
    assert data.labels.names == ("cell", "unused", "dust") and data.labels.category_ids == IDS and len(data) == 2
    expected, objects = made.predict(np.zeros((64, 96, 3), np.uint8)), data.sample(1).objects
    assert objects.classes.tolist() == [2] and objects.boxes.tolist() == expected.boxes.tolist()
    if head == "mask_rcnn":
        assert np.array_equal(objects.masks([0], (64, 96)), expected.masks)
    theirs = pytest.importorskip("pycocotools.coco", reason="needs pycocotools").COCO(file)
    assert theirs.loadCats(90)[0]["name"] == "dust" and sorted(theirs.getImgIds()) == [1, 2]
    scored = theirs.loadRes(json.loads(file.read_text())["annotations"])
    assert [a["score"] for a in scored.anns.values()] == pytest.approx([0.9, 0.9])


def test_a_panoptic_folder_reads_back(tmp_path: Path):
    source = Painted(open_dataset("scenes:3@96x128", "test", ("segments",)))
    for n in range(3):
        path = tmp_path / "data" / "images" / "deep" / f"{n + 40:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.sample(n).image.permute(1, 2, 0).numpy()).save(path)
    made = Oracle(category_ids=tuple(3 * k + 2 for k in range(11)))
    file, folder = tmp_path / "data" / "panoptic.json", tmp_path / "data" / "images"
    options = {"task": "panoptic", "coco": file, "progress": False}
    predict_files(made, folder / "deep", tmp_path / "out", **options)
    for entry in (table := json.loads(file.read_text()))["images"]:
        entry["file_name"] = f"deep/{entry['file_name']}"
    file.write_text(json.dumps(table))
    data = open_dataset(tmp_path / "data", "val", ("segments",))
    assert [image["id"] for image in table["images"]] == [40, 41, 42] and data.labels.names == made.data.labels
    assert data.labels.things == made.data.things
    for n in range(3):
        truth, found = source.sample(n), data.sample(n)
        assert sorted(found.objects.classes) == sorted(truth.objects.classes)
        assert np.array_equal(found.labels, truth.labels)

    class Stopped(Oracle):
        def forward(self, x, sizes=None, targets=None):
            if len(calls) == 1:
                raise KeyboardInterrupt
            calls.append(x)
            return super().forward(x)

    calls: list = []
    with pytest.raises(KeyboardInterrupt):
        predict_files(Stopped(), folder / "deep", tmp_path / "out", **options)
    assert not file.exists(), "its PNG files are of two runs"


def test_what_is_there_is_not_replaced(tmp_path: Path):
    folder = image(tmp_path / "in" / "1.png").parent
    image(folder / "1.jpg")
    made, out = model(), tmp_path / "out"
    truth = tmp_path / "annotations.json"
    truth.write_text('{"images": [], "annotations": [], "categories": []}')
    for name, words in (
        ("annotations.json", "is not of an earlier run"), ("in.json", "which has other files"),
        ("out.json", "which has other files"), ("a.txt", "must end in .json"), ("in/1.png/a.json", "is a file"),
    ):  # fmt: skip
        with pytest.raises((ValueError, OSError), match=words):
            predict_files(made, folder, out, coco=tmp_path / name, progress=False)
    assert "categories" in truth.read_text() and not out.exists()
    predict_files(made, folder, out, coco=tmp_path / "new" / "a.json", progress=False)
    assert [i["id"] for i in json.loads((tmp_path / "new" / "a.json").read_text())["images"]] == [1, 2]
    before = (tmp_path / "new" / "a.json").read_bytes()
    made.head = Known(InstanceOutput, [[0, 0, 5, 5]], [0], [0.9])
    made.head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        predict_files(made, folder, out, coco=tmp_path / "new" / "a.json", progress=False)
    assert (tmp_path / "new" / "a.json").read_bytes() == before and len(list((tmp_path / "new").iterdir())) == 1


def test_nothing_found_and_nothing_read(tmp_path: Path):
    (tmp_path / "broken.png").write_text("no image")
    made = model(boxes=[], classes=[], scores=[])
    made.head.found = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    inputs = [tmp_path / "broken.png", image(tmp_path / "b.png")]
    predict_files(made, inputs, tmp_path / "out", coco=tmp_path / "found.json", progress=False)
    table = json.loads((tmp_path / "found.json").read_text())
    assert table["annotations"] == [] and [i["file_name"] for i in table["images"]] == ["b.png"]
    assert [c["id"] for c in table["categories"]] == [*IDS]


def test_counts_and_words():
    result = model(boxes=[[10, 20, 50, 40], [0, 0, 5, 5], [9, 9, 20, 20]], classes=[2, 0, 2], scores=[0.9, 0.8, 0.7])
    result = result.predict(np.zeros((64, 96, 3), np.uint8))
    assert result.class_counts() == result.to_dict()["counts"] == {"dust": 2, "cell": 1}
    assert repr(result) == "Result('image', 96x64 pixels, instance, 3 objects: 2 dust, 1 cell)"
    assert set(result.class_shares()) == {"dust", "cell"} and predict(BrightSquare(), square()).class_counts() == {}


def test_supervision(monkeypatch):
    result = model().predict(np.zeros((64, 96, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match="pip install supervision"):
        result.to_supervision()
    monkeypatch.delitem(sys.modules, "supervision")
    pytest.importorskip("supervision", reason="needs supervision")
    found = result.to_supervision()
    assert len(found) == 1 and found.xyxy.tolist() == [[10, 20, 50, 40]] and found.class_id.tolist() == [2]
    assert np.array_equal(np.asarray(found.mask), result.masks) and found.data["class_name"].tolist() == ["dust"]
    assert found.confidence.tolist() == pytest.approx([0.9]) and len(found[found.confidence > 0.95]) == 0
    boxes = model("faster_rcnn").predict(np.zeros((64, 96, 3), np.uint8)).to_supervision()
    assert boxes.mask is None and boxes.xyxy.tolist() == [[10, 20, 50, 40]]
    classes = predict(BrightSquare(), square())
    areas = [int(mask.sum()) for mask in classes.to_supervision().mask]
    assert areas == [s["area"] for s in classes.segments]
    made = model()
    made.head.found = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert len(made.predict(np.zeros((64, 96, 3), np.uint8)).to_supervision()) == 0
