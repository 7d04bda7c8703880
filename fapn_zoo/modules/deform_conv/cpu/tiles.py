"""What the numba kernels of deformable convolution share: how they are compiled, and how they work on one tile.

A tile is `count` output pixels from `start` of one image. `plan.py` describes `work` and the other records.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from fapn_zoo.modules.deform_conv.cpu.plan import Gradients, Matrix, Plan, Steps, Tensors, Work
from fapn_zoo.modules.deform_conv.cpu.sampling import locate, slopes
from fapn_zoo.modules.deform_conv.cpu.vectors import move, multiply, transpose
from fapn_zoo.runtime.compiled import compiled

# No 'nnan' and 'ninf': NaN offsets must be recognised by comparison, and infinities must reach the result.
_OPTIONS = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}


@functools.cache
def stamp() -> int:
    """A number that changes with the code that kernels are made of: this folder and `geometry.py`.

    numba's disk cache knows a function by its own file and by the integers it captures, not by what it calls. A kernel
    captures the stamp by returning it, so that an edit of any of these files makes numba compile the kernel anew.
    """
    here = Path(__file__).parent
    files = [here.parent / "geometry.py", *sorted(here.glob("*.py"))]
    return zlib.crc32(b"".join(file.read_bytes() for file in files))


kernel = compiled(**_OPTIONS)  # a function called from Python; it may capture nothing but integers


def part(function: Callable) -> Callable:
    """Compile a function that kernels call."""
    return numba.njit(**_OPTIONS)(function)


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
def _channels(array: np.ndarray, steps: Steps, channels: int, plan: Plan, image: int, group: int, start: int) -> Matrix:
    """The `channels` of an offset group, for the pixels of a tile."""
    at = (image * plan.offset_groups * plan.pixels + group * steps[0]) * channels + start * steps[1]
    return Matrix(array, at, steps)


@part
def find_samples(tensors: Tensors, image: int, group: int, start: int, count: int, work: Work) -> None:
    """Find the samples of an offset group, counted among all of the call, for all taps and pixels of a tile."""
    plan, taps, none = work.plan, work.plan.taps, np.int64(0)
    source = _channels(tensors.offset, plan.offset_steps, 2 * taps, plan, image, group, start)
    copy(source, Matrix(work.planes, none, plan.plane_steps), 2 * taps, count)
    # Without a mask, the planes of factors stay as they were made, full of ones.
    if tensors.mask.size > 0:
        factors = _channels(tensors.mask, plan.mask_steps, taps, plan, image, group, start)
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
        target = _channels(grads.offset, plan.offset_steps, 2 * taps, plan, image, group, start)
        copy(Matrix(work.slopes, none, plan.plane_steps), target, 2 * taps, count)
    if grads.mask.size > 0:
        target = _channels(grads.mask, plan.mask_steps, taps, plan, image, group, start)
        copy(Matrix(work.slopes, 2 * taps * plan.tile, plan.plane_steps), target, taps, count)
