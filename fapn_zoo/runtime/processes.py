"""Evaluation on several processes: who does what, and how the counts come together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank, world: which of how many.
        device: what carries the exchange (NCCL needs CUDA memory).
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, counts: np.ndarray) -> np.ndarray:
        """The int64 sum over all processes, the same in each."""
        if self.world == 1:
            return counts
        total = torch.from_numpy(counts).to(self.device)
        dist.all_reduce(total)  # not accelerate.reduce: int64 must stay int64
        return total.cpu().numpy()

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes in every one of them."""
        if self.world == 1:
            return items
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, items)
        return [item for part in found for item in part]

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.world > 1:
            dist.barrier()


def processes() -> Processes:
    """The group this process belongs to; accelerate is only asked where there are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu())
    return Processes(state.process_index, state.num_processes, state.device)


def on_cpu() -> bool:
    """Whether accelerate must be told to stay on the CPU.

    Under torchrun on a machine without an accelerator it would otherwise open a process group and still report a
    single process (accelerate 1.15), so that every process would do all the work.
    """
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return wanted or not (torch.cuda.is_available() or torch.backends.mps.is_available())
