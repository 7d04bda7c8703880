"""The numba kernels' inner operations: where the samples of deformable convolution are, and their four corners.

Images are tables: pixels in rows of `channels` numbers, with a border of zeros around that samples outside read: one
row above, two below, one pixel to the left and to the right. A sample is given by `work.base`, the pixel of its upper
left corner in the table, and by `work.weights` of the corners. `work` is the `Work` of a thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from llvmlite.ir import IRBuilder, Value
from numba.core import types

from fapn_zoo.modules.deform_conv.cpu.vectors import Array, Record, Vectors, emitted, like


class _Axis:
    """Along one axis of `size` pixels, for positions `y`: the first neighbour, and the weights of both."""

    def __init__(self, v: Vectors, y: Value, size: Value) -> None:
        builder, size = v.builder, v.real(size)
        # At exactly -1 all weights are zero, but the slope towards the first pixel exists. A NaN is not inside.
        low, high = builder.fcmp_ordered(">=", y, v.constant(-1.0)), builder.fcmp_ordered("<", y, size)
        inside, floor = builder.and_(low, high), v.floor(y)
        # Outside, both neighbours are zeros of the border.
        first = builder.fptosi(builder.select(inside, floor, size), v.whole)
        self.at = builder.add(first, v.constant(1, v.whole))
        self.weight_1 = builder.select(inside, v.sub(y, floor), v.constant(0.0))
        self.weight_0 = v.sub(v.constant(1.0), self.weight_1)


class _Run:
    """Neighbouring output pixels from `i` of a tile: their samples and factors for one tap."""

    def __init__(self, v: Vectors, work: Record, tap: Value, i: Value, sy: Value, sx: Value) -> None:
        builder, planes, plan, geometry = v.builder, work.planes, work.plan, work.geometry
        twice, last = builder.mul(tap, like(tap, 2)), builder.mul(plan.taps, like(tap, 2))
        rows = twice, builder.add(twice, like(tap, 1)), builder.add(last, tap)
        # Where the planes of vertical offset, horizontal offset and factor have these pixels.
        self.starts = [builder.add(builder.mul(row, plan.tile), i) for row in rows]

        # By the order of loads LLVM chooses which products it fuses with sums: another order rounds differently.
        def load(array: Array, start: Value) -> Value:
            return v.load(array.dtype, array.at(start))

        def position(origin: Array, shift: Value, start: Value) -> Value:
            # A whole number plus the offset, rounded once: exactly where the definition puts the sample.
            return v.add(v.add(load(origin, i), v.real(shift)), load(planes, start))

        y, x = position(work.origin_y, sy, self.starts[0]), position(work.origin_x, sx, self.starts[1])
        self.vertical, self.horizontal = _Axis(v, y, geometry.height), _Axis(v, x, geometry.width)
        # A NaN position shows in the result instead of hiding as a zero.
        nan, factor = builder.fcmp_unordered("uno", y, x), load(planes, self.starts[2])
        self.factor = builder.select(nan, v.constant(float("nan")), factor)


@emitted
def locate(builder: IRBuilder, lanes: int, work: Record, tap: Value, i: Value, sy: Value, sx: Value) -> None:
    """Find the samples of `lanes` pixels from `i` of a tile for `tap`: fill `work.base` and `work.weights`.

    sy, sx: how far `tap` is below and to the right of tap 0.
    """
    weights = work.weights
    v = Vectors(builder, weights.dtype, lanes)
    run = _Run(v, work, tap, i, sy, sx)
    y, x = run.vertical, run.horizontal
    line, tile = v.splat(builder.add(work.geometry.width, like(tap, 2))), work.plan.tile
    start = builder.mul(tap, tile)
    v.store(builder.add(builder.mul(y.at, line), x.at), types.int32, work.base.at(builder.add(start, i)))
    start = builder.add(builder.mul(start, like(start, 4)), i)
    for weight_y in (y.weight_0, y.weight_1):
        weight_y = v.mul(weight_y, run.factor)
        for weight_x in (x.weight_0, x.weight_1):
            v.store(v.mul(weight_y, weight_x), weights.dtype, weights.at(start))
            start = builder.add(start, tile)


@emitted
def slopes(builder: IRBuilder, lanes: int, work: Record, tap: Value, i: Value, sy: Value, sx: Value) -> None:
    """Fill `work.slopes` with the gradients of vertical offset, horizontal offset and factor of one tap.

    They follow from `work.dots`, the inner products of corners and gradients; for the arguments see `locate`.
    """
    result, sums = work.slopes, work.dots
    v, wide = (Vectors(builder, sums.dtype, lanes * n) for n in (1, 4))
    run = _Run(v, work, tap, i, sy, sx)
    start = builder.add(builder.mul(tap, work.plan.tile), i)
    every = wide.load(sums.dtype, sums.at(builder.mul(start, like(start, 4))))
    s00, s01, s10, s11 = (wide.shuffle(every, every, range(n, wide.count, 4)) for n in range(4))
    hy, ly, hx, lx = (getattr(a, n) for a in (run.vertical, run.horizontal) for n in ("weight_0", "weight_1"))
    top, bottom = v.add(v.mul(hx, s00), v.mul(lx, s01)), v.add(v.mul(hx, s10), v.mul(lx, s11))
    left, right = v.add(v.mul(hy, s00), v.mul(ly, s10)), v.add(v.mul(hy, s01), v.mul(ly, s11))
    down, across = v.mul(run.factor, v.sub(bottom, top)), v.mul(run.factor, v.sub(right, left))
    values = down, across, v.add(v.mul(hy, top), v.mul(ly, bottom))
    for value, start in zip(values, run.starts, strict=True):
        v.store(value, result.dtype, result.at(start))


class _Sample:
    """The corners and weights of pixel `i` of a tile for one tap, at the table's channels from `channel`."""

    def __init__(self, v: Vectors, work: Record, table: Array, channel: Value, tap: Value, i: Value) -> None:
        self.v, self.table, self.weights, self.tile, builder = v, table, work.weights, work.plan.tile, v.builder
        start, step = builder.mul(tap, self.tile), work.geometry.channels
        pixel = builder.load(work.base.at(builder.add(start, i)))
        first = builder.add(builder.mul(builder.sext(pixel, step.type), step), channel)
        below = builder.add(first, builder.mul(builder.add(work.geometry.width, like(tap, 2)), step))
        self.corners = [first, builder.add(first, step), below, builder.add(below, step)]
        self.first_weight = builder.add(builder.mul(start, like(start, 4)), i)
        self.first_dot = builder.mul(builder.add(start, i), like(start, 4))

    def each_weight(self) -> Iterator[Value]:
        builder = self.v.builder
        for n in range(4):
            at = builder.add(self.first_weight, builder.mul(self.tile, like(self.tile, n)))
            yield self.v.splat(builder.load(self.weights.at(at)))

    def pointers(self) -> list[Value]:
        return [self.table.at(corner) for corner in self.corners]

    def values(self) -> list[Value]:
        return [self.v.load(self.table.dtype, pointer) for pointer in self.pointers()]


