"""Numba kernels of deformable convolution: sampling into column tiles, and its adjoint.

For each offset group and tap, a kernel first finds the four corners of all output pixels of the tile, then visits the
pixels. The inner operations are written in LLVM's language, as vectors over neighbouring pixels (`_locate`, `_slopes`)
or over rows of `vec` channels (`_blend`, `_dots`, `_spread`): LLVM finds no vectors in loops this short over arrays
that could alias. Kernels are serial and release the GIL; the caller runs them from its own threads. Importing this
module imports numba (about a second), so only `_deform_numba` does, at first use.

All of it is in this one file, and kernels capture nothing but integers, because numba's disk cache looks no further.
"""

import functools
import itertools

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_I32 = ir.IntType(32)
# No 'nnan' and 'ninf': NaN offsets must be recognised by comparison, and infinities must reach the result.
_OPTIONS = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}


def _jit(function):
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        # No folder to keep compiled code in: neither beside this file nor in the user's cache.
        return numba.njit(**_OPTIONS)(function)


class _Vectors:
    """Emits operations on vectors of `count` elements of numba's floating type `dtype`."""

    def __init__(self, context, builder, dtype, count):
        self.context, self.builder, self.count, self.bits = context, builder, count, dtype.bitwidth
        self.element = context.get_data_type(dtype)
        self.vector, self.whole = ir.VectorType(self.element, count), ir.VectorType(_I32, count)

    def pointer(self, kind, array, start, vector):
        data = self.context.make_array(kind)(self.context, self.builder, array).data
        return self.builder.bitcast(self.builder.gep(data, [start]), vector.as_pointer())

    def load(self, kind, array, start):
        return self.builder.load(self.pointer(kind, array, start, self.vector), align=self.bits // 8)

    def store(self, value, kind, array, start):
        # Four bytes suit both float32 and int32, and are always true.
        self.builder.store(value, self.pointer(kind, array, start, value.type), align=4)

    def row(self, index):
        return self.builder.mul(index, ir.Constant(index.type, self.count))

    def constant(self, number, vector=None):
        return ir.Constant(vector or self.vector, [number] * self.count)

    def splat(self, scalar):
        """A vector that repeats a float, or an integer narrowed to 32 bits."""
        if isinstance(scalar.type, ir.IntType):
            scalar = self.builder.trunc(scalar, _I32)
        undefined = ir.Constant(ir.VectorType(scalar.type, self.count), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
        return self.shuffle(first, undefined, [0] * self.count)

    def shuffle(self, a, b, lanes):
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))

    def add(self, a, b):
        return self.builder.fadd(a, b, flags=("contract",))

    def sub(self, a, b):
        return self.builder.fsub(a, b, flags=("contract",))

    def mul(self, a, b):
        return self.builder.fmul(a, b, flags=("contract",))

    def floor(self, a):
        name, kind = f"llvm.floor.v{self.count}f{self.bits}", ir.FunctionType(self.vector, [self.vector])
        return self.builder.call(
            self.builder.module.globals.get(name) or ir.Function(self.builder.module, kind, name), [a]
        )

    def sums(self, vectors):
        """The sums of four vectors as one vector of four: much cheaper together than one by one."""
        if self.count == 1:
            pairs = [self.shuffle(a, b, (0, 1)) for a, b in (vectors[:2], vectors[2:])]
            return self.shuffle(*pairs, (0, 1, 2, 3))
        width = self.count
        while width > 4:
            width //= 2
            low, high = range(width), range(width, 2 * width)
            vectors = [self.add(self.shuffle(v, v, low), self.shuffle(v, v, high)) for v in vectors]
        a, b, c, d = vectors
        ab = self.add(self.shuffle(a, b, (0, 4, 1, 5)), self.shuffle(a, b, (2, 6, 3, 7)))
        cd = self.add(self.shuffle(c, d, (0, 4, 1, 5)), self.shuffle(c, d, (2, 6, 3, 7)))
        return self.add(self.shuffle(ab, cd, (0, 1, 4, 5)), self.shuffle(ab, cd, (2, 3, 6, 7)))


