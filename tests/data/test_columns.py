"""Annotations in columns are what was put there; a COCO file that is read in pieces gives what the whole one gives."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from toys import coco

from fapn_zoo.data import coco_files, coco_instances
from fapn_zoo.data.coco_annotations import Annotation, Picture
from fapn_zoo.data.coco_instances import read_instances
from fapn_zoo.data.columns import packed

pytestmark = pytest.mark.unit
FLAT = np.array([0.1, 0.2, 5.3, 1e-7, 4.0, 9.0])
ODD = {
    "two": Annotation("two", 3, False, (1.5, -2.0, 3.25, 1e9), 0.1, (FLAT, FLAT[::-1].copy())),
    "bare": Annotation("bare", 0, True, (0.0, 0.0, 1.0, 1.0), None, None),
    "no box": Annotation("no box", 2, False, None, 0.0, (FLAT * 3,)),
    "runs": Annotation("runs", 1, True, None, 7.0, np.array([2, 3, 5])),
    "text": Annotation("text", 1, False, (0.0, 1.0, 2.0, 3.0), None, b"abc"),
}


def plain(found: Annotation) -> tuple:
    shape = found.shape
    if isinstance(shape, tuple):
        shape = [part.tolist() for part in shape]
    return (*found[:-1], shape.tolist() if isinstance(shape, np.ndarray) else shape)


def test_annotations_come_back_as_they_were():
    orders = [["two", "bare"], [], ["runs", "no box", "text", "two"], []]
    pictures = [Picture(i, f"{i}.png", (9, 9), [ODD[name] for name in names]) for i, names in enumerate(orders)]
    columns = packed(pictures)
    for trip in (pictures, pickle.loads(pickle.dumps(pictures))):
        assert [[one.name for one in picture.objects] for picture in trip] == orders
        assert [len(picture.objects) for picture in trip] == [2, 0, 4, 0]
        for picture in trip:
            assert all(plain(one) == plain(ODD[one.name]) for one in picture.objects)
    assert [columns[row].name for row in columns.without_mask()] == ["bare"] and len(columns) == 6
    assert columns.classes(pictures[2].objects.rows).tolist() == [2, 1, 3]
    assert packed(pictures) is columns and len(packed([])) == 0


def written(path: Path, change: str = "", images: int = 40) -> Path:
    table = coco.table(images=images)
    table["annotations"].reverse()
    table = {"info": {"text": ']} \\ " ü'}} | {name: table[name] for name in ("annotations", "categories", "images")}
    if change:
        table["annotations"][3][change] = "strange"
    path.write_text(json.dumps(table))
    return path


@pytest.mark.parametrize("change", ["", "bbox", "segmentation", "category_id", "image_id", "id", "area"])
def test_pieces_are_the_whole(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = written(tmp_path / "a.json", change)
    assert coco_files.quick_table(file) is not None
    monkeypatch.setattr(coco_files, "FORGET", 7)
    quick = read_instances(file)
    monkeypatch.setattr(coco_instances, "quick_table", lambda file: None)
    whole = read_instances(file)
    assert quick[0] == whole[0] and quick[2] == whole[2] and len(quick[1]) == len(whole[1]) == 40
    assert bool(quick[2]) == (change not in ("", "id"))
    for ours, theirs in zip(quick[1], whole[1], strict=True):
        assert (ours.id, ours.file_name, ours.size) == (theirs.id, theirs.file_name, theirs.size)
        assert [plain(one) for one in ours.objects] == [plain(one) for one in theirs.objects]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_what_is_nearly_json_is_read_as_a_whole(number: str, tmp_path: Path):
    file = written(tmp_path / "a.json")
    file.write_text(file.read_text().replace('"iscrowd": 0', f'"iscrowd": 0, "score": {number}', 1))
    _, pictures, faults = read_instances(file)
    assert sum(len(picture.objects) for picture in pictures) == 120 and not faults
    (tmp_path / "mark.json").write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_instances(tmp_path / "mark.json")[1]) == 40


def test_memory_is_bounded_by_the_size_of_the_file(tmp_path: Path):
    table = coco.table(images=200)
    circle = np.linspace(0, 1, 200).round(6).tolist()
    for one in table["annotations"]:
        one["segmentation"] = [circle]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(table))
    tracemalloc.start()
    _, pictures, _ = read_instances(file)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pictures) == 200 and held < peak < 1.5 * file.stat().st_size < 2e6
