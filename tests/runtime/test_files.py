"""Files and folders that cannot be written: one line with the path that was asked for, and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from fapn_zoo.cli import main
from fapn_zoo.cli.common import EMBEDDED
from fapn_zoo.evaluate import compare, evaluate
from fapn_zoo.runtime import files
from fapn_zoo.runtime.files import (
    append_line,
    check_writable,
    make_folder,
    move_files,
    read_text,
    remove_leavings,
    write_text,
    write_whole,
)

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


def fill_disk(monkeypatch: pytest.MonkeyPatch, number: int, room: int = 0, moment: str = "write") -> None:
    """Files may grow to so many bytes, and then there is an error: when they are written, at fsync or at close."""

    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            taken = memoryview(data)[: max(0, room - self.tell())] if moment == "write" else data
            if not taken:
                refuse()
            return super().write(taken)

        def close(self) -> None:
            done = self.closed
            super().close()
            if moment == "close" and not done:
                refuse()

    def opened(path: Path, mode: str, buffering: int = -1) -> Any:
        return File(path, mode) if buffering == 0 else io.BufferedWriter(File(path, mode))

    monkeypatch.setattr(files, "open", opened, raising=False)
    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", lambda descriptor: refuse())


def as_torch(file: BinaryIO) -> None:
    torch.save({"x": torch.arange(5000)}, file)


def as_archive(file: BinaryIO) -> None:
    np.savez(file, x=np.arange(5000), y=np.arange(3))


def as_text(file: BinaryIO) -> None:
    file.write(b"x" * 5000)


def as_picture(file: BinaryIO) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)).save(file, "png")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("write", [as_torch, as_archive, as_text, as_picture])
def test_no_room_is_one_line_that_says_how_much(
    file: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[BinaryIO], None], number: int
) -> None:
    write_whole(file, write)
    before, needed = file.read_bytes(), file.stat().st_size
    for room in (0, 1, 1000, needed // 2, needed - 1):
        with monkeypatch.context() as patch:
            fill_disk(patch, number, room)
            with pytest.raises(OSError, match=rf"^cannot write {file}: {os.strerror(number)}; .*$") as raised:
                write_whole(file, write)
        assert f"; it needs {needed} bytes, " in str(raised.value) and " are free there" in str(raised.value)
        assert raised.value.errno == number and "\n" not in str(raised.value)
        assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]
    fill_disk(monkeypatch, number, needed)
    write_whole(file, write)  # what just fits
    assert file.read_bytes() == before


@pytest.mark.parametrize("moment", ["fsync", "close"])
def test_errors_that_come_late_are_seen(file: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch, errno.EDQUOT, moment=moment)
        with pytest.raises(OSError, match=rf"^cannot write {file}: Disk quota exceeded; it needs 5000 bytes, "):
            write_whole(file, as_text, sync=True)
    assert file.read_text() == "kept" and os.listdir(file.parent) == [file.name]


def test_a_file_system_without_write_permission_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "touch", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only", "x")))
    with pytest.raises(OSError, match=f"^cannot write {file}: Read-only$"):
        write_whole(file, as_text)
    assert os.listdir(file.parent) == [file.name]


def test_a_line_that_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    append_line(log, "first")
    with monkeypatch.context() as patch:
        fill_disk(patch, errno.ENOSPC, room=9)
        with pytest.raises(OSError, match=rf"^cannot write {log}: No space left on device; it needs 7 bytes, "):
            append_line(log, "second")
    assert log.read_text().startswith("first\n")


LEAVINGS = (".a.json.0123abcd.part", ".out.89abcdef.part", ".step-00000004.4711.tmp", ".writing-ab_cd012")
KEPT = ("a.part", ".hidden", ".a.json.part", ".step-4.tmp", ".writing-", "step-00000004")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_killed_writers_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    for name in LEAVINGS + KEPT:
        if kind == "folder":
            (tmp_path / name).mkdir()
        (tmp_path / name / "x" if kind == "folder" else tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (0, 0))
    write_text(tmp_path / "b.json", "{}")
    assert sorted(os.listdir(tmp_path)) == sorted([*KEPT, "b.json"])


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    new, old = tmp_path / LEAVINGS[0], tmp_path / LEAVINGS[1]
    for path in (new, old):
        path.write_text("x")
    os.utime(old, (0, 0))
    remove_leavings(tmp_path)
    assert os.listdir(tmp_path) == [new.name]
    remove_leavings(tmp_path, alone=True)
    assert os.listdir(tmp_path) == []


def test_files_that_belong_together_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, real = ("weights", "card", "config"), os.replace
    for killed_at in range(4):
        source, target = tmp_path / f"new{killed_at}", tmp_path / f"old{killed_at}"
        for folder in (source, target):
            folder.mkdir()
            for name in names:
                (folder / name).write_text(folder.name)
        left = killed_at

        def replace(a: Path, b: Path) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            real(a, b)

        monkeypatch.setattr(os, "replace", replace)
        with contextlib.suppress(KeyboardInterrupt):
            move_files(source, target, names)
        if (target / "config").exists():
            assert {(target / name).read_text() for name in names} == {source.name}
        else:
            assert killed_at < 3