class _Axis:
    """Along one axis: for positions `y`, the two neighbours, their weights, and the conditions that they exist."""

    def __init__(self, v, y, size):
        builder, size, none, zero = v.builder, v.splat(size), v.constant(0.0), v.constant(0, v.whole)
        # At exactly -1 all weights are zero, but the slope towards the first pixel exists. A NaN is not inside.
        inside = builder.and_(
            builder.fcmp_ordered(">=", y, v.constant(-1.0)),
            builder.fcmp_ordered("<", y, builder.sitofp(size, v.vector)),
        )
        floor = v.floor(y)
        low = v.sub(y, floor)
        first = builder.fptosi(builder.select(inside, floor, v.constant(-2.0)), v.whole)
        second = builder.add(first, v.constant(1, v.whole))
        self.has_0 = builder.icmp_signed(">=", first, zero)
        self.has_1 = builder.and_(builder.icmp_signed(">=", second, zero), builder.icmp_signed("<", second, size))
        # A neighbour outside counts as zero: its weight becomes zero and it moves to pixel 0, for a safe read.
        self.weight_0 = builder.select(self.has_0, v.sub(v.constant(1.0), low), none)
        self.weight_1 = builder.select(self.has_1, low, none)
        self.at_0 = builder.select(self.has_0, first, zero)
        self.at_1 = builder.select(self.has_1, second, zero)


class _Run:
    """Neighbouring output pixels, from `pixel` of the image and `i` of the tile: their samples and factors."""

    def __init__(self, v, kinds, args):
        """Args: origin_y, origin_x, offset_y, offset_x, factor, i, pixel, shift_y, shift_x, height, width."""
        builder = v.builder
        origin_y, origin_x, offset_y, offset_x, factor, self.i, pixel, shift_y, shift_x, height, width = args

        def position(which, origin, shift, offset):
            # A whole number plus the offset, rounded once: exactly where the definition puts the sample.
            tap = v.add(v.load(kinds[which], origin, pixel), builder.sitofp(v.splat(shift), v.vector))
            return v.add(tap, v.load(kinds[2 + which], offset, pixel))

        y = position(0, origin_y, shift_y, offset_y)
        x = position(1, origin_x, shift_x, offset_x)
        self.vertical, self.horizontal = _Axis(v, y, height), _Axis(v, x, width)
        # A NaN position shows in the result instead of hiding as a zero.
        nan = builder.fcmp_unordered("uno", y, x)
        self.factor = builder.select(nan, v.constant(float("nan")), v.load(kinds[4], factor, self.i))


