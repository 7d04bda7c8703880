"""Folders with COCO's instance json: every layout, what samples hold, and which ids and names come out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from toys import coco

from fapn_zoo.data import DataError, LabelMap, open_dataset
from fapn_zoo.data.coco_instances import CocoInstances
from fapn_zoo.data.mask_decoding import crop_of
from fapn_zoo.data.sample import BOXES, LABELS, MASKS, SEGMENTS, check_holds

pytestmark = pytest.mark.unit
pycocotools = pytest.importorskip("pycocotools.mask", reason="pycocotools is the witness")


def shared(name: str) -> Path:
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("FAPN_ZOO_DATA", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"no {name} at {folder}: set FAPN_ZOO_DATA to the folder that holds it")
    return folder


@pytest.mark.parametrize(
    ("place", "pictures", "split"),
    [
        ("annotations_train.json", "train/images", "train"),
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_default.json", "images", "default"),
        ("instances_val.json", "images/val", "val"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("train.json", "images", "train"),
        ("annotations.json", ".", "train"),
        ("result.json", "images/1", "val"),
    ],
)
def test_every_layout_is_found(tmp_path: Path, place: str, pictures: str, split: str):
    content = coco.table()
    if place == "result.json":  # a tool that names the folder, too, with the slashes of its system
        for entry in content["images"]:
            entry["file_name"] = f"images\\1\\{entry['file_name']}"
        (tmp_path / "images/1").mkdir(parents=True)
    coco.write(tmp_path, content, place, pictures if place != "result.json" else ".")
    for file in tmp_path.glob("images*.png"):
        file.rename(tmp_path / file.name.replace("\\", "/"))
    data = open_dataset(tmp_path, split, needs=MASKS)
    assert isinstance(data, CocoInstances) and len(data) == 3 and data.holds == MASKS
    assert data.labels == LabelMap(("kind 1", "kind 2", "kind 3"), things=(0, 1, 2))
    sample = data.sample(1)
    assert sample.size == data.size(1) == coco.SIZE and sample.image[0, 0, 0] == 2 and sample.labels is None
    assert sample.name.endswith("002") and data.files(1)[1] == tmp_path / place
    expected = [one for one in content["annotations"] if one["image_id"] == 2]
    np.testing.assert_allclose(sample.objects.boxes[:, :2], [one["bbox"][:2] for one in expected])
    np.testing.assert_allclose(sample.objects.areas, [one["area"] for one in expected])
    assert sample.objects.classes.tolist() == [0, 1, 2] and not sample.objects.crowd.any()


def test_masks_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = tuple(rng.integers(1, 40, 2).tolist())
        parts = [(rng.random((rng.integers(3, 8), 2)) * 50 - 5).round(1).ravel() for _ in range(rng.integers(1, 3))]
        mask = (rng.random(size) < rng.random()).astype(np.uint8)
        rle = pycocotools.encode(np.asfortranarray(mask))
        flat = mask.T.ravel()
        runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size])
        polygons = pycocotools.merge(pycocotools.frPyObjects([part.tolist() for part in parts], *size))
        for shape, expected in (
            (tuple(parts), pycocotools.decode(polygons)),
            (rle["counts"], mask),
            (np.concatenate([[0], runs]) if flat[0] else runs, mask),
        ):
            crop = crop_of(shape, size)
            full = np.zeros(size, np.uint8)
            full[crop.y : crop.y + crop.pixels.shape[0], crop.x : crop.x + crop.pixels.shape[1]] = crop.pixels
            np.testing.assert_array_equal(full, expected)
            assert not crop.pixels.size or (crop.pixels[[0, -1]].any(1).all() and crop.pixels[:, [0, -1]].any(0).all())


@pytest.mark.parametrize(
    ("ids", "expected"), [((1, 2, 3), ()), ((3, 7, 90), (3, 7, 90)), ((0, 1, 2), (0, 1, 2)), ((5, 2, 9), (2, 5, 9))]
)
def test_class_ids_are_ranks_and_the_ids_of_the_file_are_kept(tmp_path: Path, ids, expected):
    data = open_dataset(coco.write(tmp_path, coco.table(ids=ids)), "train", needs=BOXES)
    assert data.labels.names == tuple(f"kind {i}" for i in sorted(ids)) and data.labels.category_ids == expected
    order = [one["category_id"] for one in coco.table(ids=ids)["annotations"][:3]]
    assert [data.labels.names[i] for i in data.objects(0).classes] == [f"kind {i}" for i in order]


def test_a_first_row_that_is_the_supercategory_is_no_class(tmp_path: Path, caplog):
    content = coco.table(ids=(1, 2))
    content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    data = open_dataset(coco.write(tmp_path / "a", content), "train", needs=BOXES)
    assert data.labels.names == ("kind 1", "kind 2") and data.labels.category_ids == ()
    assert "category 0 ('things') is no class: it is the supercategory of the others" in caplog.text
    content["annotations"][0]["category_id"] = 0  # used: a class like others
    data = open_dataset(coco.write(tmp_path / "b", content), "train", needs=BOXES)
    assert data.labels.names == ("things", "kind 1", "kind 2") and data.labels.category_ids == (0, 1, 2)
    content = coco.table(ids=(0, 1))
    content["annotations"] = [one for one in content["annotations"] if one["category_id"]]
    data = open_dataset(coco.write(tmp_path / "c", content), "train", needs=BOXES)  # unused, but no supercategory
    assert data.labels.names == ("kind 0", "kind 1")


def test_boxes_alone_serve_detection_alone(tmp_path: Path):
    data = open_dataset(coco.write(tmp_path, coco.table(masks=False)), "train", needs=MASKS)
    assert data.holds == BOXES and not data.sample(0).objects.has_masks
    with pytest.raises(ValueError, match=f"{tmp_path.name} has no masks, which task 'instance' needs; it has boxes$"):
        check_holds(data, MASKS, "task 'instance'")
    with pytest.raises(ValueError, match="has no labels, which task 'semantic' needs; it has boxes$"):
        check_holds(data, LABELS, "task 'semantic'")
    with pytest.raises(ValueError, match="has no labels and no segments, which"):
        check_holds(data, SEGMENTS, "task 'panoptic'")


def test_one_object_without_mask_leaves_boxes(tmp_path: Path, caplog):
    content = coco.table()
    content["annotations"][4]["segmentation"] = []
    del content["annotations"][5]["bbox"]
    data = open_dataset(coco.write(tmp_path, content), "train", needs=BOXES)
    assert (
        data.holds == BOXES and "only boxes are used: 1 of 9 objects have no mask, such as annotation 5" in caplog.text
    )
    crop = crop_of(tuple(map(np.array, content["annotations"][5]["segmentation"])), coco.SIZE)
    assert data.objects(1).boxes[2].tolist() == [crop.x, crop.y, *np.add([crop.x, crop.y], crop.pixels.shape[::-1])]


def test_a_folder_of_both_kinds_is_opened_by_needs(tmp_path: Path):
    from toys.panoptic import write_coco

    write_coco(tmp_path, range(2))
    content = coco.table()
    coco.write(tmp_path, content, "annotations/instances_val2017.json", "val2017")
    assert open_dataset(tmp_path, "val", SEGMENTS).holds == SEGMENTS == open_dataset(tmp_path, "val").holds
    for needs in (MASKS, BOXES):
        assert open_dataset(tmp_path, "val", needs).labels.num_classes == 3


def test_splits_that_are_not_there_or_are_two(tmp_path: Path):
    coco.write(tmp_path, coco.table())
    with pytest.raises(FileNotFoundError, match=f"no split 'val' in {tmp_path}; it has train"):
        open_dataset(tmp_path, "val", BOXES)
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(DataError, match="several files of split 'train': .*annotations_train.json, .*train.json"):
        open_dataset(tmp_path, "train", BOXES)
    with pytest.raises(FileNotFoundError, match="no data folder"):
        open_dataset(tmp_path / "no", "train", BOXES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no annotation file in .*looked for annotations_train.json, "):
        open_dataset(tmp_path / "empty", "train", BOXES)


@pytest.mark.parametrize(
    ("name", "holds", "counts"), [("bccd", BOXES, [967, 87, 83]), ("dsb2018_nuclei", MASKS, [1347])]
)
def test_real_exports(name: str, holds: frozenset[str], counts: list[int]):
    from pycocotools.coco import COCO

    data = open_dataset(shared(name), "val", needs=BOXES)
    assert data.holds == holds and sum(data.listed(i) for i in range(len(data))).tolist() == [*counts, 0]
    table = COCO(data.file)
    for i in range(len(data)):
        objects, theirs = data.objects(i), table.loadAnns(table.getAnnIds([data.pictures[i].id]))
        np.testing.assert_allclose(objects.boxes[:, 2:] - objects.boxes[:, :2], [one["bbox"][2:] for one in theirs])
        if holds == MASKS and i < 10:
            masks = objects.masks(range(len(theirs)), data.size(i))
            np.testing.assert_array_equal(masks, [table.annToMask(one) for one in theirs])
    assert json.loads(data.file.read_text())["categories"][0]["name"] == data.labels.names[0]
