"""Numba kernels of deformable convolution: the forward pass, the backward pass, and what prepares their arrays.

A tile is a few output pixels of one image, with all channels. The forward pass takes the channels by pieces: it samples
a piece's column (pixels x taps x channels, small enough for the nearest caches), multiplies it with its part of the
weight and adds the product to the tile's sums, which begin as the bias. Nothing larger than a tile is stored, and no
Python runs between tiles. The matrix product is our own: a library's would need a call from Python for each tile.

Arrays are flat; float32, float64, or the bfloat16 of `vectors`. Kernels are serial and release the GIL; the
caller runs them in its own threads, which share work by a counter of one int64, zero at first. See `plan` for
the arguments `plan` and `work`, `sampling` for tables.
"""

import functools

import numpy as np

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


@functools.cache
def make_fill():
    """Kernel that copies images into tables.

    Args of the kernel:
        images: (B, C, H, W), either layout.
        steps, table_steps: from channel to channel and from pixel to pixel, of images and tables.
        start, image_step: where the first channel to copy is, and from image to image.
        table: (B, (H + 3) * (W + 2) + 1, channels of the geometry).
        counter: rows of all tables.
    """
    number = stamp()

    @kernel
    def fill(images, steps, start, image_step, table, table_steps, geometry, counter):
        height, width, channels = geometry.height, geometry.width, geometry.channels
        line = (width + 2) * channels
        while True:
            n = take(counter)
            if n >= geometry.batch * (height + 3):
                return number
            image, y = n // (height + 3), n % (height + 3) - 1
            at = n * line + image * channels
            if 0 <= y < height:
                first = start + image * image_step + y * width * steps[1]
                clear(table, at, channels)
                copy(images, first, steps, table, at + channels, table_steps, channels, width)
                clear(table, at + line - channels, channels)
            else:
                # One pixel follows the last row.
                clear(table, at, line + (channels if y == height + 1 else 0))

    return fill


@functools.cache
def make_drain():
    """Kernel that copies the table of one image back; for its args see `make_fill`."""
    number = stamp()

    @kernel
    def drain(table, table_steps, images, steps, start, geometry):
        width, channels = geometry.width, geometry.channels
        for y in range(geometry.height):
            at = ((y + 1) * (width + 2) + 1) * channels
            copy(table, at, table_steps, images, start + y * width * steps[1], steps, channels, width)
        return number

    return drain


@functools.cache
def make_pack():
    """Kernel that packs the weight for the forward pass.

    Args of the kernel:
        weight: (O, C / groups, taps).
        packed: (pieces, depth, plan.weight); of bfloat16, (pieces, depth / 2, plan.weight, 2).
        block: zeros, (depth, 16), memory to work in.
        counter: pieces.
    """
    number = stamp()

    @kernel
    def pack(weight, packed, block, geometry, plan, counter):
        taps, piece, depth, step = plan.taps, plan.piece, plan.depth, plan.weight
        group_channels = geometry.channels // geometry.groups
        source_steps, half = (group_channels * taps, np.int64(1)), weight.itemsize == 2
        while True:
            n = take(counter)
            if n >= geometry.channels // piece:
                return number
            group, channel = n * piece // group_channels, n * piece % group_channels
            for out in range(0, plan.outs, 16):
                start = ((group * plan.outs + out) * group_channels + channel) * taps
                copy(weight, start, source_steps, block, np.int64(0), plan.block_steps, min(16, plan.outs - out), depth)
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
def make_forward(vec):
    """Kernel of the forward pass, for samples of `vec` channels at once.

    Args of the kernel:
        table: (B, ...), filled; of the dtype of the pass.
        offset, mask: (B, G * taps * 2, Ho * Wo) and (B, G * taps, Ho * Wo), either layout and any dtype; the mask may
            be empty.
        weight: packed, of the dtype of the table.
        bias: (groups * plan.wide,), of the dtype of sums.
        output: (B, O, Ho * Wo), either layout.
        counter: tiles of all images.
    """
    number = stamp()

    @kernel
    def forward(table, offset, mask, weight, bias, output, work, geometry, plan, counter):
        tile, piece, depth, pixels, steps = plan.tile, plan.piece, plan.depth, plan.pixels, plan.output_steps
        line, channels, tiles = geometry.width + 2, geometry.channels, (plan.pixels + plan.tile - 1) // plan.tile
        offset_channels, group_channels = channels // geometry.offset_groups, channels // geometry.groups
        none, pair = np.int64(0), np.int64(2 if weight.itemsize == 2 else 1)
        while True:
            n = take(counter)
            if n >= geometry.batch * tiles:
                return number
            image, start = n // tiles, n % tiles * tile
            count = min(tile, pixels - start)
            first = image * ((geometry.height + 3) * line + 1) * channels
            find_origins(work, start, count, geometry)
            copy(bias, none, plan.bias_steps, work.sums, none, plan.sum_steps, bias.size, count)
            for offset_group in range(geometry.offset_groups):
                find_samples(offset, mask, image, offset_group, start, count, work, geometry, plan)
                for channel in range(offset_group * offset_channels, (offset_group + 1) * offset_channels, piece):
                    for tap in range(plan.taps):
                        for c in range(0, piece, vec):
                            to = tap * piece + c
                            for i in range(count):
                                blend(
                                    vec, work.column, to, table, first + channel + c, channels, line,
                                    work.base, work.weights, tile, tap, i,
                                )  # fmt: skip
                                to += depth
                    product(
                        work.sums, channel // group_channels * plan.wide, plan.row, work.column, none, depth, pair,
                        weight, channel // piece * depth * plan.weight, plan.weight * pair,
                        count, plan.wide, depth // pair, plan,
                    )  # fmt: skip
            for group in range(geometry.groups):
                out = group * plan.outs
                to = image * geometry.out_channels * pixels + out * steps[0] + start * steps[1]
                copy(work.sums, group * plan.wide, plan.sum_steps, output, to, steps, plan.outs, count)

    return forward


