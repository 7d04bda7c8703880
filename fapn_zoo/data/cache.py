"""Decoded samples kept in memory."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info

from fapn_zoo.data.reading_rules import reading_of
from fapn_zoo.data.sample import Dataset, Sample

CACHE_BYTES = 1 << 30


class CachedDataset:
    """Keeps decoded samples, those that are asked for first, as far as `max_bytes` reach; others are read each time.

    Each of several loader workers has a cache of its own and an equal share of the bytes.

    Args:
        needs: what of a sample is kept: "labels", "segments", "masks", "boxes".
    """

    def __init__(self, dataset: Dataset, needs: Collection[str], max_bytes: int = CACHE_BYTES) -> None:
        self.dataset, self.labels, self.name = dataset, dataset.labels, dataset.name
        self.needs, self.holds = frozenset(needs), dataset.holds & frozenset(needs)
        self.reading, self.max_bytes = reading_of(dataset), max_bytes
        self.blocks = getattr(dataset, "blocks", ())
        self._kept: dict[int, Sample] = {}
        self.cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        """Another process begins with an empty cache."""
        return self.__dict__ | {"_kept": {}, "cached_bytes": 0}

    def __len__(self) -> int:
        return len(self.dataset)

    def size(self, index: int) -> tuple[int, int]:
        return self._kept[index].size if index in self._kept else self.dataset.size(index)

    def files(self, index: int) -> tuple[Path, ...]:
        return self.dataset.files(index)

    def sample(self, index: int) -> Sample:
        if index in self._kept:
            return self._kept[index]
        sample = self.dataset.sample(index).only(self.needs)
        workers = get_worker_info()
        size = _bytes_of(sample)
        if self.cached_bytes + size <= self.max_bytes // (workers.num_workers if workers else 1):
            self._kept[index] = sample
            self.cached_bytes += size
        return sample


def _bytes_of(sample: Sample) -> int:
    found, arrays = sample.objects, [sample.image, sample.labels]
    if found is not None:
        arrays += [found.ids, found.classes, found.crowd, found.given_boxes, found.given_areas]
        arrays += [crop.pixels for crop in found.crops or ()]
    return sum(array.nbytes for array in arrays if array is not None)
