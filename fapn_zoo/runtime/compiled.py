"""Functions that numba compiles once for all processes. Importing this module imports numba (about a second)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numba
from filelock import FileLock


def compiled(**options: Any) -> Callable[[Callable], Callable]:
    """A decorator that compiles a function at its first call, for each type of arguments, and keeps that on disk.

    numba's disk cache knows a function by its own file and by the integers it captures, not by what it calls in other
    files. Without a folder to keep code in (neither beside the file nor in the user's cache), or when the disk is
    full, every process compiles for itself.

    Args:
        options: those of `numba.njit`, apart from `cache`.
    """

    def decorate(function: Callable) -> Callable:
        try:
            dispatcher = numba.njit(cache=True, **options)(function)
            _save_one_at_a_time(dispatcher._cache._cache_file)
        except (RuntimeError, AttributeError):
            return numba.njit(**options)(function)  # no folder, or a numba whose cache looks different
        return dispatcher

    return decorate


def _save_one_at_a_time(file: Any) -> None:
    """Let processes add to a function's cache one after the other, and compile anew where the cache is broken.

    numba (0.68) reads the index, picks the first free number, and writes index and code. Two processes that compile
    different variants of one function at once pick the same number, and later ones run the wrong variant. The same
    happens where writing ends between index and code, and code of an older source has the number.
    """
    save, load, folder = file.save, file.load, os.path.dirname(file._index_path)
    lock, first = os.path.join(folder, "fapn_zoo.lock"), os.path.basename(file._data_name_pattern).split("{")[0]

    def save_alone(key: Any, data: Any) -> None:
        with contextlib.suppress(OSError, NotImplementedError), FileLock(lock, timeout=10):
            try:
                named = set(file._load_index().values())
            except Exception:  # unreadable, or cut off
                file.flush()
                named = set()
            for name in os.listdir(folder):
                cut = ".nbc.tmp." in name or ".nbi.tmp." in name  # of a process that was killed while it saved
                if name.startswith(first) and (cut or (name.endswith(".nbc") and name not in named)):
                    os.unlink(os.path.join(folder, name))
            save(key, data)

    def load_if_whole(key: Any) -> Any:
        try:
            return load(key)
        except Exception:
            return None

    file.save, file.load = save_alone, load_if_whole
