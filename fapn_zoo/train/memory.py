"""How many images a device can train on at once: what `micro_batch=auto` stands for."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from fapn_zoo.data.loader import StepBatches, train_batches
from fapn_zoo.tasks.targets import Batch
from fapn_zoo.train.setup import train_mode

logger = logging.getLogger(__name__)

HEADROOM = 0.85  # share of the free memory that a step may take: later batches hold more objects
TEMPORARY = 1.5  # on a CPU: what a step needs, over what it keeps for the backward pass


def largest_micro_batch(run: Any) -> int:
    """The largest of the process's share of the batch, its half, its quarter, ... that a step has room for; at least 1.

    On a GPU such steps are made with the first batch until one fits. On a CPU, where a step that does not fit ends the
    process, one image is tried, and the rest follows from what autograd keeps for it. Whole pictures (`crop=0`) are
    padded to `max_side`. Leaves no trace in the model. All processes get the same answer.

    Args:
        run: a `Run`, before its first step.
    """
    s, parts, device = run.settings, run.parts, run.accelerator.device
    stream = StepBatches(parts.dataset, parts.transform, s.batch_size, s.seed, 0, max(s.steps, 1), run.rank, run.world)
    batch = next(train_batches(stream, parts.collate))
    if not min(s.crop) and s.max_side:
        divisor = run.plain.data.size_divisor
        batch = batch.padded(*(max(side, -(-s.max_side // divisor) * divisor) for side in batch.images.shape[-2:]))
    batch.targets.seeds = run.seeds(len(batch.names))
    statistics = {name: buffer.clone() for name, buffer in run.plain.named_buffers()}
    train_mode(run.plain)
    size = run.local_batch
    with torch.random.fork_rng():
        if device.type == "cpu":
            each = TEMPORARY * _kept(run, next(batch.parts(1)))
            room = HEADROOM * free_memory() / run.world - _of_weights(run)
            size = next((n for n in _sizes(size) if n * each <= room), 1)
        else:
            size = next((n for n in _sizes(size) if n == 1 or _fits(run, next(batch.parts(n)).to(device))), 1)
    for name, buffer in run.plain.named_buffers():
        buffer.data.copy_(statistics[name])
    if run.world > 1:
        least = torch.tensor(size, device=device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        size = int(least)
    if run.main:
        logger.info("micro_batch=auto: %d of %d images at once", size, run.local_batch)
        if size < run.local_batch and any(isinstance(m, _BatchNorm) and m.training for m in run.plain.modules()):
            logger.warning(
                "batch norms see %d images, not %d: frozen ones or gn make them alike", size, run.local_batch
            )
    return size


def free_memory() -> int:
    """Bytes that this process may still take, by the system and by the limit of its container (cgroup 2)."""
    free = psutil.virtual_memory().available
    limits = [Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current")]
    most, used = (file.read_text().strip() if file.is_file() else "max" for file in limits)
    return free if "max" in (most, used) else min(free, int(most) - int(used))


def _sizes(largest: int) -> list[int]:
    """16 -> 16, 8, 4, 2, 1."""
    return [largest, *(_sizes(-(-largest // 2)) if largest > 1 else [])]


def _step(run: Any, part: Batch) -> None:
    """Forward and backward of one part, by this process alone."""
    alone = copy.copy(run)
    alone.model, alone.world = run.plain, 1
    alone.losses(part, alone.totals([part]))["loss"].backward()
    run.optimizer.zero_grad()


def _kept(run: Any, part: Batch) -> int:
    """Bytes that autograd keeps for a step, weights aside; memory that it keeps twice counts once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in run.plain.state_dict().values()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        _step(run, part)
    return sum(nbytes for place, nbytes in storages.items() if place not in own)


def _of_weights(run: Any) -> int:
    """Bytes of gradients and of AdamW's two means, which come with the first step."""
    return 3 * sum(parameter.nbytes for parameter in run.trainable)


def _fits(run: Any, part: Batch) -> bool:
    device = part.images.device
    try:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        room = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
        _step(run, part)
        return torch.cuda.max_memory_allocated(device) + _of_weights(run) <= HEADROOM * room
    except torch.OutOfMemoryError:
        run.optimizer.zero_grad()
        return False
    finally:
        torch.cuda.empty_cache()
