from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.prediction import BrightSquare, TwoSquares

from fapn_zoo.data.images import ImageError
from fapn_zoo.predict import predict
from fapn_zoo.predict.files import output_stems, predict_files
from fapn_zoo.tasks.result import Result

pytestmark = pytest.mark.unit


def write_image(path: Path, left: int = 8) -> np.ndarray:
    image = np.full((40, 56, 3), 20, np.uint8)
    image[8:24, left : left + 16] = 235
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


def test_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for i in (2, 10):
        write_image(tmp_path / "in" / f"{i}.png", left=i)
    model = BrightSquare()
    summary = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert summary["complete"] and summary["failed"] == [] and summary["task"] == "semantic"
    assert summary["model"] == "perpixel_toy" and summary["seconds"] > 0
    assert [entry["overlay"] for entry in summary["images"]] == ["2_overlay.png", "10_overlay.png"]
    for entry in summary["images"]:
        expected = predict(model, entry["input"])
        with Image.open(tmp_path / "out" / entry["labels"]) as labels:
            assert labels.mode == "P" and np.array_equal(np.array(labels), expected.labels)
        with Image.open(tmp_path / "out" / entry["overlay"]) as overlay:
            assert np.array_equal(np.array(overlay), np.array(expected.overlay()))
        assert entry["size"] == [40, 56] and entry["seconds"] > 0
        assert entry["classes"] == pytest.approx({"ground": 1 - 256 / 2240, "square": 256 / 2240}, abs=0.01)
    assert len(list((tmp_path / "out").iterdir())) == 5
    assert "2/2" in capsys.readouterr().err


def test_mixed_paths_repeats_and_equal_names(tmp_path):
    one = write_image(tmp_path / "a" / "x.png", 8)
    two = write_image(tmp_path / "b" / "x.png", 16)
    three = write_image(tmp_path / "b" / "X.jpg", 24)
    paths = [str(tmp_path / "a" / "x.png"), tmp_path / "b", tmp_path / "a", tmp_path / "b" / ".." / "a" / "x.png"]
    summary = predict_files(BrightSquare(), paths, tmp_path / "out", progress=False)
    found = {entry["input"]: entry for entry in summary["images"]}
    assert len(found) == len(summary["images"]) == 3
    names = {entry["labels"].casefold() for entry in summary["images"]}
    assert names == {"x_labels.png", "b_x_labels.png", "x_2_labels.png"}
    for path, image in ((tmp_path / "a/x.png", one), (tmp_path / "b/x.png", two), (tmp_path / "b/X.jpg", three)):
        with Image.open(tmp_path / "out" / found[str(path)]["labels"]) as labels:
            # a few pixels at the corners are lost at stride 4
            assert (np.array(labels) == (image[:, :, 0] > 127)).mean() > 0.99


def test_unreadable_images_are_named_and_the_rest_is_done(tmp_path, capsys):
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_text("no image")
    write_image(tmp_path / "in" / "c.png")
    paths = [tmp_path / "in", tmp_path / "gone.png", "http://127.0.0.1:9/d.png"]
    for batch_size in (1, 4):
        summary = predict_files(BrightSquare(), paths, tmp_path / "out", batch_size=batch_size)
        assert [entry["overlay"] for entry in summary["images"]] == ["a_overlay.png", "c_overlay.png"]
        assert [entry["input"] for entry in summary["failed"]] == [
            str(tmp_path / "in" / "b.png"), str(tmp_path / "gone.png"), "http://127.0.0.1:9/d.png",
        ]  # fmt: skip
        assert summary["complete"]
        err = capsys.readouterr().err
        assert f"error: {tmp_path / 'in' / 'b.png'} is not an image that can be read\n" in err
        assert f"error: {tmp_path / 'gone.png'}: no such file\n" in err
        assert "error: cannot download http://127.0.0.1:9/d.png: " in err


def test_inputs_are_never_overwritten(tmp_path):
    """The output folder holds inputs, one of them with the name an output would like to have."""
    images = {name: write_image(tmp_path / name, i * 4) for i, name in enumerate(("a.png", "a_overlay.png"))}
    before = {name: (tmp_path / name).read_bytes() for name in images}
    summary = predict_files(BrightSquare(), [tmp_path / name for name in images], tmp_path, progress=False)
    assert {name: (tmp_path / name).read_bytes() for name in images} == before
    written = [entry[kind] for entry in summary["images"] for kind in ("overlay", "labels")]
    assert len(set(written)) == 4 and not set(written) & set(images)
    with pytest.raises(ValueError, match="the output folder .* is also an input"):
        predict_files(BrightSquare(), tmp_path, tmp_path)


def test_stems():
    inputs = ["a/x.png", "b/x.png", "b/x.jpg", "http://host/x.png?y", "b/b_x.png", "https://host/", "a/x_2.png"]
    out = Path("out")
    assert output_stems(inputs, out) == ["x", "b_x", "x_2", "x_3", "b_b_x", "image", "a_x_2"]


