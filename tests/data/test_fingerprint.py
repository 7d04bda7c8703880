"""Whether a data set is still the one it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.panoptic import write_coco

from fapn_zoo.data import fingerprint
from fapn_zoo.data.fingerprint import Fingerprint
from fapn_zoo.data.sources import open_dataset

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for name in "abcdef":
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(root / split / f"images/{name}.png")
            grey = Image.fromarray(rng.integers(0, 2, (8, 8), np.uint8))
            grey.save(root / split / f"labels/{name}.png", compress_level=0)  # sizes do not depend on the pixels
    (root / "classes.json").write_text(json.dumps({"names": ["ground", "disc"]}))
    return root


def taken(source: object, split: str = "train") -> Fingerprint:
    """As a run keeps it."""
    return Fingerprint.from_dict(json.loads(json.dumps(Fingerprint.of(open_dataset(source, split)).to_dict())))


def differences(then: Fingerprint, source: object, split: str = "train") -> str:
    return then.differences(Fingerprint.of(open_dataset(source, split), then.read))


def edit(file: Path) -> None:
    """Other pixels in as many bytes, at the same time."""
    before = file.stat()
    pixels = np.asarray(Image.open(file))
    Image.fromarray(1 - pixels).save(file, compress_level=0)
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_same_data_by_another_path_or_moved_is_the_same(folder: Path, tmp_path: Path, monkeypatch):
    then = taken(folder)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert not differences(then, "data") and not differences(then, "./data/../link")
    for file in folder.rglob("*.png"):
        os.utime(file, (1, 1))
    shutil.copytree(folder, tmp_path / "copy")  # with times of its own
    folder.rename(tmp_path / "moved")
    assert not differences(then, "moved") and not differences(then, "copy")
    assert str(Fingerprint.of(open_dataset("copy", "train"))) == str(Fingerprint.of(open_dataset("moved", "train")))


def test_what_differs_is_named(folder: Path):
    then = taken(folder)
    edit(folder / "train/labels/b.png")
    assert differences(then, folder) == "changed: train/labels/b.png"
    edit(folder / "train/labels/b.png")
    assert not differences(then, folder)
    for kind in ("images", "labels"):
        (folder / "train" / kind / "a.png").unlink()
    assert differences(then, folder) == "12 files then, 10 now; missing: train/images/a.png, train/labels/a.png"
    shutil.copytree(folder / "val", folder / "train", dirs_exist_ok=True)
    assert "changed: train/images/a.png, train/images/b.png" in differences(then, folder)
    assert "and 7 more" in differences(then, folder)
    assert "missing: train/images/a.png" in differences(then, folder, "val")


def test_what_labels_mean_is_part_of_the_data_and_colours_are_not(folder: Path):
    then = taken(folder)
    (folder / "classes.json").write_text(json.dumps({"names": ["ground", "disc"], "palette": [[1, 2, 3], [4, 5, 6]]}))
    assert not differences(then, folder)
    (folder / "classes.json").write_text(json.dumps({"names": ["disc", "ground"], "ignore_index": 7}))
    found = differences(then, folder)
    assert found == "names ['ground', 'disc'] then, ['disc', 'ground'] now; ignore_index 255 then, 7 now"


def test_joined_and_generated_data(folder: Path):
    then = taken(folder, "train+val")
    assert then.count == 24 and not differences(then, folder, "train+val")
    edit(folder / "val/labels/c.png")
    assert differences(then, folder, "train+val") == "changed: 2/val/labels/c.png"
    scenes = taken("scenes:4@32x32")
    assert not differences(scenes, "scenes:4@32x32")
    assert differences(scenes, "scenes:5@32x32") == "scenes:4@32x32 train then, scenes:5@32x32 train now"
    assert differences(scenes, "scenes:4@32x32", "val") == "scenes:4@32x32 train then, scenes:4@32x32 val now"


def test_where_contents_are_too_much_times_decide_and_the_message_says_so(folder: Path, monkeypatch):
    monkeypatch.setattr(fingerprint, "CHEAP", 1)
    then = taken(folder)
    assert then.read == "none" and not differences(then, folder)
    monkeypatch.setattr(fingerprint, "CHEAP", 1 << 28)  # compared as it was taken
    os.utime(folder / "train/images/a.png", (1, 1))
    words = "changed: train/images/a.png; too much to read, so compared by times"
    assert differences(then, folder) == words


def test_of_very_many_files_there_is_one_digest(folder: Path, monkeypatch):
    monkeypatch.setattr(fingerprint, "LISTED", 11)
    then = taken(folder)
    assert not then.files and then.count == 12 and not differences(then, folder)
    edit(folder / "train/labels/a.png")
    assert differences(then, folder) == "names, sizes or contents differ"


def test_panoptic_folders(tmp_path: Path):
    file = write_coco(tmp_path / "coco", range(3))
    then = Fingerprint.of(open_dataset(tmp_path / "coco", "val2017"))
    assert then.count == 7 and set(then.classes) >= {"names", "things", "ignore_index"}
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    assert differences(then, tmp_path / "coco", "val2017") == "changed: annotations/panoptic_val2017.json"


def test_what_is_no_fingerprint_is_refused():
    for values in ({}, {"classes": {}}, {"no": 1}, taken("scenes:1").to_dict() | {"read": "some"}):
        with pytest.raises(ValueError, match="does not describe a data set"):
            Fingerprint.from_dict(values)
