"""How far half-precision deformable convolution on a CPU is from float64: ours by backend, and torchvision's.

    python tests/benchmarks/half_precision.py --csv hub/results/deform_conv_half.csv

All get the same numbers, rounded to half precision once; the truth is torchvision's operator in float64 on them. Errors
are sums of absolute differences in percent of the sum of absolute values, over all shapes of the tests and some seeds:
of the output and of the gradients. `rounded once` is the float64 result rounded to half precision, the least error that
there can be. Torchvision's operator takes float16 on a CPU, in which it also computes, and refuses bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from table import print_row, run_facts, write_csv
from torch import Tensor

from fapn_zoo.modules.deform_conv.conv import available_backends, deform_conv2d, deform_conv_backend
from fapn_zoo.runtime.device import device_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toys.deform_conv_cases import SHAPES, Shape, make_tensors, run

QUANTITIES = ("output", "input", "offset", "weight", "bias", "mask")
OFFSETS = {"random": "2 px", "far": "50 px"}  # standard deviation


def ours(backend: str) -> Callable:
    def call(*args: Tensor, **pairs: object) -> Tensor:
        with deform_conv_backend(backend):
            return deform_conv2d(*args, **pairs)

    return call


def sums(found: list[Tensor], truth: list[Tensor]) -> Tensor:
    """(quantities, 3): the sum of the errors, of the values, and the largest error."""
    pairs = [((a.double() - b).abs(), b.abs()) for a, b in zip(found, truth, strict=True)]
    return torch.stack([torch.stack([error.sum(), value.sum(), error.max()]) for error, value in pairs])


def measure(dtype: torch.dtype, offsets: str, shapes: dict[str, Shape], seeds: int) -> list[dict[str, object]]:
    contenders = {name: ours(name) for name in available_backends() if name not in ("auto", "triton")}
    if dtype == torch.float16:
        contenders["torchvision"] = torchvision.ops.deform_conv2d
    totals: dict[str, list[Tensor]] = {name: [] for name in ("rounded once", *contenders)}
    for shape in shapes.values():
        for seed in range(seeds):
            tensors = make_tensors(shape, dtype, offsets=offsets, seed=seed)
            exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
            truth = run(torchvision.ops.deform_conv2d, exact, shape, grad_dtype=dtype)
            totals["rounded once"].append(sums([value.to(dtype) for value in truth], truth))
            for name, function in contenders.items():
                totals[name].append(sums(run(function, tensors, shape, grad_dtype=dtype), truth))
    rows = []
    for name, parts in totals.items():
        table = torch.stack(parts)
        percent = 100 * table[..., 0].sum(0) / table[..., 1].sum(0)
        row = {"dtype": str(dtype).removeprefix("torch."), "offsets": OFFSETS[offsets], "contender": name}
        row |= {f"{what}_percent": f"{value:.4f}" for what, value in zip(QUANTITIES, percent.tolist(), strict=True)}
        rows.append(row | {"output_largest": f"{table[:, 0, 2].max().item():.4f}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--csv", help="also write the rows to this file")
    options = parser.parse_args()
    rows = []
    for dtype in (torch.bfloat16, torch.float16):
        for offsets in OFFSETS:
            found = measure(dtype, offsets, {name: SHAPES[name] for name in options.shapes}, options.seeds)
            rows += found
            for row in found:
                print_row(row)
    if options.csv:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        write_csv(options.csv, rows, {"device": device_name(torch.device("cpu")), **versions, **run_facts()})


if __name__ == "__main__":
    main()