# The next three take `vec` channels of the table from `channel`, at pixel `i` of the tile for `tap`, and have as many
# numbers of the column from `to`.


@emitted
def blend(b: IRBuilder, vec: int, work: Record, table: Array, channel: Value, tap: Value, i: Value, to: Value) -> None:
    """Write the sample of the table's channels to `work.column`."""
    v, column = Vectors(b, work.weights.dtype, vec), work.column
    sample = _Sample(v, work, table, channel, tap, i)
    total = None
    for value, weight in zip(sample.values(), sample.each_weight(), strict=True):
        total = v.mul(value, weight) if total is None else v.add(total, v.mul(value, weight))
    v.store(total, column.dtype, column.at(to))


@emitted
def spread(b: IRBuilder, vec: int, work: Record, table: Array, channel: Value, tap: Value, i: Value, to: Value) -> None:
    """The adjoint of `blend`: add numbers of `work.grad_column` times its weight to each corner of the table."""
    v, column = Vectors(b, work.weights.dtype, vec), work.grad_column
    sample = _Sample(v, work, table, channel, tap, i)
    value = v.load(column.dtype, column.at(to))
    # The four corners are different pixels: of the border, if need be.
    for pointer, before, weight in zip(sample.pointers(), sample.values(), sample.each_weight(), strict=True):
        v.store(v.add(before, v.mul(value, weight)), table.dtype, pointer)


@emitted
def dots(b: IRBuilder, vec: int, work: Record, table: Array, channel: Value, tap: Value, i: Value, to: Value) -> None:
    """Add the inner products of numbers of `work.grad_column` with the four corners to `work.dots`."""
    sums, column = work.dots, work.grad_column
    v, four = (Vectors(b, sums.dtype, count) for count in (vec, 4))
    sample = _Sample(v, work, table, channel, tap, i)
    value = v.load(column.dtype, column.at(to))
    terms = v.sums([v.mul(value, corner) for corner in sample.values()])
    pointer = sums.at(sample.first_dot)
    four.store(four.add(four.load(sums.dtype, pointer), terms), sums.dtype, pointer)
