"""The stream of training batches: batch s depends on the seed and on s alone, so a run resumes exactly where it was."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fapn_zoo.data.sources import DataError, Sample, SegmentationDataset

CACHE_BYTES = 1 << 30
_ORDER, _CHANGE = 0, 1  # keeps the two uses of the seed apart


class StepBatches(Dataset):
    """The endless shuffled stream of a data set, addressed by position; position p belongs to step p // batch_size.

    Every epoch is a fresh permutation drawn from (seed, epoch), and epochs follow each other without a gap, so a
    batch may hold the end of one and the start of the next. The random change of the sample at position p is drawn
    from (seed, p). Neither depends on where the run started, on the number of workers or on the number of ranks.

    Args:
        dataset: what to read.
        transform: `(image, labels, seed) -> (image tensor, labels tensor)`, such as `TrainTransform`.
        batch_size: TOTAL batch over all ranks; each rank gets batch_size / world_size consecutive positions.
        seed: integer >= 0.
        start_step, total_steps: the steps start_step .. total_steps - 1 are served.
        rank, world_size: which share of the batch is ours.

    Raises:
        ValueError: batch_size not divisible by world_size, an empty data set, steps or ranks out of range.
    """

    def __init__(
        self, dataset: SegmentationDataset, transform: Callable, batch_size: int, seed: int, start_step: int,
        total_steps: int, rank: int = 0, world_size: int = 1,
    ):  # fmt: skip
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} (the total) cannot be divided by world_size {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in 0..{world_size - 1}")
        if not 0 <= start_step <= total_steps:
            raise ValueError(f"start_step {start_step} is not in 0..{total_steps} (total_steps)")
        if seed < 0:
            raise ValueError(f"seed must be >= 0, not {seed}")
        if len(dataset) == 0:
            raise ValueError(f"data set {dataset.name!r} is empty")
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.start_step, self.total_steps = start_step, total_steps
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.total_steps * self.batch_size

    def index_at(self, position: int) -> int:
        """Which sample of the data set stands at `position` of the stream."""
        epoch, place = divmod(position, len(self.dataset))
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, _ORDER, epoch))
            self._order = (epoch, rng.permutation(len(self.dataset)))
        return int(self._order[1][place])

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor] | DataError:
        try:
            sample = self.dataset.sample(self.index_at(position))
        except DataError as error:
            return error  # raised in the main process: a worker would bury the message under its own traceback
        state = np.random.SeedSequence((self.seed, _CHANGE, position)).generate_state(2)
        return self.transform(sample.image, sample.labels, int(state[0]) << 32 | int(state[1]))

    def steps(self) -> range:
        return range(self.start_step, self.total_steps)

    def positions(self) -> Iterator[list[int]]:
        """This rank's positions, one list per step (a batch sampler)."""
        share = self.batch_size // self.world_size
        for step in self.steps():
            first = step * self.batch_size + self.rank * share
            yield list(range(first, first + share))


class _Positions:
    """A batch sampler that can be iterated anew and knows its length."""

    def __init__(self, stream: StepBatches):
        self.stream = stream

    def __iter__(self) -> Iterator[list[int]]:
        return self.stream.positions()

    def __len__(self) -> int:
        return len(self.stream.steps())


class CachedDataset:
    """Keeps decoded samples in memory that forked loader workers share; filled as samples are first asked for.

    What a sample takes is known before it is decoded: height x width x (3 bytes of RGB + 1 byte of label, or 4 where
    the class ids or the ignore index need more than 8 bits). Samples are kept, in index order, as far as `max_bytes`
    reaches; the others are read each time. Where workers are started afresh instead of forked, each has its own.
    """

    def __init__(self, dataset: SegmentationDataset, max_bytes: int = CACHE_BYTES):
        self.dataset, self.labels, self.name = dataset, dataset.labels, dataset.name
        wide = max(self.labels.num_classes - 1, self.labels.ignore_index) > 255
        self._dtype = np.dtype(np.int32 if wide else np.uint8)
        self._sizes: list[tuple[int, int]] = []
        starts, end = [], 0
        for i in range(len(dataset)):
            height, width = dataset.size(i)
            start = -(-end // 4) * 4  # int32 labels want an aligned place
            if start + self._bytes(height, width) > max_bytes:
                break
            end = start + self._bytes(height, width)
            starts.append(start)
            self._sizes.append((height, width))
        self._starts, self._length = starts, end
        self._open()

    def _bytes(self, height: int, width: int) -> int:
        return height * width * (3 + self._dtype.itemsize)

    def _open(self) -> None:
        # An anonymous shared mapping: the system gives pages when they are written, and /dev/shm limits do not apply.
        self._memory = np.frombuffer(mmap.mmap(-1, max(self._length, 1)), np.uint8)
        self._filled = np.frombuffer(mmap.mmap(-1, max(len(self._starts), 1)), np.uint8)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_memory", "_filled")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def cached_bytes(self) -> int:
        """How much memory the cache takes when it is full."""
        return self._length

    def size(self, index: int) -> tuple[int, int]:
        return self._sizes[index] if index < len(self._sizes) else self.dataset.size(index)

    def sample(self, index: int) -> Sample:
        if index >= len(self._starts):
            return self.dataset.sample(index)
        height, width = self._sizes[index]
        part = self._memory[self._starts[index] :][: self._bytes(height, width)]
        split = height * width * self._dtype.itemsize
        labels, image = part[:split].view(self._dtype).reshape(height, width), part[split:].reshape(height, width, 3)
        if not self._filled[index]:
            sample = self.dataset.sample(index)
            labels[:], image[:] = sample.labels, sample.image
            self._filled[index] = 1  # last, so that nobody reads half a sample
        return Sample(image, labels, f"{self.name}[{index}]")


def _collate(items: list) -> tuple[torch.Tensor, torch.Tensor] | DataError:
    for item in items:
        if isinstance(item, DataError):
            return item
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.stack(labels)


def train_batches(
    dataset: SegmentationDataset, transform: Callable, batch_size: int, seed: int, start_step: int, total_steps: int,
    rank: int = 0, world_size: int = 1, workers: int = 0, cache: bool = False, pin_memory: bool = False,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Iterate over (step, images, labels) for the steps start_step .. total_steps - 1 (see `StepBatches`).

    Args:
        workers: loader processes; the tensors are the same for any number of them.
        cache: keep decoded samples in memory, at most 1 GiB of them (see `CachedDataset`).
        pin_memory: page-locked output, for a faster copy to a CUDA device.

    Yields:
        step (int), images (B, 3, h, w) float32 in 0..255, labels (B, h, w) int64, with B = batch_size / world_size.

    Raises:
        DataError: when a bad file is reached. The global random state of torch and numpy is left as it was.
    """
    if cache:
        dataset = CachedDataset(dataset)
    stream = StepBatches(dataset, transform, batch_size, seed, start_step, total_steps, rank, world_size)
    loader = DataLoader(
        stream,
        batch_sampler=_Positions(stream),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # else the loader draws from the global generator
    )
    return _numbered(stream, loader)


def _numbered(stream: StepBatches, loader: DataLoader) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    for step, batch in zip(stream.steps(), loader, strict=True):
        if isinstance(batch, DataError):
            raise batch
        yield step, *batch
