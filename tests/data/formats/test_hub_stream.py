"""Rows of the Hub as a stream: the samples of the whole set, in bounded memory, and a run that goes on where it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from toys.hub_rows import H, W, ids, named, picture, semantic, write

from fapn_zoo.data.check import check_data
from fapn_zoo.data.loader import StepBatches, train_batches
from fapn_zoo.data.sample import DataError
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.data.supervision import count_classes

pytestmark = pytest.mark.unit
ROWS = 23


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return grouped(named(write(tmp_path / "set", semantic(ROWS), alone=True)), 2)


def grouped(folder: Path, rows: int) -> Path:
    """With row groups of so many rows."""
    parquet.write_table(parquet.read_table(folder / "train.parquet"), folder / "train.parquet", row_group_size=rows)
    return folder


def stream(folder: Path, split: str = "train", buffer: int = 4, **options: object) -> object:
    query = "".join(f"&{key}={value}" for key, value in {"buffer": buffer, **options}.items())
    return open_dataset(f"hf:{folder}?streaming=true{query}", split)


def test_samples_and_splits_are_those_of_the_whole_set(folder: Path):
    for split in ("train", "val"):
        whole, found = open_dataset(f"hf:{folder}", split), stream(folder, split)
        assert len(found) == len(whole) and found.labels == whole.labels and found.blocks[-1] == len(whole)
        for n in range(len(whole)):
            ours, theirs = found.sample(n), whole.sample(n)
            assert np.array_equal(ours.image, theirs.image) and np.array_equal(ours.labels, theirs.labels)
            assert found.size(n) == (H, W)
        assert found.sample(0).name == "row_000000", "it begins anew"
        assert count_classes(found).pixels.tolist() == count_classes(whole).pixels.tolist()
    assert "streamed, and shuffled in blocks of up to 4 rows" in " ".join(found.unused)
    report = check_data(f"hf:{folder}?streaming=true", progress=False)
    assert report.ok and sum(c.samples for c in report.splits.values()) == ROWS


def names(folder: Path, start: int = 0, workers: int = 0, rank: int = 0, world: int = 1) -> list[tuple[str, ...]]:
    batches = StepBatches(stream(folder), lambda sample, _: sample, 4, 7, start, 16, rank, world)
    return [tuple(s.name for s in batch) for batch in train_batches(batches, list, workers)]


def test_every_epoch_has_each_row_once_in_another_order(folder: Path):
    found = [name for batch in names(folder) for name in batch]
    first, second = found[:21], found[21:42]
    assert len({*first}) == len({*second}) == 21 and first != second
    places = [int(name[-6:]) for name in first]
    assert places != sorted(places) and max(abs(place - n) for n, place in enumerate(places)) > 4
    ends = stream(folder).blocks
    whole = open_dataset(f"hf:{folder}", "train")
    assert ends[0] == 0 and ends[-1] == len(whole) and max(np.diff(ends)) <= 4


def test_a_run_that_goes_on_sees_the_same_rows(folder: Path):
    whole = names(folder)
    assert all(names(folder, start) == whole[start:] for start in (1, 5, 11, 15))
    assert names(folder, workers=2) == whole
    parts = [names(folder, rank=rank, world=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


PEAK = """
import resource, sys
from fapn_zoo.data.loader import StepBatches, train_batches
from fapn_zoo.data.sources import open_dataset
data = open_dataset(sys.argv[1], "train")
batches = train_batches(StepBatches(data, lambda sample, _: sample, 10, 0, 0, len(data) // 10), list)
next(batches)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = 10 + sum(len(batch) for batch in batches)
print(read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, data.rows.table.held_bytes)
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path):
    noise = np.random.default_rng(0).bytes(40000)  # behind a picture, where no reader looks
    image = {"bytes": semantic(1)[0]["image"] + noise, "path": None}
    row = {"image": image, "label": {"bytes": semantic(1)[0]["label"], "path": None}}
    folder = tmp_path / "set"
    folder.mkdir()
    table = pa.Table.from_pylist([row] * 50)
    with parquet.ParquetWriter(named(folder) / "train.parquet", table.schema, use_dictionary=False) as writer:
        for _ in range(60):
            writer.write_table(table)
    parquet.write_table(table, folder / "validation.parquet")
    command = [sys.executable, "-c", PEAK, f"hf:{folder}?streaming=true&buffer=100"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    read, grown, held = map(int, run.stdout.split()[-3:])
    assert read == 3000 and held < 8e6 and grown * 1024 < 40e6, "the rows have 120 MB"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"buffer": 0}, "buffer='0'; expected a whole number of 1 or more"),
        ({"streaming": "yes"}, "streaming='yes'; expected true or false"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str, folder: Path):
    with pytest.raises(DataError, match=message):
        data = stream(folder, **options)
        for n in range(len(data)):
            data.sample(n)


def test_what_cannot_be_streamed_says_so(folder: Path, tmp_path: Path):
    boxes = {"bbox": [[2.0, 3.0, 10.5, 6.0]], "category": [0]}
    write(tmp_path / "boxes", [{"image": semantic(1)[0]["image"], "objects": boxes}] * 3)
    with pytest.raises(DataError, match="objects are looked through before a training; leave out streaming"):
        open_dataset(f"hf:{tmp_path / 'boxes'}?streaming=true", "train")
    with pytest.raises(DataError, match="cannot join hf:set: a stream has an order of its own"):
        open_dataset(f"hf:{folder}?streaming=true", "train+val")
    assert np.array_equal(stream(folder).sample(3).labels, ids(3)) and picture(3).shape == (H, W, 3)
