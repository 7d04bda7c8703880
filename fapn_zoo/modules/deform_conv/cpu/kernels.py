"""Numba kernels of deformable convolution: the forward pass, the backward pass, and what prepares their arrays.

A tile is a few output pixels of one image, with all channels. The forward pass takes the channels by pieces: it samples
a piece's column (pixels x taps x channels, small enough for the nearest caches), multiplies it with its part of the
weight and adds the product to the tile's sums, which begin as the bias. Nothing larger than a tile is stored, and no
Python runs between tiles. The matrix product is our own: a library's would need a call from Python for each tile.

Arrays are flat; float32, float64, or the bfloat16 of `vectors.py`. Kernels are serial and release the GIL; the
caller runs them in its own threads, which share work by a counter of one int64, zero at first. `plan.py` describes
`tensors`, `grads`, `work` and `plan`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from fapn_zoo.modules.deform_conv.cpu.plan import Gradients, Matrix, Plan, Steps, Tensors, Work
from fapn_zoo.modules.deform_conv.cpu.sampling import blend, dots, spread
from fapn_zoo.modules.deform_conv.cpu.tiles import (
    clear,
    copy,
    find_origins,
    find_samples,
    kernel,
    product,
    stamp,
    store_slopes,
)
from fapn_zoo.modules.deform_conv.cpu.vectors import move, pair_up, take
from fapn_zoo.modules.deform_conv.geometry import Geometry


@functools.cache
def make_fill() -> Callable:
    """Kernel that copies images (B, C, H, W), in either layout, into tables of the channels of `geometry`.

    Args of the kernel:
        start: where the first channel to copy is.
        table: (B, (H + 3) * (W + 2) + 1, channels).
        counter: rows of all tables.
    """
    number = stamp()

    @kernel
    def fill(
        images: np.ndarray, steps: Steps, start: int, table: np.ndarray, geometry: Geometry, counter: np.ndarray
    ) -> int:
        height, width, channels = geometry.height, geometry.width, geometry.channels
        line, table_steps = (width + 2) * channels, (np.int64(1), channels)
        image_step = images.size // geometry.batch
        while True:
            n = take(counter)
            if n >= geometry.batch * (height + 3):
                return number
            image, y = n // (height + 3), n % (height + 3) - 1
            at = n * line + image * channels
            if 0 <= y < height:
                first = start + image * image_step + y * width * steps[1]
                clear(table, at, channels)
                copy(Matrix(images, first, steps), Matrix(table, at + channels, table_steps), channels, width)
                clear(table, at + line - channels, channels)
            else:
                # One pixel follows the last row.
                clear(table, at, line + (channels if y == height + 1 else 0))

    return fill


@functools.cache
def make_drain() -> Callable:
    """Kernel that copies the table of one image back; for its args see `make_fill`."""
    number = stamp()

    @kernel
    def drain(table: np.ndarray, images: np.ndarray, steps: Steps, start: int, geometry: Geometry) -> int:
        width, channels = geometry.width, geometry.channels
        for y in range(geometry.height):
            row = Matrix(table, ((y + 1) * (width + 2) + 1) * channels, (np.int64(1), channels))
            copy(row, Matrix(images, start + y * width * steps[1], steps), channels, width)
        return number

    return drain


@functools.cache
def make_pack() -> Callable:
    """Kernel that packs the weight for the forward pass.

    Args of the kernel:
        weight: (O, C / groups, taps).
        packed: (pieces, depth, plan.weight); of bfloat16, (pieces, depth / 2, plan.weight, 2).
        block: zeros, (depth, 16), memory to work in.
        counter: pieces.
    """
    number = stamp()

    @kernel
    def pack(
        weight: np.ndarray, packed: np.ndarray, block: np.ndarray, geometry: Geometry, plan: Plan, counter: np.ndarray
    ) -> int:
        taps, piece, depth, step = plan.taps, plan.piece, plan.depth, plan.weight
        group_channels = geometry.channels // geometry.groups
        source_steps, half = (group_channels * taps, np.int64(1)), weight.itemsize == 2
        rows = Matrix(block, np.int64(0), plan.block_steps)
        while True:
            n = take(counter)
            if n >= geometry.channels // piece:
                return number
            group, channel = n * piece // group_channels, n * piece % group_channels
            for out in range(0, plan.outs, 16):
                start = ((group * plan.outs + out) * group_channels + channel) * taps
                copy(Matrix(weight, start, source_steps), rows, min(16, plan.outs - out), depth)
                # The block's rows are ordered (channel, tap), the packed ones (tap, channel).
                for k in range(depth):
                    row = k % piece * taps + k // piece
                    if not half:
                        move(16, block, row * 16, packed, (n * depth + k) * step + out)
                    elif k % 2 == 0:
                        # Its neighbour is the same tap of the next channel.
                        pair_up(16, block, row * 16, (row + taps) * 16, packed, (n * depth + k) * step + out * 2)

    return pack


@functools.cache
def make_forward(vec: int) -> Callable:
    """Kernel of the forward pass, for samples of `vec` channels at once.

    Args of the kernel:
        bias: (groups * plan.wide,), of the dtype of sums.
        counter: tiles of all images.
    """
    number = stamp()

    @kernel
    def forward(tensors: Tensors, bias: np.ndarray, work: Work, counter: np.ndarray) -> int:
        geometry, plan, none, one = work.geometry, work.plan, np.int64(0), np.int64(1)
        tile, piece, depth, pixels, steps = plan.tile, plan.piece, plan.depth, plan.pixels, plan.output_steps
        channels, tiles = geometry.channels, (pixels + tile - 1) // tile
        offset_channels, group_channels = channels // geometry.offset_groups, channels // geometry.groups
        pair = np.int64(2 if tensors.weight.itemsize == 2 else 1)
        column = Matrix(work.column, none, (depth, pair))
        while True:
            n = take(counter)
            if n >= geometry.batch * tiles:
                return number
            image, start = n // tiles, n % tiles * tile
            count = min(tile, pixels - start)
            first = image * ((geometry.height + 3) * (geometry.width + 2) + 1) * channels
            find_origins(work, start, count)
            copy(Matrix(bias, none, plan.bias_steps), Matrix(work.sums, none, plan.sum_steps), bias.size, count)
            for offset_group in range(geometry.offset_groups):
                find_samples(tensors, image, offset_group, start, count, work)
                for channel in range(offset_group * offset_channels, (offset_group + 1) * offset_channels, piece):
                    for tap in range(plan.taps):
                        for c in range(0, piece, vec):
                            to = tap * piece + c
                            for i in range(count):
                                blend(vec, work, tensors.table, first + channel + c, tap, i, to)
                                to += depth
                    sums = Matrix(work.sums, channel // group_channels * plan.wide, (plan.row, one))
                    at, steps_ = channel // piece * depth * plan.weight, (plan.weight * pair, pair)
                    product(sums, column, Matrix(tensors.weight, at, steps_), count, plan.wide, depth // pair, plan)
            for group in range(geometry.groups):
                out = group * plan.outs
                to = image * geometry.out_channels * pixels + out * steps[0] + start * steps[1]
                sums = Matrix(work.sums, group * plan.wide, plan.sum_steps)
                copy(sums, Matrix(tensors.output, to, steps), plan.outs, count)

    return forward


@functools.cache
def make_adjoint(vec: int) -> Callable:
    """Kernel of the backward pass of one image and some of its channels, for samples of `vec` channels at once.

    Args of the kernel:
        start: where the gradient of the output channels that depend on these channels begins.
        image, first_group: which image of `offset` and `mask`, and the first of its offset groups.
    """
    number = stamp()

    @kernel
    def adjoint(tensors: Tensors, grads: Gradients, start: int, image: int, first_group: int, work: Work) -> int:
        geometry, plan, none, one = work.geometry, work.plan, np.int64(0), np.int64(1)
        need_input, need_weight = grads.table.size > 0, grads.weight.size > 0
        need_slopes = grads.offset.size > 0 or grads.mask.size > 0
        piece, wide, outs, steps = plan.piece, plan.wide, plan.outs, plan.output_steps
        offset_channels = geometry.channels // geometry.offset_groups
        group_channels = geometry.channels // geometry.groups
        grad_column = Matrix(work.grad_column, none, (plan.column, one))
        columns = Matrix(work.column, none, (one, plan.column))
        for pixel in range(0, plan.pixels, plan.tile):
            count = min(plan.tile, plan.pixels - pixel)
            find_origins(work, pixel, count)
            for group in range(geometry.groups):
                source = Matrix(tensors.output, start + group * outs * steps[0] + pixel * steps[1], steps)
                copy(source, Matrix(work.sums, group * wide, plan.sum_steps), outs, count)
            for offset_group in range(geometry.offset_groups):
                find_samples(tensors, image, first_group + offset_group, pixel, count, work)
                clear(work.dots, none, work.dots.size)
                for channel in range(offset_group * offset_channels, (offset_group + 1) * offset_channels, piece):
                    n, sums = channel // piece, Matrix(work.sums, channel // group_channels * wide, (plan.row, one))
                    if need_input or need_slopes:
                        clear(work.grad_column, none, count * plan.column)
                        weight = Matrix(tensors.weight, n * outs * plan.weight, (plan.weight, one))
                        product(grad_column, sums, weight, count, plan.depth, outs, plan)
                    for tap in range(plan.taps):
                        for c in range(0, piece, vec):
                            to = tap * piece + c
                            for i in range(count):
                                if need_weight:
                                    blend(vec, work, tensors.table, channel + c, tap, i, to)
                                if need_slopes:
                                    dots(vec, work, tensors.table, channel + c, tap, i, to)
                                if need_input:
                                    spread(vec, work, grads.table, channel + c, tap, i, to)
                                to += plan.column
                    if need_weight:
                        target = Matrix(grads.weight, n * plan.deep * wide, (wide, one))
                        product(target, columns, sums, plan.depth, wide, count, plan)
                if need_slopes:
                    store_slopes(grads, image, first_group + offset_group, pixel, count, work)
        return number

    return adjoint
