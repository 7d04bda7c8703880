"""What all metrics share: int64 counts that add up, travel as plain numbers, and say what they count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.distributed as dist

# Shares 0..1 are summed as multiples of 2**-40: exact whatever the order, off by less than 5e-13 each; eight million of
# them fit into 63 bits.
UNIT = 1 << 40


class Accumulator:
    """Counts in one int64 tensor, so the order of images and the number of processes change no digit of a score.

    Args:
        shape: of `counts`.
        settings: what is counted and how, as plain JSON values; only accumulators of equal settings can be added.
    """

    def __init__(self, shape: tuple[int, ...], **settings: Any) -> None:
        self.settings = settings
        self.counts = torch.zeros(shape, dtype=torch.int64)

    def merge(self, other: Self) -> Self:
        """Adds the counts of another accumulator of the same settings; returns self.

        Raises:
            ValueError: when the two do not count the same thing.
        """
        if type(other) is not type(self):
            raise ValueError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        check_settings("merge", other.settings, self.settings)
        self.counts += other.counts
        return self

    def state(self) -> dict[str, Any]:
        """Everything needed to go on counting elsewhere: plain numbers, ready for JSON."""
        return {**self.settings, "counts": self.counts.tolist()}

    def load(self, state: Mapping[str, Any]) -> Self:
        """Replaces the counts by those of `state()`; returns self. ValueError when the settings differ."""
        check_settings("load", {name: value for name, value in state.items() if name != "counts"}, self.settings)
        self.counts = torch.tensor(state["counts"], dtype=torch.int64).reshape(self.counts.shape)
        return self

    def reduce(self, accelerator: Any = None) -> Self:
        """Sums the counts of all processes into each of them; returns self. No effect with one process.

        Args:
            accelerator: an `accelerate.Accelerator` or `PartialState` whose device carries the exchange (NCCL needs
                CUDA memory); None = CPU.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            counts = self.counts.to(accelerator.device if accelerator is not None else "cpu")
            dist.all_reduce(counts)  # not accelerate.reduce: int64 must stay int64
            self.counts = counts.cpu()
        return self


def check_settings(verb: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """ValueError that shows what differs."""
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if names:
        shown = [{name: settings.get(name) for name in names} for settings in (theirs, mine)]
        raise ValueError(f"cannot {verb} {shown[0]} into {shown[1]}")
