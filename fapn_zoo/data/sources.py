"""`open_dataset`, the door to all data sets, and several of them joined."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from fapn_zoo.data.classes import class_difference
from fapn_zoo.data.folders import warn
from fapn_zoo.data.generated import SCENE_GRAMMAR
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.layouts import choose
from fapn_zoo.data.reading_rules import Reading, joined_reading, reading_of
from fapn_zoo.data.sample import DataError, Dataset, Sample


class JoinedDataset:
    """Several data sets one after the other; their class names must be the same, in the same order."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = tuple(parts)
        self.labels = parts[0].labels
        self.reading = joined_reading([reading_of(part) for part in parts])
        self.holds = frozenset.intersection(*(part.holds for part in parts))
        self.name = "+".join(p.name for p in parts)
        self._ends = np.cumsum([len(p) for p in parts])
        if streams := [part.name for part in parts if getattr(part, "blocks", ())]:
            raise DataError(f"cannot join {streams[0]}: a stream has an order of its own; leave out streaming")
        first, ours = parts[0].name, self.labels
        for part in parts[1:]:
            found = class_difference(first, ours.names, part.name, part.labels.names)
            if ours.ignore_index != part.labels.ignore_index:
                found = f"ignore_index {ours.ignore_index} against {part.labels.ignore_index}"
            elif not found and "boxes" in self.holds and ours.things != part.labels.things:
                found = "their things are other classes"
            if found:
                raise DataError(f"cannot join {first} and {part.name}: {found}")

    def where(self, index: int) -> tuple[Dataset, int]:
        """The part that sample `index` is of, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part], index - int(self._ends[part] - len(self.parts[part]))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def size(self, index: int) -> tuple[int, int]:
        part, i = self.where(index)
        return part.size(i)

    def files(self, index: int) -> tuple[Path, ...]:
        part, i = self.where(index)
        return part.files(i)

    def sample(self, index: int) -> Sample:
        part, i = self.where(index)
        return part.sample(i)


def open_dataset(
    source: str | Path,
    split: str,
    needs: Collection[str] = ("labels",),
    num_classes: int | None = None,
    reading: Reading | None = None,
    table: LabelMap | None = None,
) -> Dataset:
    """Opens a data set by its name.

    Args:
        source: a folder of one of the `layouts.LAYOUTS`, with `NAME:` before it where it is to be read as the layout
            of that name; `scenes:N` or `scenes:N@HxW` (see `ScenesDataset`); or several of them joined with commas:
            then their class names must be equal.
        split: "train", "val", "test", or another that the folder has; "train+val" joins two.
        needs: what samples are for: "labels", "segments", "masks", "boxes". It chooses in a folder that can be read in
            two ways; what is opened may hold less (`check_holds`).
        num_classes: number of classes; for a folder without `classes.json`, else it must agree.
        reading: how pictures are read; what it leaves open, each folder's `classes.json` says.
        table: the classes of a folder that says nothing of them, where `num_classes` is not known either.

    Raises:
        FileNotFoundError: no such folder or split. DataError: everything else; both name the thing.
    """
    text = str(source)
    names = [text] if Path(text).is_dir() else [p.strip() for p in text.split(",")]  # a folder may hold a comma
    if not all(names):
        raise DataError(f"empty name in data source {text!r}; write a folder, {SCENE_GRAMMAR}, or several with commas")
    opened = [_open(name, part, needs, num_classes, reading, table) for name in names for part in split.split("+")]
    return opened[0] if len(opened) == 1 else JoinedDataset(opened)


def _open(
    name: str,
    split: str,
    needs: Collection[str],
    num_classes: int | None,
    reading: Reading | None,
    table: LabelMap | None,
) -> Dataset:
    kind, path = choose(name, needs)
    options = {"table": table} if getattr(kind, "takes_table", False) else {}
    opened = kind(path, split, num_classes, reading, **options)
    for text in getattr(opened, "unused", ()):
        warn(text)
    return opened
