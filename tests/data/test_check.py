from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from fapn_zoo.data.check import check_data

pytestmark = pytest.mark.unit
NAMES = ["road", "car", "tree"]


def put(root, split, name, values=None, seed=0, size=(6, 8)):
    for part in ("images", "labels"):
        (root / split / part).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, len(split), *name.encode()]).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / split / "images" / f"{name}.png")
    values = np.arange(48).reshape(6, 8) % 3 if values is None else np.asarray(values)
    Image.fromarray(values.astype(np.uint8)).save(root / split / "labels" / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for name in "abc":
            put(tmp_path, split, name)
    (tmp_path / "classes.json").write_text(json.dumps({"names": NAMES}))
    return tmp_path


def kinds(report, error=None):
    return sorted(p.kind for p in report.problems if error in (None, p.error))


def only(report, kind):
    found = [p for p in report.problems if p.kind == kind]
    assert len(found) == 1, report.problems
    return found[0]


def test_clean(root):
    report = check_data(root)
    assert report.ok and report.problems == [] and list(report.splits) == ["train", "val"]
    assert report.splits["train"].samples == 3
    assert report.splits["train"].pixels.tolist() == [48, 48, 48, 0]
    assert report.splits["val"].images.tolist() == [3, 3, 3, 0]
    text = report.render()
    assert "train 3, val 3" in text and "33.33% (3)" in text and text.endswith("all good")
    assert all(name in text for name in (*NAMES, "(ignored)", "255"))


def test_counts(root):
    put(root, "test", "x", [[255, 0], [0, 2]], size=(2, 2))
    put(root, "test", "y", [[255, 0], [0, 0]], size=(2, 2))
    report = check_data(root)
    assert report.splits["test"].pixels.tolist() == [5, 0, 1, 2]
    assert report.splits["test"].images.tolist() == [2, 0, 1, 2]
    note = only(report, "classes that never occur")
    assert not note.error and note.detail == "test: car" and report.ok
    assert "note: classes that never occur" in report.render()


def test_everything_is_found_in_one_go(root):
    (root / "train/labels/a.png").unlink()
    (root / "train/images/b.png").unlink()
    (root / "train/images/c.png").write_bytes(b"broken")
    put(root, "train", "d", [[0, 9], [9, 200]], size=(2, 2))
    put(root, "train", "e", np.zeros((3, 3)), size=(2, 2))
    put(root, "train", "f")
    Image.new("RGB", (8, 6)).save(root / "train/labels/f.png")
    put(root, "train", "g")
    shutil.copy(root / "train/images/g.png", root / "train/images/h.png")
    shutil.copy(root / "train/labels/g.png", root / "train/labels/h.png")
    put(root, "train", "i")
    Image.open(root / "train/images/i.png").save(root / "train/images/i.bmp")
    shutil.copy(root / "train/images/g.png", root / "val/images/a.png")
    (root / "val/labels/b.png").write_bytes((root / "val/labels/b.png").read_bytes()[:40])
    (root / "val/labels/c.jpg").write_bytes(b"x")
    report = check_data(root)
    assert not report.ok
    assert kinds(report, error=True) == sorted(
        ["picture without label", "label without picture", "unreadable file", "unreadable file", "ids out of range",
         "size mismatch", "file without class ids", "name used twice", "same picture in two splits",
         "label that is no PNG"]
    )  # fmt: skip
    assert only(report, "picture without label").file == "train/images/a.png"
    assert only(report, "label without picture").file == "train/labels/b.png"
    unreadable = {p.file for p in report.problems if p.kind == "unreadable file"}
    assert unreadable == {"train/images/c.png", "val/labels/b.png"}
    assert only(report, "ids out of range").detail == (
        "train/labels/d.png: class ids out of range: 9 (2 pixels), 200 (1 pixels); allowed: 0..2, ignore_index 255"
    )
    assert "train/labels/e.png is 3x3" in only(report, "size mismatch").detail
    assert "train/labels/f.png holds colours (mode RGB)" in only(report, "file without class ids").detail
    assert "i.bmp and i.png" in only(report, "name used twice").detail
    shared = only(report, "same picture in two splits").detail
    assert shared == "train/images/g.png = train/images/h.png = val/images/a.png"
    text = report.render()
    assert "10 errors found" in text and str(root) + "/" not in text  # files by their place in the folder
    assert all(p.detail in text for p in report.problems)


def test_same_picture_twice_in_a_split_is_a_note(root):
    shutil.copy(root / "train/images/a.png", root / "train/images/b.png")
    report = check_data(root)
    assert report.ok
    assert only(report, "same picture twice in a split").detail == "train/images/a.png = train/images/b.png"


def test_long_lists_are_cut(root):
    for i in range(15):
        put(root, "train", f"bad{i:02}", np.full((6, 8), 99))
    text = check_data(root).render(limit=4)
    assert "error: ids out of range (15)" in text and "bad03" in text and "bad04" not in text
    assert "... and 11 more" in text


def test_unknown_classes_still_check_the_rest(root):
    (root / "classes.json").unlink()
    put(root, "val", "a", [[255, 7], [0, 5]], size=(2, 3))
    report = check_data(root)
    assert not report.ok and report.labels is None
    assert "or give num_classes" in only(report, "classes unknown").detail
    assert only(report, "size mismatch").file == "val/labels/a.png"
    assert only(report, "ids found in the labels").detail == "0-2, 5, 7, 255"
    assert "classes unknown" in report.render()
    put(root, "val", "a")
    assert check_data(root, num_classes=3).ok
    assert "names 3" not in check_data(root, num_classes=2).render()


def test_classes_file_trouble(root):
    assert "num_classes is 4" in only(check_data(root, num_classes=4), "classes unknown").detail
    (root / "classes.json").write_text("[")
    assert "classes.json" in only(check_data(root), "classes unknown").detail


def test_folders_without_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        check_data(tmp_path / "nowhere")
    report = check_data(tmp_path, num_classes=2)
    assert "train,val,test" in only(report, "no splits").detail and not report.ok
    (tmp_path / "train/labels").mkdir(parents=True)
    report = check_data(tmp_path, num_classes=2)
    assert kinds(report) == ["no pictures"] and "train/images" in report.render()


def test_ignored_zero_counts_as_ignored(tmp_path):
    put(tmp_path, "train", "a", [[0, 1], [0, 0]], size=(2, 2))
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["none", "cell"], "ignore_index": 0}))
    report = check_data(tmp_path)
    assert report.ok and report.problems == [] and report.splits["train"].pixels.tolist() == [0, 1, 3]


def test_16_bit_labels(tmp_path):
    put(tmp_path, "train", "a")
    Image.fromarray(np.full((6, 8), 300, np.uint16)).save(tmp_path / "train/labels/a.png")
    report = check_data(tmp_path, num_classes=301)
    assert report.ok and report.splits["train"].pixels[300] == 48


def test_the_bar_shows_on_a_terminal_only(root, monkeypatch, capsys):
    check_data(root)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    check_data(root)
    assert "6/6" in capsys.readouterr().err
    check_data(root, progress=False)
    assert capsys.readouterr() == ("", "")
