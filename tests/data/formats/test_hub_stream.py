"""Rows of the Hub as a stream: the samples of the whole set, in bounded memory, and a run that goes on where it was."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
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
    return named(write(tmp_path / "set", semantic(ROWS), alone=True))


def stream(folder: Path, split: str = "train", buffer: int = 4, **options: object) -> object:
    query = "".join(f"&{key}={value}" for key, value in {"rows": ROWS, "buffer": buffer, **options}.items())
    return open_dataset(f"hf:{folder}?streaming=true{query}", split)


def test_samples_and_splits_are_those_of_the_whole_set(folder: Path):
    for split in ("train", "val"):
        whole, found = open_dataset(f"hf:{folder}", split), stream(folder, split)
        assert len(found) == len(whole) and found.labels == whole.labels and found.block == 4
        for n in range(len(whole)):
            ours, theirs = found.sample(n), whole.sample(n)
            assert np.array_equal(ours.image, theirs.image) and np.array_equal(ours.labels, theirs.labels)
            assert found.size(n) == (H, W)
        assert found.sample(0).name == "row_000000", "it begins anew"
        assert count_classes(found).pixels.tolist() == count_classes(whole).pixels.tolist()
    assert "streamed, and shuffled in a buffer of 4 rows" in " ".join(found.unused)
    report = check_data(f"hf:{folder}?streaming=true&rows={ROWS}", progress=False)
    assert report.ok and sum(c.samples for c in report.splits.values()) == ROWS


def names(folder: Path, start: int = 0, workers: int = 0, rank: int = 0, world: int = 1) -> list[tuple[str, ...]]:
    batches = StepBatches(stream(folder), lambda sample, _: sample, 4, 7, start, 16, rank, world)
    return [tuple(s.name for s in batch) for batch in train_batches(batches, list, workers)]


def test_every_epoch_has_each_row_once_in_another_order(folder: Path):
    found = [name for batch in names(folder) for name in batch]
    first, second = found[:21], found[21:42]
    assert len({*first}) == len({*second}) == 21 and first != second
    places = [int(name[-6:]) for name in first]
    assert places != sorted(places) and all(abs(place - n) < 4 for n, place in enumerate(places))


def test_a_run_that_goes_on_sees_the_same_rows(folder: Path):
    whole = names(folder)
    assert all(names(folder, start) == whole[start:] for start in (1, 5, 11, 15))
    assert names(folder, workers=2) == whole
    parts = [names(folder, rank=rank, world=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_no_more_than_two_buffers_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    count, image = 3000, semantic(1)[0]
    folder = named(write(tmp_path / "set", [image] * count, alone=True))
    data, most, read = stream(folder, rows=count, buffer=50), 0, 0
    batches = StepBatches(data, lambda sample, _: sample, 10, 0, 0, 300)
    for _ in train_batches(batches, list):
        most, read = max(most, len(data.rows.table._held)), read + 1
    assert read == 300 and 50 <= most <= 100


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"rows": ROWS + 9},
            "the stream ends before row 2[0-9], and 32 rows are stated; say how many there are as &ro",
        ),
        ({"rows": "many"}, "rows='many'; expected a whole number of 1 or more"),
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
    with pytest.raises(DataError, match="how many rows its split 'train' has is not stated; add &rows=N"):
        open_dataset(f"hf:{folder}?streaming=true", "train")
    boxes = {"bbox": [[2.0, 3.0, 10.5, 6.0]], "category": [0]}
    write(tmp_path / "boxes", [{"image": semantic(1)[0]["image"], "objects": boxes}] * 3)
    with pytest.raises(DataError, match="objects are looked through before a training; leave out streaming"):
        open_dataset(f"hf:{tmp_path / 'boxes'}?streaming=true&rows=3", "train")
    with pytest.raises(DataError, match="cannot join hf:set: a stream has an order of its own"):
        open_dataset(f"hf:{folder}?streaming=true&rows={ROWS}", "train+val")
    assert np.array_equal(stream(folder).sample(3).labels, ids(3)) and picture(3).shape == (H, W, 3)
