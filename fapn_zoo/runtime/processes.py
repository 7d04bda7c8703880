"""Evaluation on several processes: who does what, and how the counts come together."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

_FLAGS = itertools.count()


class Processes(NamedTuple):
    """This process among all: which of how many."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes in every one of them."""
        if self.world == 1:
            return items
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, items)
        return [item for part in found for item in part]

    def flag(self, raised: Callable[[], bool]) -> Callable[[], bool]:
        """Whether `raised` holds in this process, or was found to hold in another; asking waits for no other.

        All processes make their flags in the same order.
        """
        if self.world == 1:
            return raised
        name, store = f"fapn_zoo/flag/{next(_FLAGS)}", dist.distributed_c10d._get_default_store()

        def seen() -> bool:
            if raised():
                store.set(name, "1")
            return store.check([name])

        return seen

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
    leave_at_exit()
    return Processes(state.process_index, state.num_processes)


@functools.cache  # once is enough
def leave_at_exit() -> None:
    """Ends the group of CPU processes before the interpreter: threads of gloo that outlive it may abort the process."""

    def leave() -> None:
        if dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()

    atexit.register(leave)


def on_cpu() -> bool:
    """Whether accelerate must be told to stay on the CPU.

    Under torchrun on a machine without an accelerator it would otherwise open a process group and still report a
    single process (accelerate 1.15), so that every process would do all the work.
    """
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return wanted or not (torch.cuda.is_available() or torch.backends.mps.is_available())
