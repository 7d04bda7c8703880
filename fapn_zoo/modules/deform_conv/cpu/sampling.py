"""The numba kernels' inner operations: where the samples of deformable convolution are, and their four corners.

Images are tables: pixels in rows of `channels` numbers, with a border of zeros around that samples outside read: one
row above, two below, one pixel to the left and to the right. A sample is given by `base`, the pixel of its upper left
corner in the table, and the weights of the corners; `step` and `line` lead to the next pixel and the next row.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fapn_zoo.modules.deform_conv.cpu.vectors import Vectors, like


class _Axis:
    """Along one axis of `size` pixels, for positions `y`: the first neighbour, and the weights of both."""

    def __init__(self, v, y, size):
        builder, size = v.builder, v.real(size)
        # At exactly -1 all weights are zero, but the slope towards the first pixel exists. A NaN is not inside.
        inside = builder.and_(
            builder.fcmp_ordered(">=", y, v.constant(-1.0)), builder.fcmp_ordered("<", y, size)
        )  # fmt: skip
        floor = v.floor(y)
        # Outside, both neighbours are zeros of the border.
        first = builder.fptosi(builder.select(inside, floor, size), v.whole)
        self.at = builder.add(first, v.constant(1, v.whole))
        self.weight_1 = builder.select(inside, v.sub(y, floor), v.constant(0.0))
        self.weight_0 = v.sub(v.constant(1.0), self.weight_1)


class _Run:
    """Neighbouring output pixels from `i` of a tile: their samples and factors for one tap."""

    def __init__(self, v, kinds, args):
        """Args: origin_y, origin_x, i, planes, plane_y, plane_x, plane_factor, shift_y, shift_x, height, width."""
        origin_y, origin_x, i, planes, plane_y, plane_x, plane_factor, shift_y, shift_x, height, width = args
        at = {"y": (kinds[0], origin_y), "x": (kinds[1], origin_x)}

        def load(kind, array, start):
            return v.load(kind.dtype, v.data(kind, array, v.builder.add(start, i)))

        def position(axis, shift, plane):
            # A whole number plus the offset, rounded once: exactly where the definition puts the sample.
            tap = v.add(load(*at[axis], like(i, 0)), v.real(shift))
            return v.add(tap, load(kinds[3], planes, plane))

        y, x = position("y", shift_y, plane_y), position("x", shift_x, plane_x)
        self.vertical, self.horizontal = _Axis(v, y, height), _Axis(v, x, width)
        # A NaN position shows in the result instead of hiding as a zero.
        nan, factor = v.builder.fcmp_unordered("uno", y, x), load(kinds[3], planes, plane_factor)
        self.factor = v.builder.select(nan, v.constant(float("nan")), factor)


@intrinsic(prefer_literal=True)
def locate(typingctx, lanes, base, weights, tile, tap, line, oy, ox, i, planes, py, px, pf, sy, sx, height, width):
    """Find the samples of `lanes` pixels from `i` of a tile: fill `base` (taps, tile) and `weights` (taps, 4, tile).

    oy, ox: where tap 0 is without offset, for each pixel. planes: offsets and factors in rows of the tile's pixels that
    begin at py, px (of vertical and horizontal offsets) and pf (of factors). sy, sx: where `tap` is relative to tap 0.
    """
    rest = (base, weights, tile, tap, line, oy, ox, i, planes, py, px, pf, sy, sx, height, width)
    signature = types.void(lanes, *rest)

    def codegen(context, builder, signature, args):
        v = Vectors(context, builder, weights.dtype, lanes.literal_value)
        _, base, weights_, tile, tap, line, _, _, i, *_ = args
        run = _Run(v, signature.args[6:], args[6:])
        y, x = run.vertical, run.horizontal
        corner = builder.add(builder.mul(y.at, v.splat(line)), x.at)
        start = builder.mul(tap, tile)
        v.store(corner, types.int32, v.data(signature.args[1], base, builder.add(start, i)))
        start = builder.add(builder.mul(start, like(start, 4)), i)
        for weight_y in (y.weight_0, y.weight_1):
            weight_y = v.mul(weight_y, run.factor)
            for weight_x in (x.weight_0, x.weight_1):
                v.store(v.mul(weight_y, weight_x), weights.dtype, v.data(signature.args[2], weights_, start))
                start = builder.add(start, tile)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def slopes(typingctx, lanes, result, sums, tile, tap, oy, ox, i, planes, py, px, pf, sy, sx, height, width):
    """Fill `result`, like `planes`, with the gradients of vertical offset, horizontal offset and factor of one tap.

    `sums` (taps, tile, 4) are the inner products of corners and gradients; for the others see `locate`.
    """
    rest = (result, sums, tile, tap, oy, ox, i, planes, py, px, pf, sy, sx, height, width)
    signature = types.void(lanes, *rest)

    def codegen(context, builder, signature, args):
        v, wide = (Vectors(context, builder, sums.dtype, lanes.literal_value * n) for n in (1, 4))
        _, result_, sums_, tile, tap, _, _, i, _, *rows = args[:12]
        run = _Run(v, signature.args[5:], args[5:])
        start = builder.add(builder.mul(tap, tile), i)
        start = builder.mul(start, like(start, 4))
        every = wide.load(sums.dtype, wide.data(signature.args[2], sums_, start))
        s00, s01, s10, s11 = (wide.shuffle(every, every, range(n, wide.count, 4)) for n in range(4))
        hy, ly, hx, lx = (getattr(a, n) for a in (run.vertical, run.horizontal) for n in ("weight_0", "weight_1"))
        top, bottom = v.add(v.mul(hx, s00), v.mul(lx, s01)), v.add(v.mul(hx, s10), v.mul(lx, s11))
        left, right = v.add(v.mul(hy, s00), v.mul(ly, s10)), v.add(v.mul(hy, s01), v.mul(ly, s11))
        down, across = v.mul(run.factor, v.sub(bottom, top)), v.mul(run.factor, v.sub(right, left))
        values = down, across, v.add(v.mul(hy, top), v.mul(ly, bottom))
        for value, row in zip(values, rows, strict=True):
            v.store(value, result.dtype, v.data(signature.args[1], result_, builder.add(row, i)))
        return context.get_dummy_value()

    return signature, codegen


class _Sample:
    """The corners and weights of pixel `i` of a tile for one tap."""

    def __init__(self, v, kinds, args):
        """Args: table, channel, step, line, base, weights, tile, tap, i."""
        self.v, self.kinds, builder = v, kinds, v.builder
        self.table, channel, step, line, base, self.weights, self.tile, tap, i = args
        self.start = builder.mul(tap, self.tile)
        pixel = builder.load(v.data(kinds[4], base, builder.add(self.start, i)))
        first = builder.add(builder.mul(builder.sext(pixel, step.type), step), channel)
        below = builder.add(first, builder.mul(line, step))
        self.corners = [first, builder.add(first, step), below, builder.add(below, step)]
        self.i = i

    def each_weight(self):
        start = self.v.builder.add(self.v.builder.mul(self.start, like(self.start, 4)), self.i)
        for n in range(4):
            at = self.v.builder.add(start, self.v.builder.mul(self.tile, like(self.tile, n)))
            yield self.v.splat(self.v.builder.load(self.v.data(self.kinds[5], self.weights, at)))

    def pointers(self):
        return [self.v.data(self.kinds[0], self.table, corner) for corner in self.corners]

    def values(self):
        return [self.v.load(self.kinds[0].dtype, pointer) for pointer in self.pointers()]


@intrinsic(prefer_literal=True)
def blend(typingctx, vec, column, target, table, channel, step, line, base, weights, tile, tap, i):
    """`column[target:][:vec]` = the sample of the table's channels from `channel` at pixel `i` for `tap`."""
    signature = types.void(vec, column, target, table, channel, step, line, base, weights, tile, tap, i)

    def codegen(context, builder, signature, args):
        v = Vectors(context, builder, weights.dtype, vec.literal_value)
        sample = _Sample(v, signature.args[3:], args[3:])
        total = None
        for value, weight in zip(sample.values(), sample.each_weight(), strict=True):
            total = v.mul(value, weight) if total is None else v.add(total, v.mul(value, weight))
        v.store(total, column.dtype, v.data(signature.args[1], args[1], args[2]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def spread(typingctx, vec, column, target, table, channel, step, line, base, weights, tile, tap, i):
    """The adjoint of `blend`: add `column[target:][:vec]` times its weight to each corner."""
    signature = types.void(vec, column, target, table, channel, step, line, base, weights, tile, tap, i)

    def codegen(context, builder, signature, args):
        v = Vectors(context, builder, weights.dtype, vec.literal_value)
        sample = _Sample(v, signature.args[3:], args[3:])
        value = v.load(column.dtype, v.data(signature.args[1], args[1], args[2]))
        # The four corners are different pixels: of the border, if need be.
        for pointer, before, weight in zip(sample.pointers(), sample.values(), sample.each_weight(), strict=True):
            v.store(v.add(before, v.mul(value, weight)), table.dtype, pointer)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def dots(typingctx, vec, sums, column, target, table, channel, step, line, base, weights, tile, tap, i):
    """Add the inner products of `column[target:][:vec]` with the four corners to `sums` (taps, tile, 4)."""
    signature = types.void(vec, sums, column, target, table, channel, step, line, base, weights, tile, tap, i)

    def codegen(context, builder, signature, args):
        v, four = (Vectors(context, builder, sums.dtype, count) for count in (vec.literal_value, 4))
        sample = _Sample(v, signature.args[4:], args[4:])
        value = v.load(column.dtype, v.data(signature.args[2], args[2], args[3]))
        terms = v.sums([v.mul(value, corner) for corner in sample.values()])
        start = builder.mul(builder.add(sample.start, sample.i), ir.Constant(sample.i.type, 4))
        pointer = four.data(signature.args[1], args[1], start)
        four.store(four.add(four.load(sums.dtype, pointer), terms), sums.dtype, pointer)
        return context.get_dummy_value()

    return signature, codegen
