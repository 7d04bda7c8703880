"""What the numba kernels of deformable convolution share: how they are compiled, and how they work on one tile.

Arrays are flat: an argument named `..._at` is where something begins in one, `..._step` what leads from row to row.
`plan` and `work` are described in the file `plan`.
"""

import functools
import zlib
from pathlib import Path

import numba
import numpy as np

from fapn_zoo.modules.deform_conv.cpu.sampling import locate, slopes
from fapn_zoo.modules.deform_conv.cpu.vectors import move, multiply, transpose
from fapn_zoo.runtime.compiled import compiled

# No 'nnan' and 'ninf': NaN offsets must be recognised by comparison, and infinities must reach the result.
_OPTIONS = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}


@functools.cache
def stamp():
    """A number for the code that kernels are made of. Kernels return it, to no end but that they depend on it.

    numba's disk cache knows a function by its own file and by the integers it captures, not by what it calls.
    """
    here = Path(__file__).parent
    files = [here.parent / "geometry.py", *sorted(here.glob("*.py"))]
    return zlib.crc32(b"".join(file.read_bytes() for file in files))


kernel = compiled(**_OPTIONS)  # a function called from Python; it may capture nothing but integers


def part(function):
    """Compile a function that kernels call."""
    return numba.njit(**_OPTIONS)(function)


@part
def clear(array, start, count):
    for n in range(start, start + count):
        array[n] = 0


@part
def _copy(source, source_at, target, target_at, count):
    whole = count // 16 * 16
    for n in range(0, whole, 16):
        move(16, source, source_at + n, target, target_at + n)
    for n in range(whole, count):
        move(1, source, source_at + n, target, target_at + n)


@part
def _turn(source, source_at, source_step, target, target_at, target_step, rows, columns):
    """Copy the transpose of a matrix."""
    whole_rows, whole_columns = rows // 16 * 16, columns // 16 * 16
    for m in range(0, whole_columns, 16):
        for n in range(0, whole_rows, 16):
            start, end = source_at + n * source_step + m, target_at + m * target_step + n
            transpose(16, source, start, source_step, target, end, target_step)
    for m in range(columns):
        for n in range(whole_rows if m < whole_columns else 0, rows):
            move(1, source, source_at + n * source_step + m, target, target_at + m * target_step + n)


@part
def copy(source, source_at, source_steps, target, target_at, target_steps, channels, pixels):
    """Copy the channels of some pixels from one layout and precision to another.

    Steps lead from channel to channel and from pixel to pixel; one of both is 1. They are made in Python, and no
    argument is a constant: numba would compile a version for every mixture of constants and variables.
    """
    if source_steps[1] == 1 and target_steps[1] == 1:
        for n in range(channels):
            _copy(source, source_at + n * source_steps[0], target, target_at + n * target_steps[0], pixels)
    elif source_steps[0] == 1 and target_steps[0] == 1:
        for n in range(pixels):
            _copy(source, source_at + n * source_steps[1], target, target_at + n * target_steps[1], channels)
    elif source_steps[1] == 1:
        _turn(source, source_at, source_steps[0], target, target_at, target_steps[1], channels, pixels)
    else:
        _turn(source, source_at, source_steps[1], target, target_at, target_steps[0], pixels, channels)


@part
def product(c, c_at, c_step, a, a_at, a_row, a_step, b, b_at, b_step, height, width, count, plan):
    """Add a product of matrices to `height` rows of `width` in `c`, both rounded up to whole blocks; see `multiply`."""
    pair = 2 if b.itemsize == 2 else 1
    for m in range(0, width, 2 * plan.lanes):
        for n in range(0, height, plan.rows):
            at, left, right = c_at + n * c_step + m, a_at + n * a_row, b_at + m * pair
            if m + plan.lanes < width:
                multiply(2, c, at, c_step, a, left, a_row, a_step, b, right, b_step, count)
            else:
                multiply(1, c, at, c_step, a, left, a_row, a_step, b, right, b_step, count)


@part
def _shift(tap, geometry):
    """Where a tap lies, relative to tap 0."""
    return tap // geometry.kernel[1] * geometry.dilation[0], tap % geometry.kernel[1] * geometry.dilation[1]


@part
def find_origins(work, start, count, geometry):
    """Where tap 0 of each pixel of a tile is, without offset."""
    y, x = start // geometry.out_width, start % geometry.out_width
    for n in range(count):
        work.origin_y[n] = y * geometry.stride[0] - geometry.padding[0]
        work.origin_x[n] = x * geometry.stride[1] - geometry.padding[1]
        x += 1
        if x == geometry.out_width:
            y, x = y + 1, 0


@part
def _start(steps, channels, image, group, start, plan):
    """Where a tile of pixels from `start` begins in the `channels` of an offset group."""
    return (image * plan.offset_groups * plan.pixels + group * steps[0]) * channels + start * steps[1]


@part
def find_samples(offset, mask, image, group, start, count, work, geometry, plan):
    """Find the samples of an offset group, counted among all of the call, for all taps and pixels of a tile."""
    taps, tile, planes, factors = plan.taps, plan.tile, work.planes, 2 * plan.taps * plan.tile
    first = _start(plan.offset_steps, 2 * taps, image, group, start, plan)
    copy(offset, first, plan.offset_steps, planes, np.int64(0), plan.plane_steps, 2 * taps, count)
    # Without a mask, the planes of factors stay as they were made, full of ones.
    if mask.size > 0:
        first = _start(plan.mask_steps, taps, image, group, start, plan)
        copy(mask, first, plan.mask_steps, planes, factors, plan.plane_steps, taps, count)
    for tap in range(taps):
        sy, sx = _shift(tap, geometry)
        py, px, pf = 2 * tap * tile, (2 * tap + 1) * tile, factors + tap * tile
        for i in range(0, count, 16):
            locate(
                16, work.base, work.weights, tile, tap, geometry.width + 2, work.origin_y, work.origin_x, i,
                planes, py, px, pf, sy, sx, geometry.height, geometry.width,
            )  # fmt: skip


@part
def store_slopes(grad_offset, grad_mask, need_offset, need_mask, image, group, start, count, work, geometry, plan):
    """Write the gradients of a tile's offsets and factors for one offset group, counted among all of the call."""
    taps, tile, slopes_, factors = plan.taps, plan.tile, work.slopes, 2 * plan.taps * plan.tile
    for tap in range(taps):
        sy, sx = _shift(tap, geometry)
        py, px, pf = 2 * tap * tile, (2 * tap + 1) * tile, factors + tap * tile
        for i in range(0, count, 16):
            slopes(
                16, slopes_, work.dots, tile, tap, work.origin_y, work.origin_x, i,
                work.planes, py, px, pf, sy, sx, geometry.height, geometry.width,
            )  # fmt: skip
    if need_offset:
        first = _start(plan.offset_steps, 2 * taps, image, group, start, plan)
        copy(slopes_, np.int64(0), plan.plane_steps, grad_offset, first, plan.offset_steps, 2 * taps, count)
    if need_mask:
        first = _start(plan.mask_steps, taps, image, group, start, plan)
        copy(slopes_, factors, plan.plane_steps, grad_mask, first, plan.mask_steps, taps, count)
