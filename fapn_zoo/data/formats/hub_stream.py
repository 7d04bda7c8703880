"""Rows of a Hugging Face data set that are read from its parquet files as they are needed, and not kept on the disk."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fapn_zoo.data.sample import DataError

BUFFER = 500  # rows that are shuffled together, where nobody says how many
SUFFIX = ".parquet"


class Group(NamedTuple):
    """A row group of a parquet file, which is read whole: how many rows it has, and bytes when it is read."""

    file: str
    number: int
    rows: int
    bytes: int


class StreamedRows:
    """Rows by their number, like a `datasets.Dataset`; the row group of one is read when it is asked for.

    Row groups that follow each other make a block, as many as hold `buffer` rows together, one at least. The groups of
    a block and one more are held, so who asks for all rows of a block, in any order, before those of another reads each
    group once (`fapn_zoo.data.loader.epoch_order`).

    Attributes:
        blocks: the number of the first row of each, and of all rows in the end.
        held_bytes: that the groups that are held may have.
        digest: of the footers of all files: sizes, statistics and numbers of all that is in them.
    """

    def __init__(
        self, footers: Mapping[str, Any], features: Any, buffer: int, title: str, chosen: np.ndarray | None = None
    ) -> None:
        self.footers, self.features, self.buffer, self.title = footers, features, buffer, title
        self.groups = [group for file, footer in footers.items() for group in _groups(file, footer)]
        self.ends = np.cumsum([group.rows for group in self.groups])
        self.chosen = np.arange(int(self.ends[-1])) if chosen is None else chosen
        counts = np.bincount(np.searchsorted(self.ends, self.chosen, side="right"), minlength=len(self.groups))
        blocks, sizes = [0], [0]  # rows and groups of the last block
        for count in counts.tolist():
            if sizes[-1] and blocks[-1] + count > buffer:
                blocks.append(0)
                sizes.append(0)
            blocks[-1] += count
            sizes[-1] += 1
        self.blocks = tuple(dict.fromkeys([0, *np.cumsum(blocks).tolist()]))
        self.most = max(sizes) + 1
        sums = np.cumsum([0, *(group.bytes for group in self.groups)])
        self.held_bytes = int(max(sums[min(i + self.most, len(sums) - 1)] - sums[i] for i in range(len(self.groups))))
        self._begin()

    @property
    def digest(self) -> str:
        return hashlib.sha256("".join(str(footer.to_dict()) for footer in self.footers.values()).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.chosen)

    def select(self, rows: np.ndarray) -> StreamedRows:
        """Only these rows, given in increasing order."""
        return StreamedRows(self.footers, self.features, self.buffer, self.title, self.chosen[rows])

    def cast_column(self, column: str, feature: Any) -> StreamedRows:
        """A column with another type."""
        features = self.features.copy()
        features[column] = feature
        return StreamedRows(self.footers, features, self.buffer, self.title, self.chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self.chosen[index])
        number = int(np.searchsorted(self.ends, row, side="right"))
        if self._process != os.getpid():  # what another one has read is not shared
            self._begin()
        with self._lock:
            table = self._held.pop(number, None) or self._read(self.groups[number])
            self._held[number] = table  # the last one that was used stands last
            while len(self._held) > self.most:
                del self._held[next(iter(self._held))]
        return table[row - int(self.ends[number]) + self.groups[number].rows]

    def _read(self, group: Group) -> Any:
        import datasets
        import fsspec
        from datasets.table import table_cast
        from pyarrow import parquet

        try:
            with fsspec.open(group.file, "rb") as file:
                opened = parquet.ParquetFile(file, metadata=self.footers[group.file], pre_buffer=False)
                table = table_cast(opened.read_row_group(group.number), self.features.arrow_schema)
        except Exception as error:  # of many libraries: the Hub's, its network's, pyarrow's
            raise DataError(f"{self.title}: {group.file}, row group {group.number}: {error}") from error
        return datasets.Dataset(table, info=datasets.DatasetInfo(features=self.features))

    def _begin(self) -> None:
        self._process, self._lock, self._held = os.getpid(), threading.Lock(), {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process."""
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


def _groups(file: str, footer: Any) -> list[Group]:
    found = [footer.row_group(number) for number in range(footer.num_row_groups)]
    return [Group(file, number, one.num_rows, one.total_byte_size) for number, one in enumerate(found) if one.num_rows]


def streamed(builder: Any, said: str | None, title: str) -> dict[str, StreamedRows]:
    """The splits of a data set that `builder` knows, of which the ends of the files are read.

    DataError for a buffer that is no number, other files than parquet, and files without rows.
    """
    import datasets
    import fsspec
    from pyarrow import parquet

    if said is not None and not (said.isdecimal() and int(said)):
        raise DataError(f"{title}: buffer={said!r}; expected a whole number of 1 or more")
    found: dict[str, Sequence[str]] = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    if other := [file for files in found.values() for file in files if not file.endswith(SUFFIX)]:
        raise DataError(f"{title}: parquet files are streamed, and {other[0]} is none; leave out streaming")
    splits = {}
    for split, files in found.items():
        footers, schema = {}, None
        for path in files:
            with fsspec.open(path, "rb") as file:
                opened = parquet.ParquetFile(file)
                footers[path], schema = opened.metadata, schema or opened.schema_arrow
        if not sum(footer.num_rows for footer in footers.values()):
            raise DataError(f"{title}: its split {split!r} has no rows")
        features = builder.info.features or datasets.Features.from_arrow_schema(schema)
        splits[split] = StreamedRows(footers, features, int(said or BUFFER), title)
    return splits
