"""What an interrupted evaluation leaves behind, so that the next one goes on where it stopped.

A state is a folder: `state.json` says what is evaluated, and every `part-*.npz` holds the tallies of some images. A
part is written whole and never changed, so a process killed at any moment loses only the images since its last part,
and any number of processes can go on with what others left.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fapn_zoo.metrics.accumulator import Tally
from fapn_zoo.runtime.files import read_json, remove_leavings, write_json, write_whole

FORMAT = 4
SECONDS = 20.0  # between parts


class Counted(NamedTuple):
    """What was counted of one image of the data set."""

    index: int
    name: str
    tally: Tally


class State:
    """The state folder of one evaluation.

    Args:
        folder: made if missing.
        identity: what is evaluated and how, plain JSON values; everything a count may depend on.
        empty: makes a tally of no image.
        main: whether this process writes `state.json`.

    Attributes:
        done: indices of the images that earlier runs have counted.

    Raises:
        ValueError: the folder holds another evaluation (the differences are named), or something unreadable.
    """

    def __init__(
        self, folder: str | os.PathLike, identity: Mapping[str, Any], empty: Callable[[], Tally], main: bool = True
    ) -> None:
        self.folder, self.empty = Path(folder), empty
        self.pending: list[Counted] = []
        remove_leavings(self.folder)
        self._check({"format": FORMAT} | json.loads(json.dumps(identity)), main)
        self._parts = sorted(self.folder.glob("part-*.npz"))  # of earlier runs
        self.done = {int(i) for file in self._parts for i in self._read(file)["index"]}
        self._saved = time.monotonic()

    def _check(self, identity: dict[str, Any], main: bool) -> None:
        file = self.folder / "state.json"
        if not file.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.glob("part-*.npz"))):
                raise ValueError(f"{self.folder} is not the state of an evaluation; give another path")
            if main:
                write_json(file, identity)
            return
        held = read_json(file)
        different = [key for key in {**held, **identity} if held.get(key) != identity.get(key)]
        if different:
            pairs = ", ".join(f"{key} (was {held.get(key)!r}, now {identity.get(key)!r})" for key in different)
            raise ValueError(f"{self.folder} holds another evaluation: {pairs}; use the same or another path")

    def _read(self, file: Path) -> dict[str, np.ndarray]:
        try:
            with np.load(file, allow_pickle=False) as part:
                return {name: part[name] for name in ("index", "name", *part.files)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{file} is damaged ({error}); delete it and its images are counted again") from error

    def entries(self) -> Iterator[Counted]:
        """The images that earlier runs have counted, each once."""
        seen: set[int] = set()
        for file in self._parts:
            part = self._read(file)
            for place, (index, name) in enumerate(zip(part["index"].tolist(), part["name"].tolist(), strict=True)):
                if index not in seen:
                    seen.add(index)
                    empty = self.empty()
                    yield Counted(index, name, empty.load({key: part[f"{place}.{key}"] for key in empty.arrays()}))

    def add(self, entry: Counted) -> None:
        """Takes the tally of an image, and writes a part once `SECONDS` have passed since the last."""
        self.pending.append(entry)
        if time.monotonic() - self._saved >= SECONDS:
            self.save()

    def save(self) -> None:
        """Writes a part with the images since the last one."""
        if self.pending:
            part = {
                "index": np.array([entry.index for entry in self.pending], np.int64),
                "name": np.array([entry.name for entry in self.pending], np.str_),
            }
            for place, entry in enumerate(self.pending):
                part |= {f"{place}.{key}": array for key, array in entry.tally.arrays().items()}
            write_whole(self.folder / f"part-{uuid.uuid4().hex}.npz", lambda file: np.savez_compressed(file, **part))
            self.pending.clear()
        self._saved = time.monotonic()
