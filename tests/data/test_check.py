from __future__ import annotations

import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from toys.panoptic import write_coco

from fapn_zoo.data import DataError, open_dataset
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
    assert "note: classes that never occur" in report.render() and report.render().endswith("no errors, 1 note")


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
        ["picture without label", "label without picture", "unreadable file", "unreadable file", "bad file",
         "bad file", "bad file", "name used twice", "same picture in two splits", "label that is no PNG"]
    )  # fmt: skip
    assert only(report, "picture without label").file == "train/images/a.png"
    assert only(report, "label without picture").file == "train/labels/b.png"
    unreadable = {p.file for p in report.problems if p.kind == "unreadable file"}
    assert unreadable == {"train/images/c.png", "val/labels/b.png"}
    bad = [p.detail for p in report.problems if p.kind == "bad file"]
    assert bad[0] == (
        "train/labels/d.png: class ids out of range: 9 (2 pixels), 200 (1 pixels); allowed: 0..2, ignore_index 255"
        '; are they the 3 classes in other values? Write "values": [0, 9, 200] into classes.json'
    )
    assert "3x3 in train/labels/e.png" in bad[1] and "train/labels/f.png holds colours (mode RGB)" in bad[2]
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
    assert "error: bad file (15)" in text and "bad03" in text and "bad04" not in text
    assert "... and 11 more" in text


def test_classes_file_trouble(root):
    assert "num_classes is 4" in check_data(root, num_classes=4).problems[0].detail
    (root / "classes.json").write_text("[")
    assert "classes.json" in check_data(root).problems[0].detail
    (root / "classes.json").unlink()
    assert "or give num_classes" in check_data(root).problems[0].detail and check_data(root, num_classes=3).ok


def test_folders_without_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        check_data(tmp_path / "nowhere")
    report = check_data(tmp_path, num_classes=2)
    assert "train,val,test" in only(report, "split that cannot be opened").detail and not report.ok
    (tmp_path / "train/labels").mkdir(parents=True)
    report = check_data(tmp_path, num_classes=2)
    assert kinds(report) == ["no pictures"] and "train/images" in report.render()


def test_ignored_zero_counts_as_ignored(tmp_path):
    put(tmp_path, "train", "a", [[0, 1], [0, 2]], size=(2, 2))
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["none", "cell", "wall"], "ignore_index": 0}))
    report = check_data(tmp_path)
    assert report.ok and report.problems == [] and report.splits["train"].pixels.tolist() == [0, 1, 1, 2]


def test_nothing_to_learn_is_an_error_of_the_split_to_train_on(root):
    for split in ("train", "val"):
        for name in "abc":
            put(root, split, name, np.where(np.arange(48).reshape(6, 8) % 3, 0, 255))
    (root / "classes.json").write_text(json.dumps({"names": ["ground", "disc"]}))
    report = check_data(root)
    error = only(report, "nothing to learn")
    assert error.error and error.detail == (
        "train: every label holds only 0 and 255, and 255 is ignored: 255 is probably 'disc'; save it as 1, "
        'or write "values": [0, 255] into classes.json'
    )
    assert not only(report, "nothing to score").error  # the labels of a test split may be kept secret
    assert "all good" not in report.render()
    put(root, "train", "a")
    (root / "classes.json").write_text(json.dumps({"names": NAMES}))
    put(root, "train", "b", np.full((6, 8), 255))
    put(root, "val", "a", np.full((6, 8), 1))
    assert check_data(root).ok


def test_classes_that_only_other_splits_have(root):
    for name in "abc":
        put(root, "train", name, np.arange(48).reshape(6, 8) % 2)
    assert only(check_data(root), "classes that are never trained").detail == "val: tree (in no split for training)"


