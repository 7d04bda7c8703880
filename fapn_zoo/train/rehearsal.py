"""The first batch up to its loss, and advice where torch cannot train on so little."""

from __future__ import annotations

import copy
import traceback
from typing import Any

import torch
from torch import nn

from fapn_zoo.data.loader import StepBatches, train_batches
from fapn_zoo.train.setup import train_mode


def rehearse(run: Any) -> None:
    """Loads the first batch of a `Run` and computes its loss, as the run will, without a trace in model or files.

    Talks to no other process, so that one of several may do it alone. Raises what the first step would.
    """
    s, parts = run.settings, run.parts
    stream = StepBatches(parts.dataset, parts.transform, s.batch_size, s.seed, 0, max(s.steps, 1), run.rank, run.world)
    batch = next(train_batches(stream, parts.collate))
    alone = copy.copy(run)
    alone.model, alone.world = run.plain, 1
    statistics = {name: buffer.clone() for name, buffer in run.plain.named_buffers()}
    train_mode(run.plain)
    with torch.no_grad(), torch.random.fork_rng():
        micro = list(batch.to(run.accelerator.device).parts(min(s.micro_batch or run.local_batch, run.local_batch)))
        totals = alone._totals(micro)
        for part in micro:
            alone._losses(part, totals)
        for name, buffer in run.plain.named_buffers():
            buffer.copy_(statistics[name])


def batch_norm_advice(model: nn.Module, error: ValueError, crop: tuple[int, int], images: int) -> str:
    """What to do about a norm that got a single value per channel: its module is named. "" for any other error."""
    if "more than 1 value per channel" not in str(error):
        return ""
    names = {id(module): name for name, module in model.named_modules()}
    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    norm = next((caller for caller in reversed(callers) if names.get(id(caller))), model)
    name = names[id(norm)] or "a norm"
    ways = ["raise crop" if min(crop) else "raise short_sides"]
    if not isinstance(norm, nn.GroupNorm):  # which sees one image at a time, however many there are
        part = name.split(".")[0]
        ways += ["batch_size or micro_batch to two images per process", f"freeze={part}"]
        ways += {"backbone": ["model_args.backbone_norm=frozen_bn"], "neck": ["model_args.neck_norm=gn"]}.get(part, [])
    of = f" of crop={crop[0]},{crop[1]}" if min(crop) else ""
    little = f"{images} image{'s' if images > 1 else ''}{of} at once"
    return f"{name} gets one value per channel to take statistics of, from {little}; {', or '.join(ways)}"
