"""What an interrupted evaluation leaves behind, so that the next one goes on where it stopped.

A state is a folder: ``state.json`` says what is evaluated, and every ``part-*.npz`` holds the counts of some images,
sparse, one row per image. A part is written whole and never changed, so a process killed at any moment loses only the
images since its last part, and any number of processes can go on with what others left.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fapn_zoo.runtime.files import make_folder, write_text, write_whole

FORMAT = 1
SECONDS = 20.0  # between parts


class Counted(NamedTuple):
    """The counts of one image of the data set: a vector of integers."""

    index: int
    name: str
    counts: np.ndarray


class State:
    """The state folder of one evaluation.

    Args:
        folder: made if missing.
        identity: what is evaluated and how, plain JSON values; everything a count may depend on.
        length: of the vectors of counts; None for vectors of any length, which are kept whole.
        main: whether this process writes ``state.json``.

    Attributes:
        done: indices of the images that earlier runs have counted.

    Raises:
        ValueError: the folder holds another evaluation (the differences are named), or something unreadable.
    """

    def __init__(
        self, folder: str | os.PathLike, identity: Mapping[str, Any], length: int | None, main: bool = True
    ) -> None:
        self.folder, self.length = Path(folder), length
        self.pending: list[Counted] = []
        self._check({"format": FORMAT} | json.loads(json.dumps(identity)), main)
        self._parts = sorted(self.folder.glob("part-*.npz"))  # of earlier runs
        self.done = {int(i) for file in self._parts for i in self._read(file, "index")[0]}
        self._saved = time.monotonic()

    def _check(self, identity: dict[str, Any], main: bool) -> None:
        file = self.folder / "state.json"
        if not file.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.glob("part-*.npz"))):
                raise ValueError(f"{self.folder} is not the state of an evaluation; give another path")
            if main:
                make_folder(self.folder)
                write_text(file, json.dumps(identity, indent=1) + "\n")
            return
        try:
            held = dict(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file} is not readable JSON: {error}") from None
        different = [key for key in {**held, **identity} if held.get(key) != identity.get(key)]
        if different:
            pairs = ", ".join(f"{key} (was {held.get(key)!r}, now {identity.get(key)!r})" for key in different)
            raise ValueError(f"{self.folder} holds another evaluation: {pairs}; use the same or another path")

    def _read(self, file: Path, *names: str) -> list[np.ndarray]:
        try:
            with np.load(file, allow_pickle=False) as part:
                return [part[name] for name in names]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} is damaged ({error}); delete it and its images are counted again") from error

    def entries(self) -> Iterator[Counted]:
        """The images that earlier runs have counted, each once."""
        seen: set[int] = set()
        for file in self._parts:
            index, name, ends, where, count = self._read(file, "index", "name", "ends", "where", "count")
            for i, rows, values in zip(range(len(index)), _cut(where, ends), _cut(count, ends), strict=True):
                if int(index[i]) not in seen:
                    seen.add(int(index[i]))
                    counts = values
                    if self.length is not None:
                        counts = np.zeros(self.length, np.int64)
                        counts[rows] = values
                    yield Counted(int(index[i]), str(name[i]), counts)

    def add(self, entries: list[Counted]) -> None:
        """Takes the counts of a whole batch."""
        self.pending += entries

    def save_if_due(self) -> None:
        """Writes a part once `SECONDS` have passed since the last; call it when a batch is complete."""
        if time.monotonic() - self._saved >= SECONDS:
            self.save()

    def save(self) -> None:
        """Writes a part with the images since the last one."""
        if self.pending:
            values, rows = [entry.counts for entry in self.pending], [np.empty(0, np.int64)]
            if self.length is not None:
                rows = [np.flatnonzero(counts) for counts in values]
                values = [counts[where] for counts, where in zip(values, rows, strict=True)]
            part = {
                "index": np.array([entry.index for entry in self.pending], np.int64),
                "name": np.array([entry.name for entry in self.pending], np.str_),
                "ends": np.cumsum([len(counts) for counts in values]),
                "where": np.concatenate(rows),
                "count": np.concatenate(values),
            }
            make_folder(self.folder)
            write_whole(self.folder / f"part-{uuid.uuid4().hex}.npz", lambda file: np.savez(file, **part))
            self.pending.clear()
        self._saved = time.monotonic()


def _cut(values: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    return np.split(values, ends[:-1])
