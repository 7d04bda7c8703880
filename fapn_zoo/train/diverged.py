"""What ends a run with advice: numbers that are no numbers any more, and too little for a batch norm."""

from __future__ import annotations

import itertools
import math
import traceback
from typing import Any

import torch
from torch import Tensor, nn

from fapn_zoo.train.settings import Settings
from fapn_zoo.weights.finite import NotFinite, faults, named_tensors, told


def check_state(step: int, settings: Settings, **state: Any) -> None:
    """Raises NotFinite where a tensor is NaN or infinite, naming it and the step.

    Args:
        step: how many are done.
        state: what would be written, by name: the model's `state_dict()`, the optimizer's, the averaged weights'.
    """
    tensors = itertools.chain.from_iterable(named_tensors(value, name) for name, value in state.items())
    if found := faults(tensors):
        raise diverged(step, f"what was learned is not finite: {told(found)}", settings)


def check_gradient(step: int, norm: Tensor | float | None, settings: Settings) -> None:
    """Raises NotFinite for a norm of all gradients that is NaN or infinite; None is not looked at."""
    if norm is not None and not math.isfinite(norm):
        raise diverged(step, f"the gradient is not finite, its norm is {float(norm)}", settings)


def diverged(step: int, what: str, s: Settings) -> NotFinite:
    """The error of a run that has lost its numbers at a step, with the settings that could help."""
    limit = f"a clip_norm below {s.clip_norm:g}" if s.clip_norm else f"a clip_value below {s.clip_value:g}"
    clip = limit if s.clip_norm or s.clip_value else "clip_norm=1 (it is 0: gradients are not clipped)"
    ways = [f"an lr below {s.lr:g}", clip]
    if s.amp in ("bf16", "fp16") or (s.amp == "auto" and torch.cuda.is_available()):
        ways.append(f"amp=no instead of {s.amp}")
    advice = f"{', '.join(ways[:-1])} or {ways[-1]}"
    return NotFinite(f"{s.model}, step {step}: {what}; training has diverged: try {advice}")


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
