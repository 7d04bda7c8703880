"""Rows of a Hugging Face data set that are read from the network as they are needed, and not kept on the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fapn_zoo.data.sample import DataError

BUFFER = 500  # rows that are shuffled together, where nobody says how many


class StreamedRows:
    """Rows by their number, like a `datasets.Dataset`, of a `datasets.IterableDataset`.

    At most two buffers of rows are held, as they are stored. Rows are asked for in their order, or shuffled within
    blocks of a buffer (`fapn_zoo.data.loader.epoch_order`); asking for one further away skips to it, or begins anew.

    Args:
        stream: the rows. count: how many there are. buffer: rows of a block. title: for errors.
        chosen: numbers of the rows that count, in increasing order; None for all.
    """

    def __init__(self, stream: Any, count: int, buffer: int, title: str, chosen: Sequence[int] | None = None) -> None:
        self.stream, self.count, self.buffer, self.title, self.chosen = stream, count, buffer, title, chosen
        self._begin()

    @property
    def features(self) -> Mapping[str, Any]:
        """Columns and their types. DataError where these are known to nobody before the rows are read."""
        if self.stream.features is None:
            raise DataError(f"{self.title}: the types of its columns are not stated; leave out streaming")
        return self.stream.features

    def __len__(self) -> int:
        return self.count if self.chosen is None else len(self.chosen)

    def select(self, rows: np.ndarray) -> StreamedRows:
        """Only these rows, given in increasing order."""
        return StreamedRows(self.stream, self.count, self.buffer, self.title, rows.tolist())

    def cast_column(self, column: str, feature: Any) -> StreamedRows:
        """A column with another type."""
        return StreamedRows(self.stream.cast_column(column, feature), self.count, self.buffer, self.title, self.chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._process != os.getpid():  # a connection is not shared
            self._begin()
        with self._lock:
            if index not in self._held:
                self._read_to(index)
            return self._held[index]

    def _read_to(self, index: int) -> None:
        block = index - index % self.buffer
        if not self._next <= index < self._next + 2 * self.buffer:
            self._restart(block)
        while self._next <= index:
            self._held[self._next] = self._read(self._row(self._next))
            self._next += 1
        for old in [one for one in self._held if one < block - self.buffer]:
            del self._held[old]

    def _row(self, index: int) -> int:
        return index if self.chosen is None else self.chosen[index]

    def _read(self, row: int) -> dict[str, Any]:
        try:
            while self._place < row:
                next(self._rows)
                self._place += 1
            self._place += 1
            return next(self._rows)
        except StopIteration:
            text = f"the stream ends before row {row}, and {self.count} rows are stated"
            raise DataError(f"{self.title}: {text}; say how many there are as &rows=N") from None

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._restart(0)

    def _restart(self, first: int) -> None:
        self._next, self._place, self._held = first, self._row(first) if len(self) else 0, {}
        stream = self.stream.skip(self._place) if self._place else self.stream
        # One by one: iterating over it plainly gives each loader worker a share of its own.
        self._rows: Iterator[dict[str, Any]] = ({k: v[0] for k, v in row.items()} for row in stream.iter(1))

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process."""
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


def streamed(found: Mapping[str, Any], options: Mapping[str, str], title: str) -> dict[str, StreamedRows]:
    """The splits of a streamed data set. DataError for options that are no numbers, or a count that nobody states."""
    numbers = {}
    for key in ("rows", "buffer"):
        if key in options and not (options[key].isdecimal() and int(options[key])):
            raise DataError(f"{title}: {key}={options[key]!r}; expected a whole number of 1 or more")
        numbers[key] = int(options[key]) if key in options else None
    splits = {}
    for name, stream in found.items():
        stated = getattr((stream.info.splits or {}).get(name), "num_examples", None)
        count = numbers["rows"] or stated
        if not count:
            text = f"how many rows its split {name!r} has is not stated"
            raise DataError(f"{title}: {text}; add &rows=N, or leave out streaming")
        splits[name] = StreamedRows(stream, count, numbers["buffer"] or BUFFER, title)
    return splits
