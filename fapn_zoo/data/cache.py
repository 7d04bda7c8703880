"""Decoded samples kept in memory that loader workers share."""

from __future__ import annotations

import mmap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fapn_zoo.data.reading_rules import reading_of
from fapn_zoo.data.sample import OBJECTS, Crop, Dataset, Objects, Sample

CACHE_BYTES = 1 << 30
NAME_BYTES = 256
MOST_OBJECTS = 1024  # of a sample that is kept
_OBJECT = np.dtype(
    [("class", np.int32), ("crowd", np.int32), ("box", np.float64, 4), ("area", np.float64), ("crop", np.int32, 4)]
)
_IDS, _CROPS, _BOXES, _AREAS = 1, 2, 4, 8  # what is known of the objects of a sample


class CachedDataset:
    """Keeps decoded samples in memory that forked loader workers share; filled as samples are first asked for.

    What a sample takes is known before it is decoded: a byte for each colour of a pixel, one for its label (four
    where class ids or the ignore index need more than 8 bits), four for its masks where masks are kept: its segment, or
    up to 32 masks one over the other. Samples are kept, in index order, as far as `max_bytes` reaches; the others are
    read each time, as are images of more than 8 bits and samples of very many or large objects. Where workers are
    started afresh instead of forked, each has its own.

    Args:
        needs: what of a sample is kept: "labels", "segments", "masks", "boxes".
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
        if OBJECTS & self.needs:
            fields += [("count", np.int32), ("form", np.int32), ("objects", _OBJECT, MOST_OBJECTS)]
            if {"segments", "masks"} & self.needs:
                fields.append(("ids", np.int32, size))
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
            if sample.image.dtype != torch.uint8 or len(sample.name.encode()) > NAME_BYTES or not _write(place, sample):
                return sample
        objects = _read_objects(place) if OBJECTS & self.needs else None
        labels = place["labels"] if "labels" in self.needs else None
        return Sample(torch.from_numpy(place["image"]), place["name"].decode(), labels, objects)


def _write(place: np.void, sample: Sample) -> bool:
    """Whether there was room for the sample."""
    if sample.objects is not None and not _write_objects(place, sample.objects):
        return False
    if sample.labels is not None:
        place["labels"] = sample.labels
    place["image"], place["name"] = sample.image.numpy(), sample.name.encode()
    place["whole"] = 1  # last, so that nobody reads half a sample
    return True


def _write_objects(place: np.void, objects: Objects) -> bool:
    count = len(objects.classes)
    if count > MOST_OBJECTS:
        return False
    table = np.zeros(count, _OBJECT)
    table["class"], table["crowd"] = objects.classes, objects.crowd
    form = _IDS * (objects.ids is not None) | _CROPS * (objects.crops is not None)
    if objects.given_boxes is not None:
        table["box"], form = objects.given_boxes, form | _BOXES
    if objects.given_areas is not None:
        table["area"], form = objects.given_areas, form | _AREAS
    if objects.crops is not None:
        crops = [objects.crop(m) for m in range(count)]
        table["crop"] = np.array([(c.y, c.x, *c.pixels.shape) for c in crops], np.int32).reshape(-1, 4)
        bits = np.packbits(np.concatenate([np.zeros(0, bool), *(c.pixels.ravel() for c in crops)]))
        if bits.size > place["ids"].nbytes:
            return False
        place["ids"].reshape(-1).view(np.uint8)[: bits.size] = bits
    elif objects.ids is not None:
        place["ids"] = objects.ids
    place["count"], place["form"], place["objects"][:count] = count, form, table
    return True


def _read_objects(place: np.void) -> Objects:
    table, form = place["objects"][: place["count"]], place["form"]
    crops = None
    if form & _CROPS:
        sizes = table["crop"][:, 2:].prod(axis=1)
        bits = place["ids"].reshape(-1).view(np.uint8)
        pixels = np.unpackbits(bits, count=int(sizes.sum())).view(bool)
        parts = np.split(pixels, np.cumsum(sizes)[:-1]) if len(table) else []
        rows = zip(parts, table["crop"].tolist(), strict=True)
        crops = tuple(Crop(part.reshape(height, width), y, x) for part, (y, x, height, width) in rows)
    given = [table[name].copy() if form & kind else None for name, kind in (("box", _BOXES), ("area", _AREAS))]
    ids = place["ids"] if form & _IDS else None
    return Objects(ids, table["class"].astype(np.int64), table["crowd"] > 0, crops, *given)
