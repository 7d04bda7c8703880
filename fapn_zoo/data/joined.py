"""Several data sets one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fapn_zoo.data.sample import DataError, Dataset, Sample


class JoinedDataset:
    """Several data sets one after the other; their class names must be the same, in the same order."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        if not parts:
            raise DataError("nothing to join")
        self.parts = tuple(parts)
        self.labels = parts[0].labels
        self.holds = frozenset.intersection(*(part.holds for part in parts))
        self.name = "+".join(p.name for p in parts)
        for part in parts[1:]:
            self._check_same(part)
        self._ends = np.cumsum([len(p) for p in parts])

    def _check_same(self, part: Dataset) -> None:
        ours, theirs = self.labels, part.labels
        first = self.parts[0].name
        if ours.ignore_index != theirs.ignore_index:
            raise DataError(
                f"cannot join {first} and {part.name}: ignore_index {ours.ignore_index} against {theirs.ignore_index}"
            )
        if ours.names == theirs.names:
            if "segments" in self.holds and ours.things != theirs.things:
                raise DataError(f"cannot join {first} and {part.name}: their things are other classes")
            return
        if ours.num_classes != theirs.num_classes:
            only = [f"only {first}: {n}" for n in ours.names if n not in theirs.names]
            only += [f"only {part.name}: {n}" for n in theirs.names if n not in ours.names]
            what = f"{ours.num_classes} classes against {theirs.num_classes} ({_listed(only)})"
        else:
            pairs = zip(ours.names, theirs.names, strict=True)
            what = "class " + _listed([f"{i} is {a!r} against {b!r}" for i, (a, b) in enumerate(pairs) if a != b])
        raise DataError(f"cannot join {first} and {part.name}, their class names differ: {what}")

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


def _listed(items: Sequence[str], few: int = 6) -> str:
    return ", ".join(items[:few]) + (f" and {len(items) - few} more" if len(items) > few else "")
