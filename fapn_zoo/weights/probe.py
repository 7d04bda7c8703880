"""A fingerprint of what a model computes: a few raw outputs on a fixed input, stored beside its weights.

Whoever loads, converts or uploads a folder can tell with it that the weights still mean what they meant when they were
written, whatever has changed in the code or on the way. Of a head that chooses, which rounding can turn, it is what the
head chooses among.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fapn_zoo.weights.finite import check_finite, named_tensors

SIZE = (64, 96)  # small, and no multiple of any attention window
SAMPLES = 24  # values kept of each output
# Convolution and attention kernels sum in different orders; a wrong weight or a wrong layer moves outputs far more.
TOLERANCE = 2e-3


def probe(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The stored form: input size, and per raw output its shape, standard deviation and `SAMPLES` of its values.

    Args:
        model: a segmentation model of any device and dtype; it runs in float32 on the CPU, a copy where it is not
            there already. Its modes and values stay as they are.
        dtype: that the weights are about to be stored in; the probe is of the rounded values.

    Raises NotFinite for outputs that are NaN or infinite.
    """
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    if not plain or dtype not in (None, torch.float32):
        model = copy.deepcopy(model).to("cpu", dtype or torch.float32).float()
    outputs, found = [], dict(named_tensors(_run(model)))
    check_finite(found.items(), "its outputs on a small image")
    for output in (output.double() for output in found.values()):
        index = torch.linspace(0, output.numel() - 1, SAMPLES).round().long()
        facts = {"shape": list(output.shape), "std": output.std().item(), "values": output.flatten()[index].tolist()}
        outputs.append(facts)
    return {"size": list(SIZE), "outputs": outputs}


def check(model: nn.Module, stored: Mapping[str, Any]) -> float:
    """Compares a model with a stored probe.

    Returns:
        The largest difference, as a share of that output's standard deviation.

    Raises:
        ValueError: shapes differ, or values by more than `TOLERANCE`; or the stored form is none.
    """
    found = probe(model)
    try:
        if list(stored["size"]) != found["size"]:
            raise ValueError(f"the stored outputs are of size {stored['size']}, this version compares {found['size']}")
        shapes = [[list(output["shape"]) for output in side["outputs"]] for side in (stored, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the model's outputs have shapes {shapes[1]}, the stored ones {shapes[0]}")
        worst = max(
            (torch.tensor(old["values"]) - torch.tensor(new["values"])).abs().max().item() / max(old["std"], 1e-12)
            for old, new in zip(stored["outputs"], found["outputs"], strict=True)
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the stored outputs cannot be read: {type(error).__name__} {error}") from error
    if not worst <= TOLERANCE:  # also where a value is not a number
        found = f"they differ by {worst:.2g} standard deviations, {TOLERANCE} is allowed"
        raise ValueError(f"the model no longer computes its stored outputs: {found}")
    return worst


def _run(model: nn.Module) -> Any:
    height, width = SIZE
    channels = torch.arange(1, model.spec.in_chans + 1).view(1, -1, 1, 1)
    rows, columns = torch.arange(height).view(1, 1, -1, 1), torch.arange(width).view(1, 1, 1, -1)
    # waves of several lengths and directions: no random numbers, whose sequence a library may change
    x = (0.31 * channels * rows).sin() + (0.07 * columns * (channels + 1)).cos() * (0.013 * rows * columns).sin()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            if not hasattr(model.head, "before_choice"):
                return model(x)
            return model.head.before_choice(model.neck(model.features(x)))
    finally:
        for module, training in modes.items():
            module.training = training
