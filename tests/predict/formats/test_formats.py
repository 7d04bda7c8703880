"""Predictions written as data sets of other tools: our own sources find the same objects in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn
from toys.detections import known_model
from toys.panoptic import Oracle, Painted
from toys.prediction import BrightSquare, square

from fapn_zoo.data import open_dataset
from fapn_zoo.data.mask_decoding import crop_of
from fapn_zoo.data.mask_encoding import outline
from fapn_zoo.predict import predict
from fapn_zoo.predict.files import predict_files
from fapn_zoo.predict.formats import FORMATS
from fapn_zoo.tasks.coco import segment_masks
from fapn_zoo.tasks.result import Result

pytestmark = pytest.mark.unit
SIZE = (64, 96)
READ = sorted(FORMATS.keys() - {"imagefolder", "folder"})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for k, name in enumerate(("a", "b b", "ä")):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", SIZE[::-1], (k, 0, 0)).save(tmp_path / "in" / f"{name}.PNG")
    return tmp_path / "in"


def test_an_outline_makes_the_very_mask():
    rng = np.random.default_rng(0)
    for density in rng.random(300):
        size = tuple(rng.integers(1, 25, 2).tolist())
        mask = rng.random(size) < density
        mask[0, 0] |= not mask.any()
        crop = crop_of((outline(mask).ravel().astype(float),), size)
        full = np.zeros(size, bool)
        full[crop.y : crop.y + crop.pixels.shape[0], crop.x : crop.x + crop.pixels.shape[1]] = crop.pixels
        assert np.array_equal(full, mask)


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_objects_read_back(name: str, head: str, pictures: Path, tmp_path: Path):
    boxes = {"boxes": [[10.25, 20.5, 50.75, 40], [0, 0, 96, 64], [3, 5, 4.5, 6.5]], "classes": [2, 0, 1]}
    made = known_model(head, **boxes, scores=[0.9, 0.8, 0.7])
    out = tmp_path / "out"
    for _ in range(2):  # the second run replaces what the first one has written
        summary = predict_files(made, pictures, out, formats=[name], progress=False)
    assert summary["complete"] and not list(out.glob(".*.part"))
    masks = head == "mask_rcnn"
    data = open_dataset(out / name, "train", ("masks",) if masks else ("boxes",))
    assert data.labels.names == ("class_0", "class_1", "class_2") and len(data) == 3
    assert [data.sample(n).name for n in range(3)] == ["a", "b b", "ä"]
    expected = made.predict(pictures)
    for n, result in enumerate(expected):
        sample = data.sample(n)
        objects = sample.objects
        assert sample.image[0, 0, 0] == n and np.array_equal(sample.image[1:], np.zeros((2, *SIZE)))
        assert objects.classes.tolist() == [s["category_id"] for s in result.segments]
        around = [mask.box for mask in segment_masks(result)] if masks else None
        of_masks = masks and name in ("labelme", "yolo")  # where a polygon has no box of its own
        np.testing.assert_allclose(objects.boxes, around if of_masks else result.boxes, atol=1e-6)
        assert not objects.crowd.any() and objects.has_masks == masks
        if masks:
            assert np.array_equal(objects.masks(range(3), SIZE), result.masks)
            assert objects.areas.tolist() == [s["area"] for s in result.segments]


@pytest.mark.parametrize("name", READ)
def test_classes_and_segments_read_back(name: str, tmp_path: Path):
    truth = Painted(open_dataset("scenes:2@96x128", "test", ("segments",)))
    for n in range(2):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(truth.sample(n).image.permute(1, 2, 0).numpy()).save(tmp_path / "in" / f"{n}.png")
    model = Oracle()
    predict_files(model, tmp_path / "in", tmp_path / "out", "panoptic", formats=[name], progress=False)
    data = open_dataset(tmp_path / "out" / name, "train", ("masks",))
    named = model_result(model, tmp_path / "in" / "0.png")
    assert data.labels.names == model.data.labels and data.labels.palette == named.palette
    for n in range(2):
        result, objects = model_result(model, tmp_path / "in" / f"{n}.png"), data.sample(n).objects
        assert objects.classes.tolist() == [s["category_id"] for s in result.segments]
        found = objects.masks(range(len(objects.classes)), (96, 128))
        assert all(np.array_equal(found[k], result.segment_map == k + 1) for k in range(len(found)))


@pytest.mark.parametrize("name", ["folder", "imagefolder"])
@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_masks_read_back(name: str, task: str, tmp_path: Path):
    truth = Painted(open_dataset("scenes:3@96x128", "test", ("segments",)))
    for n, file in enumerate(("a b.PNG", "one/ä.png", "two/ä.png")):
        (tmp_path / "in" / file).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(truth.sample(n).image.permute(1, 2, 0).numpy()).save(tmp_path / "in" / file)
    model, places = Oracle(), [tmp_path / "in", tmp_path / "in/one", tmp_path / "in/two"]
    summary = predict_files(model, places, tmp_path / "out", task, formats=[name], progress=False)
    source = tmp_path / "out" / name
    needs = ("segments",) if task == "panoptic" and name == "imagefolder" else ("labels",)
    data = open_dataset(source if name == "folder" else f"hf:{source}", "train", needs)
    assert data.labels.names == model.data.labels and len(data) + (name != "folder") >= 3
    results = {r.image.tobytes(): r for r in predict(model, [e["input"] for e in summary["images"]], task)}
    for n in range(len(data)):
        sample = data.sample(n)
        result = results[sample.image.permute(1, 2, 0).numpy().tobytes()]
        assert np.array_equal(sample.labels, result.labels)
        if needs == ("segments",):
            assert np.array_equal(sample.objects.ids, result.segment_map)
            assert sample.objects.classes.tolist() == [s["category_id"] for s in result.segments]


def test_results_without_a_place_are_refused(pictures: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="'yolo' has no place for semantic results; those of semantic are folder, ima"):
        predict_files(BrightSquare(), pictures, tmp_path / "out", formats=["yolo"], progress=False)
    with pytest.raises(ValueError, match="'folder' has no place for detection results; .* coco, imagefolder, labelme"):
        predict_files(known_model(), pictures, tmp_path / "out", formats=["folder"], progress=False)
    assert not (tmp_path / "out").exists()


def model_result(model: nn.Module, path: Path) -> Result:
    return predict(model, path, task="panoptic")


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance", "detection"])
def test_a_folder_of_the_hub_has_pictures_masks_and_names(task: str, pictures: Path, tmp_path: Path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    if task == "semantic":
        made, paths = BrightSquare(), [tmp_path / "square.png"]
        Image.fromarray(square()).save(paths[0])
    elif task == "panoptic":
        made, paths = Oracle(), [tmp_path / "scene.png"]
        truth = Painted(open_dataset("scenes:1@96x128", "test", ("segments",))).sample(0)
        Image.fromarray(truth.image.permute(1, 2, 0).numpy()).save(paths[0])
    else:
        made, paths = known_model("mask_rcnn" if task == "instance" else "faster_rcnn"), sorted(pictures.iterdir())
    predict_files(made, paths, tmp_path / "out", task, formats=["imagefolder"], progress=False)
    folder = tmp_path / "out" / "imagefolder"
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    names = json.loads((folder / "id2label.json").read_text())
    results = predict(made, paths, task)
    assert len(rows) == len(results) and names == {str(i): name for i, name in enumerate(results[0].names)}
    for row, result in zip(rows, results, strict=True):
        assert np.array_equal(np.asarray(row["image"].convert("RGB")), result.image)
        classes = [s["category_id"] for s in result.segments]
        if task == "semantic":
            assert row["mask"].mode == "P" and np.array_equal(np.asarray(row["mask"]), result.labels)
        elif task == "panoptic":
            assert np.array_equal(np.asarray(row["label"]) @ np.array([1, 256, 65536]), result.segment_map)
            assert [s["category_id"] for s in row["segments_info"]] == classes
            assert rows.features["segments_info"].feature["category_id"].names == list(result.names)
        else:
            assert row["objects"]["category"] == classes
            assert rows.features["objects"]["category"].feature.names == list(result.names)
            np.testing.assert_allclose(np.add(row["objects"]["bbox"], 0)[:, :2], result.boxes[:, :2])
            masks = [crop_of(m["counts"].encode(), tuple(m["size"])) for m in row["objects"].get("segmentation", [])]
            assert [int(m.pixels.sum()) for m in masks] == [s["area"] for s in result.segments] * (task == "instance")


def test_nothing_is_left_half_and_nothing_else_replaced(pictures: Path, tmp_path: Path):
    made, out = known_model(), tmp_path / "out"
    with pytest.raises(ValueError, match="unknown format 'yollo'; expected one of coco, folder, imagefolder"):
        predict_files(made, pictures, out, formats=["yollo"], progress=False)
    (out / "yolo").mkdir(parents=True)
    (out / "yolo" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="yolo is not of an earlier run, so it is not replaced"):
        predict_files(made, pictures, out, formats=["yolo"], progress=False)
    (out / "yolo" / "mine.txt").unlink()
    predict_files(made, pictures, out, formats=["yolo", "voc"], progress=False)
    kept = sorted(path.name for path in (out / "yolo").rglob("*"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    made.head.forward = stop
    with pytest.raises(KeyboardInterrupt):
        predict_files(made, pictures, out, formats=["yolo", "voc"], progress=False)
    assert sorted(path.name for path in (out / "yolo").rglob("*")) == kept, "the earlier run's is whole"
    assert not list(out.glob(".*"))


def test_a_turned_picture_is_stored_as_it_was_seen(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64), (200, 10, 10)).save(tmp_path / "a.jpg", exif=exif)
    made = known_model()
    for rule, suffix, size in (("apply", ".jpg", (96, 64)), ("ignore", ".png", (64, 96))):
        predict_files(made, tmp_path / "a.jpg", tmp_path / rule, formats=["yolo", "labelme"], progress=False, exif=rule)
        for name in ("yolo", "labelme"):
            data = open_dataset(tmp_path / rule / name, "train", ("boxes",))
            assert data.files(0)[0].suffix == suffix and data.size(0) == data.sample(0).size == size
            expected = made.predict(tmp_path / "a.jpg", exif=rule)
            np.testing.assert_allclose(data.sample(0).objects.boxes, expected.boxes, atol=1e-6)
