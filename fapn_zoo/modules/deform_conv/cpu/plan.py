"""How the CPU kernels of deformable convolution cut up a call, and what they are given: arrays and memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fapn_zoo.modules.deform_conv.geometry import Geometry
from fapn_zoo.modules.layers.conv import is_channels_last

Steps = tuple[int, int]  # from channel to channel and from pixel to pixel


class Plan(NamedTuple):
    """Sizes that the kernels read beside the geometry; lengths and steps are in elements.

    A column has a row for each pixel of a tile: the samples of a piece of the channels, (taps, channels of the piece).
    """

    taps: int
    pixels: int  # of an output image
    tile: int  # output pixels
    piece: int  # channels
    depth: int  # of a row of the column: taps * piece
    deep: int  # rounded up to whole blocks of the matrix product
    column: int  # from row to row of the column
    outs: int  # output channels per weight group
    wide: int  # rounded up to whole vectors
    row: int  # from pixel to pixel of a tile's output
    weight: int  # from row to row of the packed weight
    rows: int  # of a block of the matrix product
    lanes: int
    offset_steps: Steps
    mask_steps: Steps
    offset_image: int  # from image to image
    mask_image: int
    output_steps: Steps
    plane_steps: Steps
    sum_steps: Steps
    bias_steps: Steps
    block_steps: Steps  # in the block of `make_movers`


class Matrix(NamedTuple):
    """A part of a flat array: element (n, m) is `array[at + n * steps[0] + m * steps[1]]`.

    A matrix of rows has `steps[1] == 1`, one of columns `steps[0] == 1`.
    """

    array: np.ndarray
    at: int
    steps: tuple[int, int]


class Tensors(NamedTuple):
    """The flat arrays of a pass; all but offset and mask are of its dtype."""

    table: np.ndarray  # (B, ...), filled: see `sampling.py`; backwards, that of some channels of one image
    offset: np.ndarray  # (B, G * taps * 2, Ho * Wo), either layout and any dtype; forwards there may be gaps
    mask: np.ndarray  # (B, G * taps, Ho * Wo), as offset; may be empty
    weight: np.ndarray  # packed; backwards (pieces, outs, plan.weight), rows of (taps, channels of the piece), padded
    output: np.ndarray  # (B, O, Ho * Wo), either layout; backwards, the output's gradient


class Gradients(NamedTuple):
    """The flat arrays that the backward pass fills for one image and some channels; those not wanted are empty."""

    table: np.ndarray  # like the table, added to
    offset: np.ndarray  # like the offset, overwritten
    mask: np.ndarray  # like the mask, overwritten
    weight: np.ndarray  # (pieces, plan.deep, plan.wide), added to


class Work(NamedTuple):
    """What one thread works with: sizes and memory, float32 or float64 but for `base` and a bfloat16 `column`."""

    geometry: Geometry  # of the call, or of the part of it that is worked on
    plan: Plan
    origin_y: np.ndarray  # (tile,)
    origin_x: np.ndarray
    planes: np.ndarray  # (3 * taps, tile): offsets, vertical and horizontal for each tap; factors
    base: np.ndarray  # (taps, tile), int32
    weights: np.ndarray  # (taps, 4, tile)
    sums: np.ndarray  # (tile, row): the output, or its gradient
    column: np.ndarray  # (tile, column)
    # Of the backward pass:
    grad_column: np.ndarray  # (tile, column)
    dots: np.ndarray  # (taps, tile, 4)
    slopes: np.ndarray  # like planes


def _run(geometry: Geometry) -> int:
    """How many neighbouring channels share weight group and offset group."""
    return math.gcd(geometry.channels // geometry.groups, geometry.channels // geometry.offset_groups)


def vector_length(geometry: Geometry) -> int:
    """Channels that the kernels sample at once: the most that divide the runs of channels."""
    return next(vec for vec in (32, 16, 8, 4, 1) if _run(geometry) % vec == 0)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _spread(number: int) -> int:
    """At least `number` elements, an odd multiple of 16: rows that far apart spread over the whole cache."""
    return (-(-number // 16) | 1) * 16


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is some neighbouring channels of a channels-last tensor that has more."""
    (_, channels, height, width), step = tensor.shape, tensor.stride(3)
    return step > channels and tensor.stride() == (height * width * step, 1, width * step, step)


def steps(tensor: Tensor) -> Steps:
    """From channel to channel and from pixel to pixel of a tensor, dense in either layout or a part of a larger one."""
    if is_part(tensor):
        return 1, tensor.stride(3)
    return (1, tensor.shape[1]) if is_channels_last(tensor) else (tensor.shape[2] * tensor.shape[3], 1)


def make_plan(geometry: Geometry, offset: Tensor, mask: Tensor | None, output: Tensor, backward: bool = False) -> Plan:
    """The plan of a pass over `geometry`; for the tensors, of the whole call, see `steps`; `mask` may be None."""
    from fapn_zoo.modules.deform_conv.cpu.vectors import block_shape

    rows, lanes = block_shape(8 if output.dtype == torch.float64 else 4)
    # Enough tiles for every thread; a multiple of `rows`, and of the 16 pixels whose samples are found at once.
    tile = 96 if geometry.batch * geometry.pixels > 4096 else 48
    run, taps, vec = _run(geometry), geometry.taps, vector_length(geometry)
    # Columns of a hundred kilobytes: with their part of the weight, they share the second level of cache.
    pieces = [n for n in range(vec, run + 1, vec) if run % n == 0 and n * taps <= 288]
    piece = max(pieces, default=vec)
    depth, outs = taps * piece, geometry.out_channels // geometry.groups
    wide, deep = _round_up(outs, lanes), _round_up(depth, math.lcm(rows, lanes))
    row = _spread(geometry.groups * wide)
    sizes = {"taps": taps, "pixels": geometry.pixels, "tile": tile, "piece": piece, "depth": depth, "deep": deep}
    sizes |= {"column": _spread(deep) if backward else depth, "outs": outs, "wide": wide, "row": row}
    sizes |= {"weight": _spread(deep if backward else wide), "rows": rows, "lanes": lanes}
    of_tensors = {"offset_steps": steps(offset), "output_steps": steps(output)}
    of_tensors["mask_steps"] = (1, 1) if mask is None else steps(mask)
    of_tensors |= {"offset_image": offset.stride(0), "mask_image": 0 if mask is None else mask.stride(0)}
    of_memory = {"plane_steps": (tile, 1), "sum_steps": (1, row), "bias_steps": (1, 0), "block_steps": (1, 16)}
    return Plan(**sizes, **of_tensors, **of_memory)


def make_work(geometry: Geometry, plan: Plan, dtype: torch.dtype, backward: bool = False) -> Work:
    """Memory for one thread that computes in `dtype`: zeros, and factors of one, which serve where no mask is."""
    real = np.float64 if dtype == torch.float64 else np.float32
    samples, column = plan.taps * plan.tile, plan.tile * plan.column
    sizes = {"origin_y": plan.tile, "origin_x": plan.tile, "weights": 4 * samples, "sums": plan.tile * plan.row}
    more = {"grad_column": column, "dots": 4 * samples, "slopes": 3 * samples}
    sizes |= more if backward else dict.fromkeys(more, 0)
    arrays = {name: np.zeros(size, real) for name, size in sizes.items()}
    arrays |= {"planes": np.ones(3 * samples, real), "base": np.zeros(samples, np.int32)}
    arrays["column"] = np.zeros(column, np.uint16 if dtype == torch.bfloat16 else real)
    return Work(geometry, plan, **arrays)
