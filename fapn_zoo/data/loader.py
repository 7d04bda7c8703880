"""The stream of training batches: batch s depends on the seed and on s alone, so a run resumes exactly where it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fapn_zoo.data.sample import DataError, Dataset, Sample

Transform = Callable[[Sample, int], Sample]
Collate = Callable[[Sequence[Sample]], Any]
_ORDER, _CHANGE = 0, 1  # keeps the two uses of the seed apart


class StepBatches(TorchDataset):
    """The endless shuffled stream of a data set, addressed by position; position p belongs to step p // batch_size.

    Every epoch is a fresh permutation drawn from (seed, epoch), and epochs follow each other without a gap, so a
    batch may hold the end of one and the start of the next. The random change of the sample at position p is drawn
    from (seed, p). Neither depends on where the run started, on the number of workers or on the number of ranks.

    Args:
        dataset: what to read.
        transform: `(sample, seed) -> sample`, such as `TrainTransform`.
        batch_size: TOTAL batch over all ranks; each rank gets batch_size / world_size consecutive positions.
        seed: integer >= 0.
        start_step, total_steps: the steps start_step .. total_steps - 1 are served.
        rank, world_size: which share of the batch is ours.

    Raises:
        ValueError: batch_size not divisible by world_size, an empty data set, steps or ranks out of range.
    """

    def __init__(
        self, dataset: Dataset, transform: Transform, batch_size: int, seed: int, start_step: int,
        total_steps: int, rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
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
            self._order = (epoch, epoch_order(self.dataset, rng))
        return int(self._order[1][place])

    def __getitem__(self, position: int) -> Sample | DataError:
        try:
            sample = self.dataset.sample(self.index_at(position))
        except DataError as error:
            return error  # raised in the main process: a worker would bury the message under its own traceback
        state = np.random.SeedSequence((self.seed, _CHANGE, position)).generate_state(2)
        return self.transform(sample, int(state[0]) << 32 | int(state[1]))

    def positions(self) -> Iterator[list[int]]:
        """This rank's positions, one list per step (a batch sampler)."""
        share = self.batch_size // self.world_size
        for step in range(self.start_step, self.total_steps):
            first = step * self.batch_size + self.rank * share
            yield list(range(first, first + share))


def epoch_order(dataset: Dataset, rng: np.random.Generator) -> np.ndarray:
    """The numbers of all samples, shuffled; those of a stream in blocks, which are shuffled, and the rows in each."""
    blocks = getattr(dataset, "blocks", ())
    if not blocks:
        return rng.permutation(len(dataset))
    found = [first + rng.permutation(end - first) for first, end in itertools.pairwise(blocks)]
    return np.concatenate([found[i] for i in rng.permutation(len(found))])


def train_batches(stream: StepBatches, collate: Collate, workers: int = 0, pin_memory: bool = False) -> Iterator[Any]:
    """Iterates over this rank's batches.

    Args:
        collate: makes a batch of batch_size / world_size transformed samples.
        workers: loader processes; the tensors are the same for any number of them.
        pin_memory: page-locked output, for a faster copy to a CUDA device.

    Raises:
        DataError: when a bad file is reached. The global random state of torch and numpy is left as it was.
    """
    loader = DataLoader(
        stream,
        batch_sampler=stream.positions(),
        num_workers=workers,
        collate_fn=partial(_collated, collate),
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(stream.seed),  # else the loader draws from the global generator
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _collated(collate: Collate, items: list[Sample | DataError]) -> Any:
    """The batch, unless a sample could not be read: then its error."""
    return next((item for item in items if isinstance(item, DataError)), None) or collate(items)
