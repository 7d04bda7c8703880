"""One walker for all folders: what is used, and why the rest is not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fapn_zoo.data import listing
from fapn_zoo.data.listing import list_folder, missing, subfolders, told

pytestmark = [pytest.mark.unit, pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")]


def kinds(folder: Path, deep: bool = True) -> dict[str, str]:
    return {str(one.path.relative_to(folder)): one.kind for one in list_folder(folder, (".png",), deep).unused}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "B.PNG", "city/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_files_of_all_depths_and_cases(folder: Path):
    (folder / "linked.png").symlink_to("a.png")
    (folder / "other").symlink_to("city")
    found = [str(path.relative_to(folder)) for path in list_folder(folder, (".png",)).files]
    assert found == ["B.PNG", "a.png", "city/deep/c.png", "linked.png", "other/deep/c.png"]
    assert kinds(folder) == {}
    assert [path.name for path in list_folder(folder, (".png",), deep=False).files] == ["B.PNG", "a.png", "linked.png"]


def test_what_is_not_used_and_why(folder: Path):
    (folder / "dead.png").symlink_to("gone/x.png")
    (folder / "city/loop.png").symlink_to("loop.png")
    (folder / "city/up").symlink_to("..")
    os.mkfifo(folder / "pipe.png")
    for name in ("x.heic", "notes", ".hidden.png", "city/y.npy"):
        (folder / name).touch()
    assert kinds(folder) == {
        "dead.png": "dead link",
        "city/loop.png": "dead link",
        "pipe.png": "no regular file",
        "x.heic": "another ending",
        "notes": "another ending",
        "city/y.npy": "another ending",
    }
    unused = list_folder(folder, (".png",)).unused
    assert {one.path.name for one in unused if one.error} == {"dead.png", "loop.png", "pipe.png"}
    reasons = {one.path.name: one.reason for one in unused}
    assert reasons["dead.png"] == f"{folder}/dead.png: a link to gone/x.png, which is not there"
    assert reasons["loop.png"] == f"{folder}/city/loop.png: a link to loop.png, which leads back to it"
    text = told(unused, folder)
    assert "dead link (2): city/loop.png -> loop.png, dead.png -> gone/x.png" in text
    assert "another ending (1 .npy, 1 none, 1 .heic): city/y.npy, notes, x.heic" in text


def test_what_systems_leave_behind_is_no_news(folder: Path):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert kinds(folder) == {} and len(list_folder(folder, (".png",)).files) == 3


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch):
    real = os.scandir

    def locked(path: object) -> object:
        if os.path.basename(path) == "deep":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(listing.os, "scandir", locked)
    (one,) = list_folder(folder, (".png",)).unused
    assert one.error and one.reason == f"{folder}/city/deep: Permission denied"


def test_subfolders_with_images(folder: Path):
    (folder / "empty").mkdir()
    (folder / "out").mkdir()
    (folder / "out" / "a.png").touch()
    assert [one.reason for one in subfolders(folder, (".png",), leave_out=folder / "out")] == [
        f"{folder}/city: subfolder with 1 image, not searched"
    ]
    assert len(subfolders(folder, (".png",))) == 2
    assert subfolders(folder, (".png",), leave_out=folder / "city" / "deep" / "..")[0].path.name == "out"


def test_words_for_a_missing_file(tmp_path: Path):
    (tmp_path / "dead").symlink_to("x")
    os.mkfifo(tmp_path / "pipe")
    assert missing(tmp_path / "gone") == f"{tmp_path}/gone: no such file"
    assert missing(tmp_path / "pipe") == f"{tmp_path}/pipe is no regular file"
    assert missing(tmp_path / "dead", tmp_path / "l.json") == (
        f"{tmp_path}/dead, which {tmp_path}/l.json lists: a link to x, which is not there"
    )
