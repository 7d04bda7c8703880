"""Several data sets one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fapn_zoo.data.classes import class_difference
from fapn_zoo.data.sample import DataError, Dataset, Sample


class JoinedDataset:
    """Several data sets one after the other; their class names must be the same, in the same order."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = tuple(parts)
        self.labels = parts[0].labels
        self.holds = frozenset.intersection(*(part.holds for part in parts))
        self.name = "+".join(p.name for p in parts)
        for part in parts[1:]:
            self._check_same(part)
        self._ends = np.cumsum([len(p) for p in parts])

    def _check_same(self, part: Dataset) -> None:
        first, ours, theirs = self.parts[0].name, self.labels, part.labels
        found = class_difference(first, ours.names, part.name, theirs.names)
        if ours.ignore_index != theirs.ignore_index:
            found = f"ignore_index {ours.ignore_index} against {theirs.ignore_index}"
        elif not found and "segments" in self.holds and ours.things != theirs.things:
            found = "their things are other classes"
        if found:
            raise DataError(f"cannot join {first} and {part.name}: {found}")

    def _where(self, index: int) -> tuple[Dataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part], index - int(self._ends[part] - len(self.parts[part]))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def size(self, index: int) -> tuple[int, int]:
        part, i = self._where(index)
        return part.size(i)

    def files(self, index: int) -> tuple[Path, ...]:
        part, i = self._where(index)
        return part.files(i)

    def sample(self, index: int) -> Sample:
        part, i = self._where(index)
        return part.sample(i)
