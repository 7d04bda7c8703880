"""A folder has one writer at a time, and a dead one has no claim."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import fapn_zoo
from fapn_zoo.runtime.claim import claimed

pytestmark = pytest.mark.unit
# Claims, forks as loaders of data do, and waits.
HOLDER = """
import os, sys, time
from pathlib import Path
from fapn_zoo.runtime.claim import claimed
with claimed(Path(sys.argv[1]), "training"):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error, claimed(folder, "training"):
        pass
    return str(error.value)


def test_the_second_is_refused_and_changes_nothing(tmp_path: Path):
    out = tmp_path / "out"
    with claimed(out, "training"):
        for _ in range(2):
            assert refusal(out).startswith(f"{out} is in use by another training; ")
        (tmp_path / "link").symlink_to(out)
        assert "in use by another training" in refusal(tmp_path / "link")
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(refusal(out)))
        thread.start()
        thread.join()
        assert "in use by another training" in found[0]
        (out / "log").write_text("mine")
    assert [path.name for path in out.iterdir()] == ["log"]
    with claimed(out, "training"):
        pass


def test_nothing_is_left_of_a_folder_that_was_made_in_vain(tmp_path: Path):
    (tmp_path / "old").mkdir()
    for folder, last in ((tmp_path / "a/b/c", tmp_path / "a"), (tmp_path / "old", tmp_path / "none")):
        with pytest.raises(KeyError), claimed(folder, "training"):
            raise KeyError
        assert not last.exists()
    assert (tmp_path / "old").is_dir()
    with claimed(tmp_path / "a/b", "training"):
        (tmp_path / "a/c").write_text("meanwhile")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["c"]


def test_files_in_the_way_are_named(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with (
            pytest.raises(NotADirectoryError, match="cannot make the folder .*file is a file"),
            claimed(folder, "training"),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, number: int):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(tmp_path, "training"):
        assert f"{tmp_path} cannot be locked here" in caplog.text and "start no second training in it" in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_claim_of_a_killed_process_ends_though_its_children_live(tmp_path: Path):
    root = str(Path(fapn_zoo.__file__).parents[1])
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root})
    child = int(process.stdout.readline())
    try:
        assert "is in use by another training" in refusal(tmp_path / "out")
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # it is there
        with claimed(tmp_path / "out", "training"):
            pass
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
    assert not list((tmp_path / "out").iterdir())