def test_names_as_long_as_a_file_system_takes_them(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["x" * 251, "x" * 250 + "y", "é" * 125, "X" * 251]
    for name in names:
        write_image(folder / f"{name}.png")
    summary = predict_files(BrightSquare(), folder, tmp_path / "out", progress=False)
    found = {image[kind] for image in summary["images"] for kind in ("overlay", "labels")}
    assert len(found) == 8 and found | {"summary.json"} == set(os.listdir(tmp_path / "out"))


def test_results_of_an_earlier_run_are_replaced(tmp_path):
    write_image(tmp_path / "in" / "a.png", 8)
    predict_files(BrightSquare(), tmp_path / "in", tmp_path / "out", progress=False)
    first = (tmp_path / "out" / "a_labels.png").read_bytes()
    write_image(tmp_path / "in" / "a.png", 20)
    predict_files(BrightSquare(), tmp_path / "in", tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "a_labels.png").read_bytes() != first
    assert len(list((tmp_path / "out").iterdir())) == 3


class Interrupted(BrightSquare):
    def forward(self, x, sizes=None, targets=None):
        if len(self.inputs) == 2:
            raise KeyboardInterrupt
        return super().forward(x, sizes)


def test_ctrl_c_leaves_whole_files(tmp_path, monkeypatch):
    for name in "abcd":
        write_image(tmp_path / "in" / f"{name}.png")
    with pytest.raises(KeyboardInterrupt):
        predict_files(Interrupted(), tmp_path / "in", tmp_path / "out", progress=False)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not summary["complete"] and len(summary["images"]) == 2
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_labels.png", "a_overlay.png", "b_labels.png", "b_overlay.png", "summary.json"]
    shutil.rmtree(tmp_path / "out")
    original, calls = Image.Image.save, []

    def half(self, file, **options):
        calls.append(1)
        if len(calls) == 4:
            file.write(b"half")
            raise KeyboardInterrupt
        original(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt):
        predict_files(BrightSquare(), tmp_path / "in", tmp_path / "out", progress=False)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_labels.png", "a_overlay.png", "b_overlay.png", "summary.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_file_names_that_are_no_text(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9 \xc3\xbc.png")
    write_image(path)
    summary = predict_files(BrightSquare(), path, tmp_path / "out", progress=False)
    stored = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    assert stored == summary and stored["images"][0]["input"] == str(path)


def test_panoptic_lists_segments(tmp_path):
    write_image(tmp_path / "a.png")
    model = TwoSquares(BrightSquare().data)
    summary = predict_files(model, tmp_path / "a.png", tmp_path / "out", task="panoptic", progress=False)
    assert [s["name"] for s in summary["images"][0]["segments"]] == ["ground", "square"]


def test_wrong_calls_do_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "a.png")
    out = tmp_path / "out"
    with pytest.raises(ImageError, match=f"no images in folder {tmp_path / 'empty'}"):
        predict_files(BrightSquare(), [tmp_path / "a.png", tmp_path / "empty"], out)
    with pytest.raises(ValueError, match="list of paths is empty"):
        predict_files(BrightSquare(), [], out)
    with pytest.raises(ValueError, match="task 'depth'; perpixel_toy has semantic"):
        predict_files(BrightSquare(), tmp_path / "a.png", out, task="depth")
    with pytest.raises(ValueError, match="tile=-1"):
        predict_files(BrightSquare(), tmp_path / "a.png", out, tile=-1)
    assert not out.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="cannot make the folder .*file/out: .*file is a file"):
        predict_files(BrightSquare(), tmp_path / "a.png", tmp_path / "file" / "out", progress=False)


def test_save_names_match_the_command(tmp_path):
    """`Result.save` into a folder and the command write the same names."""
    write_image(tmp_path / "a.png")
    result = predict(BrightSquare(), tmp_path / "a.png")
    assert isinstance(result, Result)
    summary = predict_files(BrightSquare(), tmp_path / "a.png", tmp_path / "out", progress=False)
    assert [p.name for p in result.save(tmp_path / "other")] == [
        summary["images"][0]["overlay"], summary["images"][0]["labels"],
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_what_is_not_read_is_named_and_every_name_is_an_input(tmp_path, capsys):
    folder = tmp_path / "in"
    write_image(folder / "a.png")
    write_image(folder / "city" / "deep" / "c.png")
    (folder / "b.png").symlink_to("a.png")
    (folder / "dead.png").symlink_to("gone.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    for name in ("x.heic", ".DS_Store"):
        (folder / name).touch()
    for _ in range(2):  # what the first run wrote is no input of the second
        summary = predict_files(
            BrightSquare(), [folder, folder / ".." / "in" / "a.png"], folder / "out", progress=False
        )
        assert [Path(entry["input"]).name for entry in summary["images"]] == ["a.png", "b.png"]
        assert [entry["overlay"] for entry in summary["images"]] == ["a_overlay.png", "b_overlay.png"]
        assert [entry["error"].removeprefix(f"{folder}/") for entry in summary["failed"]] == [
            "dead.png: a link to gone.png, which is not there",
            "loop.png: a link to loop.png, which leads back to it",
            "pipe.png is no regular file",
        ]
        assert summary["skipped"] == [
            {"input": str(folder / "x.heic"), "reason": "another ending (.heic)"},
            {"input": str(folder / "city"), "reason": "subfolder with 1 image, not searched"},
        ]
        err = capsys.readouterr().err
        assert f"skipped: another ending (1 .heic): {folder}/x.heic; subfolder with 1 image, not searched (1)" in err
    summary = predict_files(BrightSquare(), [folder, folder / "city" / "deep"], tmp_path / "out", progress=False)
    assert len(summary["images"]) == 3 and [Path(s["input"]).name for s in summary["skipped"]] == [
        "x.heic",
        "city",
        "out",
    ]
    with pytest.raises(
        ImageError, match="no images in folder .*; subfolder with 1 image, not searched .1.: .*city/deep"
    ):
        predict_files(BrightSquare(), folder / "city", tmp_path / "out")
