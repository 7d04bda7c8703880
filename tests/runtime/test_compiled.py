"""Functions compiled once for all processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Never

import numba
import pytest

from fapn_zoo.runtime.compiled import compiled

pytestmark = pytest.mark.unit

VARIANTS = """
from fapn_zoo.runtime.compiled import compiled

def make(factor):
    @compiled()
    def times(number):
        return number * factor

    return times
"""
# Compiles one variant when the other process is ready too, and is slow between reading the index and writing it.
RACE = """
import sys, time
from pathlib import Path
import variants
from numba.core.caching import IndexDataCacheFile

save_index = IndexDataCacheFile._save_index
def slowly(self, overloads):
    time.sleep(1)
    save_index(self, overloads)
IndexDataCacheFile._save_index = slowly
Path(f"ready{sys.argv[1]}").touch()
while not (Path("ready2").exists() and Path("ready3").exists()):
    time.sleep(0.01)
assert variants.make(int(sys.argv[1]))(10) == 10 * int(sys.argv[1])
"""
CHECK = """
import variants
for factor in (2, 3):
    times = variants.make(factor)
    print(times(10), sum(times.stats.cache_hits.values()))
"""


def test_processes_that_compile_at_once_do_not_mix_their_code(tmp_path: Path) -> None:
    (tmp_path / "variants.py").write_text(VARIANTS)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    options = {"cwd": tmp_path, "env": environment | {"PYTHONPATH": path}}
    both = [subprocess.Popen([sys.executable, "-c", RACE, factor], **options) for factor in "23"]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    found = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True, **options).stdout
    assert found.split("\n")[:2] == ["20 1", "30 1"]  # the right result, and from the disk


# Compiles what changed when a source is edited, with the disk full before the code is written, or a broken index.
EDITED = """
import errno
import variants
from numba.core.caching import IndexDataCacheFile

def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

IndexDataCacheFile._save_data = full
assert variants.make(2)(10) == 21
"""


@pytest.fixture
def variants(tmp_path: Path) -> Callable[[str], str]:
    """A function that runs Python code beside the module of `VARIANTS`."""
    (tmp_path / "variants.py").write_text(VARIANTS)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    options = {"cwd": tmp_path, "env": environment | {"PYTHONPATH": path}, "capture_output": True, "text": True}

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_code_of_an_older_source_is_never_run(variants: Callable[[str], str], tmp_path: Path) -> None:
    assert variants("import variants; print(variants.make(2)(10))") == "20\n"
    (tmp_path / "variants.py").write_text(VARIANTS.replace("number * factor", "number * factor + 1"))
    variants(EDITED)
    assert variants("import variants; print(variants.make(2)(10))") == "21\n"


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_cache_cut_off_is_written_anew(variants: Callable[[str], str], tmp_path: Path, suffix: str) -> None:
    variants(CHECK)
    for file in (tmp_path / "__pycache__").glob(f"*.{suffix}"):
        file.write_bytes(file.read_bytes()[:20])
    for hits in (0, 1):
        assert variants(CHECK).split("\n")[:2] == [f"20 {hits}", f"30 {hits}"]


@pytest.mark.parametrize("error", [RuntimeError("cannot cache function: no locator available"), AttributeError("x")])
def test_without_a_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def njit(cache: bool = False, **options: Any) -> Callable:
        if cache:
            raise error
        return numba.njit(**options)

    monkeypatch.setattr("fapn_zoo.runtime.compiled.numba", SimpleNamespace(njit=njit))
    assert compiled(nogil=True)(lambda number: number + 1)(1) == 2


def test_a_full_disk_loses_nothing_but_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Never:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)

    @compiled()
    def plus_one(number: int) -> int:
        return number + 1

    assert plus_one(1) == 2
