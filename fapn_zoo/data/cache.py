"""Decoded samples kept in memory that loader workers share."""

from __future__ import annotations

import mmap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fapn_zoo.data.reading_rules import reading_of
from fapn_zoo.data.sample import Dataset, Objects, Sample

CACHE_BYTES = 1 << 30
NAME_BYTES = 256
MOST_OBJECTS = 1024  # of a sample that is kept


class CachedDataset:
    """Keeps decoded samples in memory that forked loader workers share; filled as samples are first asked for.

    What a sample takes is known before it is decoded: a byte for each colour of a pixel, one for its label (four
    where class ids or the ignore index need more than 8 bits), four for its segment where segments are kept. Samples
    are kept, in index order, as far as `max_bytes` reaches; the others are read each time, as are images of more than
    8 bits and samples of very many objects. Where workers are started afresh instead of forked, each has its own.

    Args:
        needs: what of a sample is kept: "labels", "segments".
    """

    def __init__(self, dataset: Dataset, needs: Collection[str], max_bytes: int = CACHE_BYTES) -> None:
        self.dataset, self.labels, self.name = dataset, dataset.labels, dataset.name
        self.needs, self.holds = frozenset(needs), dataset.holds & frozenset(needs)
        self.reading = reading_of(dataset)
        wide = max(self.labels.num_classes - 1, self.labels.ignore_index) > 255
        self._label_type = np.dtype(np.int32 if wide else np.uint8)
        self._records: list[np.dtype] = []
        self._starts, end = [], 0
        for i in range(len(dataset)):
            record = self._record(dataset.size(i))
            if end + record.itemsize > max_bytes:
                break
            self._records.append(record)
            self._starts.append(end)
            end += -(-record.itemsize // 4) * 4  # integers of four bytes want an aligned place
        self.cached_bytes = end  # when the cache is full
        self._open()

    def _record(self, size: tuple[int, int]) -> np.dtype:
        """How a sample of this size lies in memory."""
        fields: list[tuple[Any, ...]] = []
        if "segments" in self.needs:
            table = [("count", np.int32), ("classes", np.int32, MOST_OBJECTS), ("crowd", np.int32, MOST_OBJECTS)]
            fields += [*table, ("ids", np.int32, size)]
        if "labels" in self.needs:
            fields.append(("labels", self._label_type, size))
        return np.dtype(
            [
                *fields,
                ("image", np.uint8, (self.reading.in_chans, *size)),
                ("name", f"S{NAME_BYTES}"),
                ("whole", np.uint8),
            ]
        )

    def _open(self) -> None:
        # An anonymous shared mapping: the system gives pages when they are written, and /dev/shm limits do not apply.
        self._memory = np.frombuffer(mmap.mmap(-1, max(self.cached_bytes, 1)), np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_memory"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.dataset)

    def size(self, index: int) -> tuple[int, int]:
        return self._records[index]["image"].shape[1:] if index < len(self._records) else self.dataset.size(index)

    def files(self, index: int) -> tuple[Path, ...]:
        return self.dataset.files(index)

    def sample(self, index: int) -> Sample:
        if index >= len(self._starts):
            return self.dataset.sample(index)
        record, start = self._records[index], self._starts[index]
        place = self._memory[start : start + record.itemsize].view(record)[0]
        if not place["whole"]:
            sample = self.dataset.sample(index).only(self.needs)
            few = sample.objects is None or len(sample.objects.classes) <= MOST_OBJECTS
            if not few or sample.image.dtype != torch.uint8 or len(sample.name.encode()) > NAME_BYTES:
                return sample
            _write(place, sample)
        objects = None
        if "segments" in self.needs:
            rows = slice(place["count"])
            objects = Objects(place["ids"], place["classes"][rows].astype(np.int64), place["crowd"][rows] > 0)
        labels = place["labels"] if "labels" in self.needs else None
        return Sample(torch.from_numpy(place["image"]), place["name"].decode(), labels, objects)


def _write(place: np.void, sample: Sample) -> None:
    if sample.objects is not None:
        count = place["count"] = len(sample.objects.classes)
        place["ids"], place["classes"][:count] = sample.objects.ids, sample.objects.classes
        place["crowd"][:count] = sample.objects.crowd
    if sample.labels is not None:
        place["labels"] = sample.labels
    place["image"], place["name"] = sample.image.numpy(), sample.name.encode()
    place["whole"] = 1  # last, so that nobody reads half a sample
