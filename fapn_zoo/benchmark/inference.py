"""What is timed: a model whose offsets are as wide as trained ones, and one inference with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fapn_zoo.modules.necks.fapn import ModulatedDeformConv
from fapn_zoo.postprocess import Frame, decode
from fapn_zoo.predict.inputs import padded_size
from fapn_zoo.runtime.precision import autocast, resolve_amp
from fapn_zoo.tasks import task_for
from fapn_zoo.zoo.registry import get_spec

# Of weights and input; "auto" is as in `predict`.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": torch.float32}
OFFSET_SPREAD = 2.0  # pixels; standard deviation of the drawn offsets


def create_with_offsets(name: str, num_classes: int | None = None) -> nn.Module:
    """A model to time: random weights with drawn offsets, or a weights folder as it is.

    Raises ValueError for an architecture without a label set where `num_classes` is None.
    """
    from fapn_zoo.create import create_model  # not above: timm takes seconds

    if Path(name).is_dir():
        name = f"local-dir:{name}"
    if name.startswith("local-dir:"):
        return create_model(name, pretrained=True)
    free = ":" not in name and get_spec(name)[0].num_classes is None
    if free and num_classes is None:
        raise ValueError(f"{name!r} has no label set: say how many classes, num_classes= or --num-classes")
    model = create_model(name, num_classes=num_classes if free else None)
    draw_offsets(model)
    return model


def draw_offsets(model: nn.Module) -> None:
    """Fresh deformable convolutions sample the grid points themselves, which is faster than what trained ones do."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, ModulatedDeformConv) and not module.offset_mask.weight.any():
            with torch.no_grad():
                offsets = module.offset_mask.bias[: 18 * module.groups]
                offsets.copy_(OFFSET_SPREAD * torch.randn(len(offsets), generator=generator))


def prepare(
    model: nn.Module,
    size: tuple[int, int],
    *,
    batch: int = 1,
    dtype: str = "fp32",
    channels_last: bool = False,
    mark: Callable[[str], Any] = lambda name: None,
) -> Callable[[], list[Any]]:
    """Brings a model into dtype and memory format; returns a function that does one inference.

    That is the forward pass on a batch that is on the device already, padded as `predict` pads it, and the answer of
    the model's task for every image at its size (H, W), as it is scored. Between the two, `mark("postprocess")` is
    called. The function returns the answers. The other arguments are those of `benchmark`.
    """
    form = torch.channels_last if channels_last else torch.contiguous_format
    model.eval().to(dtype=DTYPES[dtype], memory_format=form)
    device, amp = next(model.parameters()).device, "no"
    if dtype == "auto":
        amp = resolve_amp("auto", device)
        form = torch.channels_last if device.type == "cpu" else form
    shape = batch, model.spec.in_chans, *padded_size(model.data, size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.to(device, DTYPES[dtype]).contiguous(memory_format=form)

    task, frame = task_for(model.spec), Frame(size, size)

    def run() -> list[Any]:
        with autocast(device, amp):
            output = model(x)
        mark("postprocess")
        return [decode(output.image(n), task.name, frame, model.data, **task.scored) for n in range(batch)]

    return run
