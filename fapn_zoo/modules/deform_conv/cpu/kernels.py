"""Numba kernels of deformable convolution: the forward pass, the backward pass, and what prepares their arrays.

A tile is `count` output pixels from `start` of one image, with all channels. The forward pass takes the channels by
pieces: it samples a piece's column (pixels x taps x channels, small enough for the nearest caches), multiplies it with
its part of the weight and adds the product to the tile's sums, which begin as the bias. Nothing larger than a tile is
stored, and no Python runs between tiles. The matrix product is our own: a library's would need a call from Python for
each tile.

Arrays are flat; float32, float64, or the bfloat16 of `vectors.py`. Kernels are serial and release the GIL; the
caller runs them in its own threads, which share work by a counter of one int64, zero at first. `plan.py` describes
`tensors`, `grads`, `work` and `plan`.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from fapn_zoo.modules.deform_conv.cpu.plan import Gradients, Matrix, Plan, Steps, Tensors, Work
from fapn_zoo.modules.deform_conv.cpu.sampling import blend, dots, locate, slopes, spread
from fapn_zoo.modules.deform_conv.cpu.vectors import move, multiply, pair_up, take, transpose
from fapn_zoo.modules.deform_conv.geometry import Geometry
from fapn_zoo.runtime.compiled import compiled

# No 'nnan' and 'ninf': NaN offsets must be recognised by comparison, and infinities must reach the result.
_OPTIONS = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}
kernel = compiled(**_OPTIONS)  # a function called from Python; it may capture nothing but integers
part = numba.njit(**_OPTIONS)  # a function that kernels call


@functools.cache
def stamp() -> int:
    """A number that changes with the code that kernels are made of: this folder and `geometry.py`.

    numba's disk cache knows a function by its own file and by the integers it captures, not by what it calls. A kernel
    captures the stamp by returning it, so that an edit of any of these files makes numba compile the kernel anew.
    """
    here = Path(__file__).parent
    files = [here.parent / "geometry.py", *sorted(here.glob("*.py"))]
    return zlib.crc32(b"".join(file.read_bytes() for file in files))


@part
def clear(array: np.ndarray, start: int, count: int) -> None:
    for n in range(start, start + count):
        array[n] = 0


@part
def _turned(matrix: Matrix) -> Matrix:
    return Matrix(matrix.array, matrix.at, (matrix.steps[1], matrix.steps[0]))


@part
def _copy(source: Matrix, target: Matrix, height: int, width: int) -> None:
    """From rows to rows."""
    whole = width // 16 * 16
    for n in range(height):
        start, end = source.at + n * source.steps[0], target.at + n * target.steps[0]
        for m in range(0, whole, 16):
            move(16, source.array, start + m, target.array, end + m)
        for m in range(whole, width):
            move(1, source.array, start + m, target.array, end + m)


@part
def _transpose(source: Matrix, target: Matrix, height: int, width: int) -> None:
    """From rows to columns."""
    whole_height, whole_width = height // 16 * 16, width // 16 * 16
    for m in range(0, whole_width, 16):
        for n in range(0, whole_height, 16):
            transpose(16, source, target, n, m)
    for m in range(width):
        start, end = source.at + m, target.at + m * target.steps[1]
        for n in range(whole_height if m < whole_width else 0, height):
            move(1, source.array, start + n * source.steps[0], target.array, end + n)


@part
def copy(source: Matrix, target: Matrix, height: int, width: int) -> None:
    """Copy a matrix of rows or of columns to one of either and of any precision.

    Both have the same elements, mostly (channel, pixel). Steps are made in Python, and no argument is a constant: numba
    would compile a version for every mixture of constants and variables.
    """
    if source.steps[1] == 1 and target.steps[1] == 1:
        _copy(source, target, height, width)
    elif source.steps[0] == 1 and target.steps[0] == 1:
        _copy(_turned(source), _turned(target), width, height)
    elif source.steps[1] == 1:
        _transpose(source, target, height, width)
    else:
        _transpose(_turned(source), _turned(target), width, height)


@part
def product(c: Matrix, a: Matrix, b: Matrix, height: int, width: int, count: int, plan: Plan) -> None:
    """Add a product of matrices to `height` rows of `width` in `c`, both rounded up to whole blocks; see `multiply`."""
    for m in range(0, width, 2 * plan.lanes):
        for n in range(0, height, plan.rows):
            if m + plan.lanes < width:
                multiply(2, c, a, b, n, m, count)
            else:
                multiply(1, c, a, b, n, m, count)


@part
def _shift(work: Work, tap: int) -> tuple[int, int]:
    """How far a tap is below and to the right of tap 0."""
    columns, dilation = work.geometry.kernel[1], work.geometry.dilation
    return tap // columns * dilation[0], tap % columns * dilation[1]


@part
def find_origins(work: Work, start: int, count: int) -> None:
    """Where tap 0 of each pixel of a tile is, without offset."""
    geometry = work.geometry
    y, x = start // geometry.out_width, start % geometry.out_width
    for n in range(count):
        work.origin_y[n] = y * geometry.stride[0] - geometry.padding[0]
        work.origin_x[n] = x * geometry.stride[1] - geometry.padding[1]
        x += 1
        if x == geometry.out_width:
            y, x = y + 1, 0


@part
def _channels(array: np.ndarray, steps: Steps, channels: int, image_at: int, group: int, start: int) -> Matrix:
    """The `channels` of an offset group, for the pixels of a tile; the image is at `image_at`."""
    return Matrix(array, image_at + group * channels * steps[0] + start * steps[1], steps)


@part
def find_samples(tensors: Tensors, image: int, group: int, start: int, count: int, work: Work) -> None:
    """Find the samples of an offset group, counted among all of the call, for all taps and pixels of a tile."""
    plan, taps, none = work.plan, work.plan.taps, np.int64(0)
    source = _channels(tensors.offset, plan.offset_steps, 2 * taps, image * plan.offset_image, group, start)
    copy(source, Matrix(work.planes, none, plan.plane_steps), 2 * taps, count)
    # Without a mask, the planes of factors stay as they were made, full of ones.
    if tensors.mask.size > 0:
        factors = _channels(tensors.mask, plan.mask_steps, taps, image * plan.mask_image, group, start)
        copy(factors, Matrix(work.planes, 2 * taps * plan.tile, plan.plane_steps), taps, count)
    for tap in range(taps):
        sy, sx = _shift(work, tap)
        for i in range(0, count, 16):
            locate(16, work, tap, i, sy, sx)


@part
def store_slopes(grads: Gradients, image: int, group: int, start: int, count: int, work: Work) -> None:
    """Write the gradients of a tile's offsets and factors for one offset group, counted among all of the call."""
    plan, taps, none = work.plan, work.plan.taps, np.int64(0)
    for tap in range(taps):
        sy, sx = _shift(work, tap)
        for i in range(0, count, 16):
            slopes(16, work, tap, i, sy, sx)
    if grads.offset.size > 0:
        target = _channels(grads.offset, plan.offset_steps, 2 * taps, image * plan.offset_image, group, start)
        copy(Matrix(work.slopes, none, plan.plane_steps), target, 2 * taps, count)
    if grads.mask.size > 0:
        target = _channels(grads.mask, plan.mask_steps, taps, image * plan.mask_image, group, start)
        copy(Matrix(work.slopes, 2 * taps * plan.tile, plan.plane_steps), target, taps, count)


@functools.cache
def make_movers() -> tuple[Callable, Callable, Callable]:
    """Kernels that fill tables, copy one back, and pack the weight for the forward pass.

    Args of the kernels:
        images: (B, C, H, W) in either layout; `start` is where the first channel to copy is.
        table: (B, (H + 3) * (W + 2) + 1, channels), those of `geometry`; `drain` takes that of one image.
        weight: (O, C / groups, taps).
        packed: (pieces, depth, plan.weight); of bfloat16, (pieces, depth / 2, plan.weight, 2).
        block: zeros, (depth, 16), memory to work in.
        counter: rows of all tables, or pieces.
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

    @kernel
    def drain(table: np.ndarray, images: np.ndarray, steps: Steps, start: int, geometry: Geometry) -> int:
        width, channels = geometry.width, geometry.channels
        for y in range(geometry.height):
            row = Matrix(table, ((y + 1) * (width + 2) + 1) * channels, (np.int64(1), channels))
            copy(row, Matrix(images, start + y * width * steps[1], steps), channels, width)
        return number

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

    return fill, drain, pack


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
