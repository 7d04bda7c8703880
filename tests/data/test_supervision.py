"""Whether there is something to learn: what the classes of a data set really have."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.panoptic import write_coco

from fapn_zoo.data import DataError, LabelMap, open_dataset, supervision
from fapn_zoo.data.hints import id_hint
from fapn_zoo.data.sample import LABELS, SEGMENTS
from fapn_zoo.data.supervision import check_supervision, count_classes

pytestmark = pytest.mark.unit


def write(root: Path, labels: list[list[int]], names: tuple[str, ...] = ("ground", "disc"), split="train", **more):
    """A picture with a label of one row for each of `labels`."""
    for part in ("images", "labels"):
        (root / split / part).mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(labels):
        values = np.array([row], np.uint8)
        Image.fromarray(np.zeros((*values.shape, 3), np.uint8)).save(root / split / "images" / f"{i:04}.png")
        Image.fromarray(values).save(root / split / "labels" / f"{i:04}.png")
    (root / "classes.json").write_text(json.dumps({"names": names} | more))
    return open_dataset(root, split)


REFUSED = {
    "0 and 255": (
        [[0, 255], [0, 0]], {},
        "every label holds only 0 and 255, and 255 is ignored: 255 is probably 'disc'; save it as 1"),
    "1 and 255": ([[1, 255]], {}, "255 is ignored: 255 is probably 'ground'; save it as 0"),
    "0 and 254": ([[0, 254]], {"ignore_index": 254}, "254 is probably 'disc'; save it as 1"),
    "0 only": ([[0, 0], [0, 0]], {}, "only 'ground' has pixels (4), none has 'disc': every label holds only 0"),
    "ignored": ([[255, 255]], {}, "every pixel has the value 255, which is ignored: no class has any"),
    "one name": ([[0, 0]], {"names": ["disc"]}, 'such as {"names": ["background", "disc"]} with the ids 0 and 1'),
    "0 ignored": ([[0, 1]], {"ignore_index": 0}, "ignore_index 0 leaves one class only, 'disc'"),
    "0 ignored of three": (
        [[0, 1]], {"names": ["a", "b", "c"], "ignore_index": 0},
        "0 is ignored: if 'a' is a class of its own, set ignore_index to a value that no pixel has, as 255"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_nothing_to_learn_is_refused_with_the_fix(tmp_path: Path, what: str):
    labels, more, says = REFUSED[what]
    data = write(tmp_path, labels, **more)
    with pytest.raises(DataError, match="^nothing to learn: ") as caught:
        check_supervision(data, None, needs=LABELS)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def warnings(caplog, data, val=None) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fapn_zoo"):
        check_supervision(data, val, needs=LABELS)
    return "\n".join(caplog.messages)


@pytest.mark.parametrize("count", [1, 20])
def test_a_class_that_some_files_hold_as_the_ignored_value(tmp_path: Path, caplog, count: int):
    data = write(tmp_path / "mixed", [*[[0, 255]] * count, *[[0, 1]] * 50])
    says = f"of {50 + count} label files 50 hold 1, {count} hold 255, none both: 255 is probably 'disc'"
    way = 'or write "values": [0, 255] into classes.json, if it is no void'
    says = f"mixed, to train on: {says}; save it as 1, {way}"
    assert warnings(caplog, data) == f"one class stored in two ways: {says}"
    for name, more in {"void beside it": [[1, 255]], "nothing but void": [[255, 255]]}.items():
        assert warnings(caplog, write(tmp_path / name, [[0, 255], [0, 1], *more])) == ""
    assert warnings(caplog, write(tmp_path / "three", [[0, 1], [2, 255], [0, 255]], ("a", "b", "c"))) == ""


def test_what_is_doubtful_is_said(tmp_path: Path, caplog):
    names = ("ground", "disc", "ring")
    assert warnings(caplog, write(tmp_path / "good", [[0, 1], [2, 255]], names)) == ""
    data = write(tmp_path / "rare", [[0, 1], [0, 255]], names)
    assert warnings(caplog, data) == "classes that never occur: rare, to train on: ring"
    void = write(tmp_path / "void", [[0, 1, *[255] * 298]])
    assert warnings(caplog, void) == (
        "nearly all is ignored: void, to train on: 99.33% of the pixels have the ignored value 255"
    )
    val = write(tmp_path / "rare", [[255, 255]], names, split="val")
    assert "nothing to score: rare, to evaluate on, has no pixel of any class; there will be" in warnings(
        caplog, data, val
    )
    val = write(tmp_path / "rare", [[2, 2]], names, split="val")
    text = warnings(caplog, data, val)
    assert "little to score: only 'ring' has pixels in rare, to evaluate on" in text
    assert "rare, to evaluate on, has classes that the training set lacks: ring" in text


def test_a_label_file_that_is_bad_stops_it_before_the_training_does(tmp_path: Path):
    data = write(tmp_path, [[0, 1], [0, 128]])
    with pytest.raises(
        DataError, match=r"0001\.png: class ids out of range: 128 .*; are they the 2 classes in other values\?"
    ):
        count_classes(data)
    (tmp_path / "train/labels/0000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot read label file .*0000\.png"):
        count_classes(data)


def test_counting_ends_early_or_when_the_time_is_up(tmp_path: Path, caplog, monkeypatch):
    rows = [[0, 1]] * 200
    assert count_classes(write(tmp_path / "a", rows)).seen == supervision.BLOCK
    data = write(tmp_path / "b", rows, ("ground", "disc", "ring"))
    assert count_classes(data).seen == 200
    monkeypatch.setattr(supervision, "SECONDS", 0.0)
    partly = count_classes(data, seconds=0.0)
    assert (partly.seen, partly.samples) == (32, 200) and partly.pixels.tolist() == [32, 32, 0, 0]
    monkeypatch.setattr(supervision, "count_classes", lambda *_: partly)
    assert "never occur: b, to train on: ring (counted 32 of 200 files)" in warnings(caplog, data)
    # One class in a part of the files may be a rare one: a warning. In all of many: refused.
    partly.pixels[:] = 32, 0, 0, 0
    assert "nothing to learn: b, to train on: only 'ground' has pixels (32)" in warnings(caplog, data)
    partly.pixels[:], partly.seen, partly.samples = [0, 0, 0, 9], 600, 20210
    with pytest.raises(DataError, match="every pixel has the value 255.*counted 600 of 20,210 files"):
        check_supervision(data, None, needs=LABELS)


def test_all_parts_of_joined_data_count(tmp_path: Path, caplog):
    write(tmp_path / "a", [[0, 0]])
    write(tmp_path / "b", [[1, 1]])
    data = open_dataset(f"{tmp_path / 'a'},{tmp_path / 'b'}", "train")
    assert count_classes(data).pixels.tolist() == [2, 2, 0] and warnings(caplog, data) == ""
    scenes = count_classes(open_dataset("scenes:3@64x96", "train"))
    assert scenes.seen == 3 and scenes.pixels.sum() == 3 * 64 * 96


def test_segments_are_counted_without_their_files(tmp_path: Path):
    file = write_coco(tmp_path, range(2))
    data = open_dataset(tmp_path, "val", needs=("segments",))
    table = json.loads(file.read_text())
    listed = [s for a in table["annotations"] for s in a["segments_info"]]
    for folder in ("val2017", "annotations/panoptic_val2017"):
        for png in (tmp_path / folder).iterdir():
            png.unlink()
    assert count_classes(data, "segment").pixels.sum() == sum(not s["iscrowd"] for s in listed)
    assert count_classes(data, "pixel").pixels.sum() == sum(s["area"] for s in listed)
    for segment in listed:
        segment["iscrowd"] = 1
    for _, annotation in data._entries:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = 1
    with pytest.raises(DataError, match="no segment of any class that is no crowd, of Sky, "):
        check_supervision(data, None, needs=SEGMENTS)


@pytest.mark.parametrize(
    ("values", "names", "says"),
    [
        ([1, 2], 2, "do the ids start at 1? They start at 0: subtract 1"),
        ([1, 2, 3, 255], 3, "do the ids start at 1?"),
        ([0, 1, 2], 2, "0..2 are 3 ids for 2 names: is one missing, such as background for 0?"),
        ([0, 128], 2, 'Write "values": [0, 128] into classes.json'),
        ([0, 128, 255], 3, 'Write "values": [0, 128, 255] into classes.json'),
        ([0, 100, 200, 255], 3, 'Write "values": [0, 100, 200] into classes.json'),
        ([0, 200], 3, ""),
        (list(range(40)), 3, "was the label resized with interpolation"),
        ([0, 9, 200, 220], 3, ""),
        ([0, 1, 255], 2, ""),
    ],
)
def test_what_values_out_of_range_were_meant_to_be(values: list[int], names: int, says: str):
    hint = id_hint(values, LabelMap(tuple("abcdef"[:names])))
    assert says in hint and bool(says) == bool(hint)
