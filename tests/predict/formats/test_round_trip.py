"""What predictions are written as is what our own sources read, for every format and task, of pictures that are odd."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toys.detections import known_model
from toys.panoptic import Oracle
from toys.prediction import Toy

from fapn_zoo.data import open_dataset
from fapn_zoo.data.sample import BOXES, LABELS, MASKS, SEGMENTS, Dataset, Sample
from fapn_zoo.modules.heads.outputs import SemanticOutput
from fapn_zoo.predict import predict
from fapn_zoo.predict.files import predict_files
from fapn_zoo.predict.formats import FORMATS
from fapn_zoo.tasks.coco import segment_masks
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec

pytestmark = pytest.mark.unit
SIZE = (64, 96)
NEEDS = {"semantic": LABELS, "panoptic": SEGMENTS, "instance": MASKS, "detection": BOXES}
MAPS = ("coco", "folder", "imagefolder")
PAIRS = [(name, task) for name, kind in FORMATS.items() for task in sorted(kind.tasks)]
OVERLAPPING = {"boxes": [[10, 8, 60, 40], [20, 16, 90, 60], [22, 18, 40.5, 30]], "classes": [2, 0, 2]}


class Reds(Toy):
    """Class k where red is k, of so many classes; the last ones where red is at least 200."""

    def __init__(self, classes: int) -> None:
        names = tuple(f"{'klasse ä' if i == 1 else 'class'} {i}" for i in range(classes))
        palette = tuple((i % 256, 255 - i % 256, 7) for i in range(classes))
        super().__init__("perpixel", DataSpec(names, palette, mean=(0.0,) * 3, std=(1.0,) * 3))
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, *_: object) -> SemanticOutput:
        red = x[:, 0, ::4, ::4].round().long()
        classes = len(self.data.labels)
        red = torch.where(red >= 200, red + classes - 256, red)
        return SemanticOutput(nn.functional.one_hot(red, classes).movedim(-1, 1).float() * 20)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """One stem in two folders, an upper-case ending, spaces, other letters, and a photo that EXIF turns."""
    names = ["a/x.png", "b/x.PNG", "b/two words.png", "b/größe 木.png", "b/turned.jpg", "b/semi;colon,100%.png"]
    for k, name in enumerate(names):
        path, exif = tmp_path / "in" / name, Image.Exif()
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((*SIZE, 3), np.uint8)
        pixels[8:40, 16:48], pixels[40:, 64:] = (1, k, 0), (2, 0, k)
        exif[0x0112] = 6 if name.endswith("jpg") else 1
        Image.fromarray(pixels).save(path, exif=exif, **({"quality": 100} if name.endswith("jpg") else {}))
    return [tmp_path / "in" / name for name in names]


def model_for(task: str) -> nn.Module:
    if task == "semantic":
        return Reds(3)
    if task == "panoptic":
        return Oracle()
    return known_model("mask_rcnn" if task == "instance" else "faster_rcnn", **OVERLAPPING, scores=[0.9, 0.8, 0.7])


def read_back(folder: Path, task: str) -> Dataset:
    needs = NEEDS[task]
    if task == "panoptic":
        needs = LABELS if folder.name == "folder" else MASKS if folder.name in ("labelme", "voc", "yolo") else needs
    if folder.name == "imagefolder":  # of one split a tenth is kept to validate on
        return open_dataset(f"hf:{folder}", "train+val" if len(list(folder.rglob("images/*"))) > 1 else "train", needs)
    return open_dataset(folder, "train", needs)


def check(data: Dataset, results: list[Result], name: str, task: str) -> None:
    assert (data.labels.names, data.labels.palette) == (results[0].names, results[0].palette)
    assert len(data) == len(results)
    left = [data.sample(i) for i in range(len(data))]
    for result in results:
        seen = [np.array_equal(one.image.permute(1, 2, 0), result.image) for one in left]
        one = left.pop(seen.index(True))
        assert (one.labels is None) == (name not in MAPS or task in ("instance", "detection"))
        assert (one.objects is None) == (name == "folder" or task == "semantic")
        if one.labels is not None:
            assert np.array_equal(one.labels, result.labels)
        if one.objects is not None:
            check_objects(one, result, name)


def check_objects(one: Sample, result: Result, name: str) -> None:
    found, masks = one.objects, segment_masks(result)
    assert found.classes.tolist() == [s["category_id"] for s in result.segments]
    if masks is not None:
        assert found.has_masks
        expected = [mask.pixels() for mask in masks]
        got = found.masks(range(len(expected)), one.size)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    if result.boxes is not None and not (name in ("labelme", "yolo") and masks is not None):
        np.testing.assert_allclose(found.boxes, result.boxes.reshape(-1, 4), atol=1e-6)


@pytest.mark.parametrize("name, task", PAIRS)
def test_every_format_of_every_task(name: str, task: str, pictures: list[Path], tmp_path: Path) -> None:
    made, out = model_for(task), tmp_path / "out"
    predict_files(made, pictures, out, task, formats=[name], progress=False)
    results = predict(made, pictures, task)
    assert results[4].image.shape[:2] == SIZE[::-1]
    check(read_back(out / name, task), results, name, task)


@pytest.mark.parametrize("name, task", [pair for pair in PAIRS if pair[1] in ("instance", "detection")])
def test_nothing_found_is_no_object(name: str, task: str, pictures: list[Path], tmp_path: Path) -> None:
    none = {"boxes": [], "classes": [], "scores": []}
    made = known_model("mask_rcnn" if task == "instance" else "faster_rcnn", **none)
    predict_files(made, pictures[:2], tmp_path / "out", task, formats=[name], progress=False)
    check(read_back(tmp_path / "out" / name, task), predict(made, pictures[:2], task), name, task)


@pytest.mark.parametrize("name", ["folder", "imagefolder"])
def test_300_classes_need_16_bits(name: str, tmp_path: Path) -> None:
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[8:, 16:, 0], pixels[32:, 64:, 0] = 211, 255  # classes 255 and 299
    Image.fromarray(pixels).save(tmp_path / "a.png")
    made = Reds(300)
    predict_files(made, tmp_path / "a.png", tmp_path / "out", formats=[name], progress=False)
    data = read_back(tmp_path / "out" / name, "semantic")
    assert np.unique(data.sample(0).labels).tolist() == [0, 255, 299] and data.labels.ignore_index == 65535
    check(data, [predict(made, tmp_path / "a.png")], name, "semantic")


def test_the_rows_of_an_earlier_run_are_not_read(tmp_path: Path) -> None:
    for classes in ([0, 1, 2], [2, 2, 2]):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
        made = known_model("mask_rcnn", **OVERLAPPING | {"classes": classes}, scores=[0.9, 0.8, 0.7])
        predict_files(made, tmp_path / "a.png", tmp_path / "out", formats=["imagefolder"], progress=False)
        check(
            read_back(tmp_path / "out" / "imagefolder", "instance"),
            [predict(made, tmp_path / "a.png")],
            "imagefolder",
            "instance",
        )


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"folder"}))
def test_names_that_no_list_of_files_holds(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    made, odd = known_model(**OVERLAPPING, scores=[0.9, 0.8, 0.7]), [" x.png", "x.avif", "a\nb.png", b"\xff.png"]
    for k, file in enumerate(odd):
        path = tmp_path / "in" / (file if isinstance(file, str) else os.fsdecode(file))
        Image.fromarray(np.full((*SIZE, 3), k, np.uint8)).save(path, **{"quality": 100} if k == 1 else {})
    predict_files(made, tmp_path / "in", tmp_path / "out", formats=[name], progress=False)
    check(read_back(tmp_path / "out" / name, "detection"), predict(made, tmp_path / "in"), name, "detection")


def test_things_that_were_not_found_stay_things(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    made = Oracle()
    predict_files(made, tmp_path / "a.png", tmp_path / "out", "panoptic", formats=["imagefolder"], progress=False)
    assert read_back(tmp_path / "out" / "imagefolder", "panoptic").labels.things == made.data.things