@intrinsic(prefer_literal=True)
def _locate(typingctx, lanes, rows, weights, tile, oy, ox, dy, dx, factor, i, pixel, sy, sx, height, width, step):
    """Fill `rows` and `weights`, flat (4, tile): each corner's row in the image and its weight with the factor.

    `lanes` pixels at once; a pixel of the image has `step` rows; for the others see `_Run`.
    """
    signature = types.void(
        lanes, rows, weights, tile, oy, ox, dy, dx, factor, i, pixel, sy, sx, height, width, step
    )  # fmt: skip

    def codegen(context, builder, signature, args):
        v = _Vectors(context, builder, weights.dtype, lanes.literal_value)
        run = _Run(v, signature.args[4:], args[4:-1])
        y, x, width, step = run.vertical, run.horizontal, v.splat(args[-2]), v.splat(args[-1])
        start = run.i
        for at_y, weight_y in ((y.at_0, y.weight_0), (y.at_1, y.weight_1)):
            line, weight_y = builder.mul(at_y, width), v.mul(weight_y, run.factor)
            for at_x, weight_x in ((x.at_0, x.weight_0), (x.at_1, x.weight_1)):
                v.store(builder.mul(builder.add(line, at_x), step), rows, args[1], start)
                v.store(v.mul(weight_y, weight_x), weights, args[2], start)
                start = builder.add(start, args[3])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def _slopes(typingctx, lanes, result, sums, tile, oy, ox, dy, dx, factor, i, pixel, sy, sx, height, width):
    """Fill `result`, flat (3, tile): the gradients of the vertical offset, the horizontal offset and the factor.

    `sums` is flat (tile, 4), filled by `_dots`; for the others see `_locate`.
    """
    signature = types.void(lanes, result, sums, tile, oy, ox, dy, dx, factor, i, pixel, sy, sx, height, width)

    def codegen(context, builder, signature, args):
        v, wide = (_Vectors(context, builder, sums.dtype, lanes.literal_value * n) for n in (1, 4))
        run = _Run(v, signature.args[4:], args[4:])
        y, x, none = run.vertical, run.horizontal, v.constant(0.0)
        all_sums = wide.load(sums, args[2], builder.mul(run.i, ir.Constant(run.i.type, 4)))
        corners = itertools.product((y.has_0, y.has_1), (x.has_0, x.has_1))
        s00, s01, s10, s11 = (
            builder.select(builder.and_(*exists), wide.shuffle(all_sums, all_sums, range(n, wide.count, 4)), none)
            for n, exists in enumerate(corners)
        )
        hy, ly, hx, lx = y.weight_0, y.weight_1, x.weight_0, x.weight_1
        top, bottom = v.add(v.mul(hx, s00), v.mul(lx, s01)), v.add(v.mul(hx, s10), v.mul(lx, s11))
        left, right = v.add(v.mul(hy, s00), v.mul(ly, s10)), v.add(v.mul(hy, s01), v.mul(ly, s11))
        down, across = v.mul(run.factor, v.sub(bottom, top)), v.mul(run.factor, v.sub(right, left))
        start = run.i
        for value in (down, across, v.add(v.mul(hy, top), v.mul(ly, bottom))):
            v.store(value, result, args[1], start)
            start = builder.add(start, args[3])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def _blend(typingctx, vec, column, target, image, r00, r01, r10, r11, w00, w01, w10, w11):
    """`column[target] = sum of w * image[r]` over the four corners, in rows of `vec` channels."""
    signature = types.void(vec, column, target, image, r00, r01, r10, r11, w00, w01, w10, w11)

    def codegen(context, builder, signature, args):
        v = _Vectors(context, builder, image.dtype, vec.literal_value)
        corners = zip(args[4:8], args[8:], strict=True)
        terms = [v.mul(v.load(image, args[3], v.row(row)), v.splat(weight)) for row, weight in corners]
        v.store(functools.reduce(v.add, terms), column, args[1], v.row(args[2]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def _spread(typingctx, vec, column, target, image, r00, r01, r10, r11, w00, w01, w10, w11):
    """`image[r] += w * column[target]`, corner after corner, since clamped corners may be the same row."""
    signature = types.void(vec, column, target, image, r00, r01, r10, r11, w00, w01, w10, w11)

    def codegen(context, builder, signature, args):
        v = _Vectors(context, builder, image.dtype, vec.literal_value)
        value = v.load(column, args[1], v.row(args[2]))
        for row, weight in zip(args[4:8], args[8:], strict=True):
            before = v.load(image, args[3], v.row(row))
            v.store(v.add(before, v.mul(value, v.splat(weight))), image, args[3], v.row(row))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def _dots(typingctx, vec, sums, i, column, target, image, r00, r01, r10, r11):
    """`sums[i] += ` the inner products of `column[target]` with the image's four corners; `sums` is flat (tile, 4)."""
    signature = types.void(vec, sums, i, column, target, image, r00, r01, r10, r11)

    def codegen(context, builder, signature, args):
        v, four = (_Vectors(context, builder, image.dtype, count) for count in (vec.literal_value, 4))
        value = v.load(column, args[3], v.row(args[4]))
        terms = v.sums([v.mul(value, v.load(image, args[5], v.row(row))) for row in args[6:]])
        start = four.row(args[2])
        four.store(four.add(four.load(sums, args[1], start), terms), sums, args[1], start)
        return context.get_dummy_value()

    return signature, codegen


@_jit
def _shift(index, geometry):
    """Where the tap of sample `index` (offset group and tap) lies, relative to tap 0."""
    tap = index % geometry[3]
    return (tap // geometry[2]) * geometry[4], (tap % geometry[2]) * geometry[5]


@_jit
def _locate_tile(origins, offset, mask, index, factor, rows, weights, start, stop, geometry):
    """Find the corners of sample `index` for the output pixels `start` to `stop`."""
    height, width, step, tile, count = geometry[0], geometry[1], geometry[9], factor.shape[0], stop - start
    sy, sx = _shift(index, geometry)
    if mask.shape[0] > 0:
        factor[:count] = mask[index, start:stop]
    else:
        factor[:count] = 1
    oy, ox, dy, dx = origins[0], origins[1], offset[2 * index], offset[2 * index + 1]
    whole = count - count % 16
    for i in range(0, whole, 16):
        _locate(16, rows, weights, tile, oy, ox, dy, dx, factor, i, start + i, sy, sx, height, width, step)
    for i in range(whole, count):
        _locate(1, rows, weights, tile, oy, ox, dy, dx, factor, i, start + i, sy, sx, height, width, step)


@_jit
def _slope_tile(origins, offset, index, factor, sums, result, start, stop, geometry):
    """Turn the sums of sample `index` into the gradients of its offsets and factor."""
    height, width, tile, count = geometry[0], geometry[1], factor.shape[0], stop - start
    sy, sx = _shift(index, geometry)
    oy, ox, dy, dx = origins[0], origins[1], offset[2 * index], offset[2 * index + 1]
    whole = count - count % 16
    for i in range(0, whole, 16):
        _slopes(16, result, sums, tile, oy, ox, dy, dx, factor, i, start + i, sy, sx, height, width)
    for i in range(whole, count):
        _slopes(1, result, sums, tile, oy, ox, dy, dx, factor, i, start + i, sy, sx, height, width)


@functools.cache
def make_sample(vec):
    """Kernel that fills a column tile for output pixels `start` to `stop` of one image.

    Args of the kernel, all arrays float32 or all float64 but where said:
        image: (H*W*C/vec, vec), the NHWC image.
        origins: (2, Ho*Wo), vertical and horizontal position of tap 0 of each output pixel, without offset.
        offset: (G*taps*2, Ho*Wo).
        mask: (G*taps, Ho*Wo), or (0, 0) when there is none.
        column: (tile*taps*C/vec, vec), ordered (weight group, pixel, tap, channel).
        places: (C/vec,) int64, the row of `column` where each row of channels goes for the tile's first pixel and tap.
        factor, rows, weights: (tile,), (4*tile,) int32 and (4*tile,), memory to work in.
        geometry: int64, see `_deform_numba.Geometry.pack`.
    """

    @_jit
    def sample(image, origins, offset, mask, column, places, factor, rows, weights, start, stop, geometry):
        # In rows of `vec` channels: an offset group, a tap of a weight group.
        taps, offset_groups, offset_rows, tap_rows = geometry[3], geometry[6], geometry[7], geometry[8]
        tile = factor.shape[0]
        for index in range(offset_groups * taps):
            group = index // taps
            _locate_tile(origins, offset, mask, index, factor, rows, weights, start, stop, geometry)
            for row in range(group * offset_rows, (group + 1) * offset_rows):
                target = places[row] + (index - group * taps) * tap_rows
                for i in range(stop - start):
                    r00, r01 = np.int64(rows[i]) + row, np.int64(rows[tile + i]) + row
                    r10, r11 = np.int64(rows[2 * tile + i]) + row, np.int64(rows[3 * tile + i]) + row
                    w00, w01, w10, w11 = weights[i], weights[tile + i], weights[2 * tile + i], weights[3 * tile + i]
                    _blend(vec, column, target, image, r00, r01, r10, r11, w00, w01, w10, w11)
                    target += taps * tap_rows

    return sample


@functools.cache
def make_adjoint(vec):
    """Kernel of the backward pass for output pixels `start` to `stop` of one image.

    Args of the kernel: as `make_sample`, where `column` receives the column again (for the weight's gradient), and:
        grad_column: its gradient, in the same order.
        grad_image: as `image`, added to.
        grad_offset, grad_mask: as `offset` and `mask`, overwritten in the tile's pixels.
        sums, result: (4*tile,) and (3*tile,), memory to work in.
        needs: (4,) int64, whether the gradients of image, offset, mask and the column are wanted; what is not wanted is
            not touched and may be empty.
    """

    @_jit
    def adjoint(
        image, origins, offset, mask, column, places, factor, rows, weights, start, stop, geometry,
        grad_column, grad_image, grad_offset, grad_mask, sums, result, needs,
    ):  # fmt: skip
        taps, offset_groups, offset_rows, tap_rows = geometry[3], geometry[6], geometry[7], geometry[8]
        need_image, need_offset, need_mask, need_column = needs[0] > 0, needs[1] > 0, needs[2] > 0, needs[3] > 0
        tile, count = factor.shape[0], stop - start
        for index in range(offset_groups * taps):
            group = index // taps
            _locate_tile(origins, offset, mask, index, factor, rows, weights, start, stop, geometry)
            sums[:] = 0
            for row in range(group * offset_rows, (group + 1) * offset_rows):
                target = places[row] + (index - group * taps) * tap_rows
                for i in range(count):
                    r00, r01 = np.int64(rows[i]) + row, np.int64(rows[tile + i]) + row
                    r10, r11 = np.int64(rows[2 * tile + i]) + row, np.int64(rows[3 * tile + i]) + row
                    w00, w01, w10, w11 = weights[i], weights[tile + i], weights[2 * tile + i], weights[3 * tile + i]
                    if need_column:
                        _blend(vec, column, target, image, r00, r01, r10, r11, w00, w01, w10, w11)
                    if need_offset or need_mask:
                        _dots(vec, sums, i, grad_column, target, image, r00, r01, r10, r11)
                    if need_image:
                        _spread(vec, grad_column, target, grad_image, r00, r01, r10, r11, w00, w01, w10, w11)
                    target += taps * tap_rows
            if need_offset or need_mask:
                _slope_tile(origins, offset, index, factor, sums, result, start, stop, geometry)
            if need_offset:
                grad_offset[2 * index, start:stop] = result[:count]
                grad_offset[2 * index + 1, start:stop] = result[tile : tile + count]
            if need_mask:
                grad_mask[index, start:stop] = result[2 * tile : 2 * tile + count]

    return adjoint
