"""What ends a run with advice: numbers that are no numbers any more."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

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