def test_what_is_not_used_is_named(root):
    for name in ("a.heic", "x.npy", ".DS_Store"):
        (root / "train/images" / name).touch()
    report = check_data(root)
    assert report.ok and report.render().endswith("no errors, 2 notes") and report.splits["train"].samples == 3
    assert {p.file for p in report.problems if p.kind == "another ending"} == {
        "train/images/a.heic",
        "train/images/x.npy",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_links_to_nowhere_and_pipes_are_errors(root):
    (root / "train/images/d.png").symlink_to("gone.png")
    (root / "train/labels/d.png").symlink_to("gone.png")
    os.mkfifo(root / "val/images/pipe.png")
    report = check_data(root)
    assert kinds(report) == ["dead link", "dead link", "no regular file"] and not report.ok
    assert "train/images/d.png: a link to gone.png, which is not there" in report.render()


def test_pairs_in_subfolders(root):
    for part in ("images", "labels"):
        (root / "train" / part / "city").mkdir()
        (root / "train" / part / "a.png").rename(root / "train" / part / "city" / "a.png")
    assert check_data(root).problems == [] and check_data(root).splits["train"].samples == 3
    (root / "train/labels/city/a.png").rename(root / "train/labels/a.png")
    detail = only(check_data(root), "picture without label").detail
    assert detail == "train/images/city/a.png has no labels/city/a.png"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_text_can_be_printed(root):
    name = os.fsdecode(b"caf\xe9.png")
    for part in ("images", "labels"):
        (root / "train" / part / "a.png").rename(root / "train" / part / name)
    (root / "train/images" / name).write_bytes(b"broken")
    assert "caf\\udce9.png" in check_data(root).render().encode().decode()


def test_other_layouts_are_told(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / "a" / part / "train").mkdir(parents=True)
        (tmp_path / "b" / "train" / f"my_{part}").mkdir(parents=True)
        (tmp_path / "c" / part).mkdir(parents=True)
    for name, there in (
        ("a", "images/train, labels/train"), ("b", "train/my_images, train/my_labels"), ("c", "images, labels"),
    ):  # fmt: skip
        assert f"; it has {there}" in only(check_data(tmp_path / name, 2), "split that cannot be opened").detail
        with pytest.raises(FileNotFoundError, match=f"no split 'train' in .*; it has {there}"):
            open_dataset(tmp_path / name, "train")


def test_a_split_of_dead_links(root):
    (root / "test").symlink_to("gone")
    with pytest.raises(
        FileNotFoundError, match="no split 'test' in .*test: a link to gone, which is not there; it has"
    ):
        open_dataset(root, "test")
    (root / "val/labels").rename(root / "val/masks")
    with pytest.raises(DataError, match=r"val/images/a.png has no labels/a.png \(picture without label: 2 more\)$"):
        open_dataset(root, "val")
    (root / "val/labels").symlink_to("gone")
    with pytest.raises(DataError, match="val/labels: a link to gone, which is not there; 1 other kinds of errors too"):
        open_dataset(root, "val")


def test_a_folder_to_test_on_only(tmp_path):
    put(tmp_path, "test", "a", np.full((6, 8), 255))
    (tmp_path / "classes.json").write_text(json.dumps({"names": NAMES}))
    assert kinds(check_data(tmp_path)) == ["nothing to score"] and check_data(tmp_path).ok


def test_folders_of_segments(tmp_path):
    write_coco(tmp_path, range(3))
    file = write_coco(tmp_path, range(3, 6), split="train2017")
    report = check_data(tmp_path, progress=False)
    assert report.ok and {s: c.samples for s, c in report.splits.items()} == {"train2017": 3, "val2017": 3}
    assert report.splits["val2017"].pixels.sum() == 3 * 48 * 64
    table = json.loads(file.read_text())
    for annotation in table["annotations"]:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = 1
    file.write_text(json.dumps(table))
    shutil.copy(tmp_path / "val2017/000000.png", tmp_path / "val2017/more.png")
    report = check_data(tmp_path, progress=False)
    assert only(report, "nothing to learn of objects").detail == "train2017: all segments are crowds"
    assert only(report, "what is used").detail == "val2017: not used: 1 without annotation: more.png"
    (tmp_path / "val2017/000000.png").unlink()
    assert "000000.png is missing, which" in only(check_data(tmp_path), "split that cannot be opened").detail


def test_16_bit_labels(tmp_path):
    put(tmp_path, "train", "a")
    Image.fromarray(np.arange(300, 252, -1).reshape(6, 8).astype(np.uint16)).save(tmp_path / "train/labels/a.png")
    report = check_data(tmp_path, num_classes=301)
    assert report.ok and report.splits["train"].pixels[300] == 1


def test_the_bar_shows_on_a_terminal_only(root, monkeypatch, capsys):
    check_data(root)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    check_data(root)
    assert "3/3" in capsys.readouterr().err
    check_data(root, progress=False)
    assert capsys.readouterr() == ("", "")