@functools.cache
def make_adjoint(vec):
    """Kernel of the backward pass of one image and some of its channels, for samples of `vec` channels at once.

    Args of the kernel, all of the dtype of the pass:
        table, offset, mask: see `make_forward`; the table is that of the channels.
        weight: (pieces, outs, plan.weight), each row (taps, channels of the piece) and padding.
        grad: the output's gradient, like `output` there; `grad_start` is where that of the channels begins.
        image, group_start: which image of `offset` and `mask`, and the first of its offset groups.
        grad_table: as `table`, added to.
        grad_offset, grad_mask: as `offset` and `mask`, overwritten.
        grad_weight: (pieces, plan.deep, plan.wide), added to.
        needs: whether the gradients of input, offset, mask and weight are wanted; what is not may be empty.
        geometry: that of the channels.
    """
    number = stamp()

    @kernel
    def adjoint(
        table, offset, mask, weight, grad, grad_start, image, group_start,
        grad_table, grad_offset, grad_mask, grad_weight, needs, work, geometry, plan,
    ):  # fmt: skip
        none, one, (need_input, need_offset, need_mask, need_weight) = np.int64(0), np.int64(1), needs
        tile, piece, wide, column, steps = plan.tile, plan.piece, plan.wide, plan.column, plan.output_steps
        line, channels = geometry.width + 2, geometry.channels
        offset_channels, group_channels = channels // geometry.offset_groups, channels // geometry.groups
        for start in range(0, plan.pixels, tile):
            count = min(tile, plan.pixels - start)
            find_origins(work, start, count, geometry)
            for group in range(geometry.groups):
                first = grad_start + group * plan.outs * steps[0] + start * steps[1]
                copy(grad, first, steps, work.sums, group * wide, plan.sum_steps, plan.outs, count)
            for offset_group in range(geometry.offset_groups):
                find_samples(offset, mask, image, group_start + offset_group, start, count, work, geometry, plan)
                clear(work.dots, none, work.dots.size)
                for channel in range(offset_group * offset_channels, (offset_group + 1) * offset_channels, piece):
                    at, n = channel // group_channels * wide, channel // piece
                    if need_input or need_offset or need_mask:
                        clear(work.grad_column, none, count * column)
                        product(
                            work.grad_column, none, column, work.sums, at, plan.row, one,
                            weight, n * plan.outs * plan.weight, plan.weight, count, plan.depth, plan.outs, plan,
                        )  # fmt: skip
                    for tap in range(plan.taps):
                        for c in range(0, piece, vec):
                            to = tap * piece + c
                            for i in range(count):
                                if need_weight:
                                    blend(
                                        vec, work.column, to, table, channel + c, channels, line,
                                        work.base, work.weights, tile, tap, i,
                                    )  # fmt: skip
                                if need_offset or need_mask:
                                    dots(
                                        vec, work.dots, work.grad_column, to, table, channel + c, channels, line,
                                        work.base, work.weights, tile, tap, i,
                                    )  # fmt: skip
                                if need_input:
                                    spread(
                                        vec, work.grad_column, to, grad_table, channel + c, channels, line,
                                        work.base, work.weights, tile, tap, i,
                                    )  # fmt: skip
                                to += column
                    if need_weight:
                        product(
                            grad_weight, n * plan.deep * wide, wide, work.column, none, one, column,
                            work.sums, at, plan.row, plan.depth, wide, count, plan,
                        )  # fmt: skip
                if need_offset or need_mask:
                    group = group_start + offset_group
                    store_slopes(
                        grad_offset, grad_mask, need_offset, need_mask, image, group, start, count, work, geometry, plan
                    )  # fmt: skip
        return number

    return adjoint
