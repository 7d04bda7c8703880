"""Files and folders that cannot be written: one line with the path that was asked for, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from fapn_zoo.cli import main
from fapn_zoo.cli.common import EMBEDDED
from fapn_zoo.evaluate import compare, evaluate
from fapn_zoo.runtime.files import check_writable, make_folder, read_text, write_text

pytestmark = pytest.mark.unit


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text("kept")
    return path


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_a_file_in_the_way_of_a_folder_is_named(file: Path, below: str) -> None:
    with pytest.raises(NotADirectoryError, match=f"^cannot make the folder {file / below}: {file} is a file$"):
        make_folder(file / below)


def test_a_folder_that_the_system_refuses_is_named(tmp_path: Path) -> None:
    name = tmp_path / ("x" * 300)
    with pytest.raises(OSError, match=f"^cannot make the folder {name}: File name too long$"):
        make_folder(name)


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path: Path) -> None:
    for refuse in (check_writable, lambda path: write_text(path, "text")):
        with pytest.raises(IsADirectoryError, match=f"^cannot write {tmp_path}: it is a folder$"):
            refuse(tmp_path)
    assert not list(tmp_path.parent.glob(".*.part"))


def test_what_can_be_written(file: Path) -> None:
    check_writable(file)
    check_writable(file.with_name("new") / "folders" / "report.json")
    assert not file.with_name("new").exists()
    with pytest.raises(NotADirectoryError, match=f"^cannot write {file / 'x.json'}: {file} is a file$"):
        check_writable(file / "x.json")


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(PermissionError, match=f"no permission to write in {tmp_path}$"):
        check_writable(tmp_path / "new" / "report.json")


def test_text_that_is_none_is_named(file: Path) -> None:
    assert read_text(file) == "kept"
    file.write_bytes(b"\xff\xd8")
    with pytest.raises(ValueError, match=f"^{file} is no UTF-8 text: "):
        read_text(file)


@pytest.mark.parametrize(
    "words",
    [
        ("eval", EMBEDDED, "--data", "scenes:1", "--json", "FOLDER"),
        ("eval", EMBEDDED, "--data", "scenes:1", "--csv", "FOLDER"),
        ("benchmark", EMBEDDED, "--csv", "FOLDER"),
    ],
)
def test_a_place_for_results_is_tried_before_the_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("fapn_zoo.cli.evaluate.load_model", lambda *_: pytest.fail("the model was built first"))
    monkeypatch.setattr("fapn_zoo.benchmark.benchmark", lambda *_, **__: pytest.fail("it was measured first"))
    assert main([str(tmp_path) if word == "FOLDER" else word for word in words]) == 1
    assert capsys.readouterr().err == f"error: cannot write {tmp_path}: it is a folder\n"


def test_a_report_folder_is_tried_before_the_work(file: Path) -> None:
    with pytest.raises(NotADirectoryError, match=f"^cannot write {file / 'report.json'}: {file} is a file$"):
        evaluate(None, "scenes:1", out=file)
    with pytest.raises(NotADirectoryError, match=f"^cannot write {file / 'report.json'}: {file} is a file$"):
        compare([None, None], "scenes:1", out=file)


def test_no_output_folder_where_a_file_is(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    photo = file.with_name("photo.png")
    Image.new("RGB", (8, 8)).save(photo)
    assert main(["predict", str(photo), "--out", str(file)]) == 1
    assert capsys.readouterr().err.endswith(f"error: cannot make the folder {file}: {file} is a file\n")
    assert file.read_text() == "kept"
