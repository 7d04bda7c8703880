"""Numba loops behind `fapn_zoo.postprocess.best_class`: serial, free of the GIL.

Importing this module imports numba (about a second), so it is done at first use. All loops are in this one file,
because numba's disk cache looks no further. The innermost loops run along rows of memory and become vector
instructions; what they work on fits into the innermost caches.

Enlarging by a whole factor, columns are kept in *phases*: first those at the first place between two columns of the
small map, then those at the second, and so on. Each phase is one plain loop over the small map's row.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fapn_zoo.runtime.compiled import compiled

_LOWEST, _HIGHEST = np.float32(-87), np.float32(87)  # where exp(x) is still a normal float32
_LOG2_E, _HALF, _ONE = np.float32(1.44269504), np.float32(0.5), np.float32(1)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# The minimax polynomial of exp between -ln(2)/2 and ln(2)/2 in Moshier's Cephes library.
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)

_jit = compiled(nogil=True, fastmath={"contract"}, error_model="numpy")


@intrinsic
def _float_of_bits(_, bits):
    """The float32 that 32 bits stand for."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.trunc(arguments[0], ir.IntType(32)), ir.FloatType())

    return types.float32(bits), generate


@_jit
def _exp(x):
    """exp of a float32 to the last bit or two, in operations that exist for vectors."""
    x = min(max(x, _LOWEST), _HIGHEST)
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = (((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5) * r * r + r + _ONE
    return p * _float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@_jit
def _enlarge(maps, k, top, height, factor, y, row, values):
    """Row `y` of map `k` enlarged by `factor`, into `values` (factor * w,), columns in phases.

    `maps` (K, r, w) hold the rows from `top` on of maps that are `height` rows high; `row` (w + 2,) is working memory.
    """
    place = max((y + 0.5) / factor - 0.5, 0.0)
    upper = min(int(place), height - 1)
    lower = min(upper + 1, height - 1)
    share = np.float32(place - upper)
    rest = _ONE - share
    above, below = maps[k, upper - top], maps[k, lower - top]
    small = above.size
    for x in range(small):
        row[x + 1] = above[x] * rest + below[x] * share
    row[0], row[small + 1] = row[1], row[small]
    for phase in range(factor):
        place = (phase + 0.5) / factor - 0.5
        start = 0 if place < 0 else 1
        right = np.float32(place + 1 - start)
        left = _ONE - right
        out = values[phase * small : (phase + 1) * small]
        for x in range(small):
            out[x] = row[x + start] * left + row[x + start + 1] * right


@_jit
def _in_order(values, factor, out):
    """Columns in phases, one after the other as they stand in the row."""
    small = values.size // factor
    for x in range(out.size):
        out[x] = values[x % factor * small + x // factor]


@_jit
def _keep_larger(k, values, high, label):
    if k == 0:
        high[:], label[:] = values, 0
        return
    for x in range(values.size):
        larger = values[x] > high[x]
        high[x] = values[x] if larger else high[x]
        label[x] = k if larger else label[x]


@_jit
def _add_exp(values, high, total):
    for x in range(values.size):
        total[x] += _exp(values[x] - high[x])


@_jit
def best_enlarged(maps, top, height, factor, first, best, share):
    """The largest of K maps enlarged by `factor`, and its softmax.

    Args:
        maps: (K, r, w) float32, see `_enlarge`.
        first: row of the enlarged map that the first row of `best` is.
        best: (rows, W) int64, W at most w * factor.
        share: (rows, W) float32, or empty where it is not asked for.
    """
    count, _, small = maps.shape
    row, values = np.empty(small + 2, np.float32), np.empty(factor * small, np.float32)
    high, total = np.empty_like(values), np.empty_like(values)
    label = np.empty(factor * small, np.int32)
    for y in range(len(best)):
        total[:] = 0
        for turn in range(2 if share.size else 1):
            for k in range(count):
                _enlarge(maps, k, top, height, factor, first + y, row, values)
                if turn == 0:
                    _keep_larger(k, values, high, label)
                else:
                    _add_exp(values, high, total)
        _in_order(label, factor, best[y])
        if share.size:
            _in_order(_ONE / total, factor, share[y])


@_jit
def best_resized(maps, rows, down, columns, across, best, share):
    """As `best_enlarged` for any two resizes, by the three weights of every row and column.

    Args:
        rows: (rows,) int32, down: (3, rows) float32: the rows of the small maps that each row is the sum of, and how
            much of each; columns (W,) and across (3, W) alike.
    """
    count, height, small = maps.shape
    row = np.zeros(small + 2, np.float32)
    out = best.shape[1]
    high, total, values = np.empty(out, np.float32), np.empty(out, np.float32), np.empty(out, np.float32)
    label = np.empty(out, np.int32)
    for y in range(len(rows)):
        for turn in range(2 if share.size else 1):
            total[:] = 0
            for k in range(count):
                one = maps[k, rows[y]]
                two, three = maps[k, min(rows[y] + 1, height - 1)], maps[k, min(rows[y] + 2, height - 1)]
                for x in range(small):
                    row[x] = one[x] * down[0, y] + two[x] * down[1, y] + three[x] * down[2, y]
                for x in range(out):
                    i = columns[x]
                    values[x] = row[i] * across[0, x] + row[i + 1] * across[1, x] + row[i + 2] * across[2, x]
                if turn == 0:
                    _keep_larger(k, values, high, label)
                else:
                    _add_exp(values, high, total)
        best[y] = label
        if share.size:
            share[y] = _ONE / total


@_jit
def squash(maps, top, height, factor, first, masks):
    """The sigmoid of Q maps (Q, r, w) float32, see `_enlarge`, enlarged by `factor`, from row `first` on.

    It goes into `masks` (Q, rows, factor, w) float32, columns in phases.
    """
    count, rows, _, small = masks.shape
    row = np.empty(small + 2, np.float32)
    for y in range(rows):
        for q in range(count):
            out = masks[q, y].reshape(factor * small)
            _enlarge(maps, q, top, height, factor, first + y, row, out)
            for x in range(out.size):
                out[x] = _ONE / (_ONE + _exp(-out[x]))


@_jit
def _divide(high, total):
    for x in range(high.size):
        high[x] /= max(total[x], np.float32(1e-37))


@_jit
def best_scores(scores, best, share):
    """The largest of K scores, and its part of their sum, as in `best_enlarged`.

    `scores` are (K + 1, rows, factor, w) float32 of 0 or more, columns in phases; the last one is the sum.
    """
    count, rows, factor, small = scores.shape
    high, label = np.empty(factor * small, np.float32), np.empty(factor * small, np.int32)
    for y in range(rows):
        for k in range(count - 1):
            _keep_larger(k, scores[k, y].reshape(factor * small), high, label)
        _in_order(label, factor, best[y])
        if share.size:
            _divide(high, scores[count - 1, y].reshape(factor * small))
            _in_order(high, factor, share[y])


@_jit
def best_resized_scores(scores, rows, lower, columns, right, best, share):
    """As `best_scores` after a resize.

    Args:
        rows: (2, rows) int32 and lower: (rows,) float32: the two rows of scores that a row lies between, and how much
            of the second it takes; columns (2, W), in phases, and right (W,) alike.
    """
    count, _, factor, small = scores.shape
    row = np.empty(factor * small, np.float32)
    out = best.shape[1]
    high, values = np.empty(out, np.float32), np.empty(out, np.float32)
    label = np.empty(out, np.int32)
    for y in range(rows.shape[1]):
        for k in range(count):
            above = scores[k, rows[0, y]].reshape(factor * small)
            below = scores[k, rows[1, y]].reshape(factor * small)
            rest = _ONE - lower[y]
            for x in range(row.size):
                row[x] = above[x] * rest + below[x] * lower[y]
            for x in range(out):
                values[x] = row[columns[0, x]] * (_ONE - right[x]) + row[columns[1, x]] * right[x]
            if k < count - 1:
                _keep_larger(k, values, high, label)
        best[y] = label
        if share.size:
            _divide(high, values)  # those of the last turn are the sums
            share[y] = high
