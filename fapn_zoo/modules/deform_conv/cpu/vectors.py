"""Operations on vectors for the numba kernels, written in LLVM's language.

LLVM finds no vectors in loops as short as these over arrays that could alias. numba has no bfloat16: here arrays of
uint16 hold it, and its numbers are float32 outside of memory. Importing this module imports numba, which takes about a
second, so only kernels do.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder, Value
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.core.typing import Signature
from numba.extending import intrinsic

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_HALF = types.uint16


class Array:
    """A flat array that an intrinsic is given; `dtype` is numba's type of its elements."""

    def __init__(self, context: Any, builder: IRBuilder, kind: types.Array, value: Value) -> None:
        self.dtype = kind.dtype
        self._builder, self._data = builder, context.make_array(kind)(context, builder, value).data

    def at(self, start: Value) -> Value:
        """Pointer to element `start`."""
        return self._builder.gep(self._data, [start])


class Record:
    """A named tuple that an intrinsic is given; its fields are attributes."""

    def __init__(self, context: Any, builder: IRBuilder, kind: types.BaseNamedTuple, value: Value) -> None:
        self._context, self._builder, self._kind, self._value = context, builder, kind, value

    def __getattr__(self, name: str) -> Any:
        n = self._kind.fields.index(name)
        value = self._builder.extract_value(self._value, n)
        return _argument(self._context, self._builder, self._kind[n], value)


def _argument(context: Any, builder: IRBuilder, kind: types.Type, value: Value) -> Any:
    if isinstance(kind, types.Array):
        return Array(context, builder, kind, value)
    if isinstance(kind, types.BaseNamedTuple):
        return Record(context, builder, kind, value)
    return cgutils.unpack_tuple(builder, value) if isinstance(kind, types.BaseTuple) else value


def emitted(write: Callable[..., None]) -> Callable[..., None]:
    """Make an intrinsic of a function that writes code; kernels call it without the builder, its first argument.

    Kernels pass a literal first, which is an int for `write`. An array comes as `Array`, a named tuple as `Record`,
    another tuple of numbers as a list, a number as LLVM's value.
    """

    @intrinsic(prefer_literal=True)
    @functools.wraps(write)
    def define(_: Any, literal: types.Type, *kinds: types.Type) -> tuple[Signature, Callable]:
        def codegen(context: Any, builder: IRBuilder, signature: Signature, args: Sequence[Value]) -> Value:
            pairs = zip(kinds, args[1:], strict=True)
            write(builder, literal.literal_value, *(_argument(context, builder, *pair) for pair in pairs))
            return context.get_dummy_value()

        return types.void(literal, *kinds), codegen

    return define


def like(value: Value, number: int) -> ir.Constant:
    """A constant of the type of `value`."""
    return ir.Constant(value.type, number)


def element(matrix: Record, builder: IRBuilder, n: Value, m: Value) -> Value:
    """Where element (n, m) of a `Matrix` is in its array."""
    rows, columns = (builder.mul(number, step) for number, step in zip((n, m), matrix.steps, strict=True))
    return builder.add(matrix.at, builder.add(rows, columns))


class Vectors:
    """Emits operations on vectors of `count` elements of numba's floating type `dtype`, float32 for bfloat16."""

    def __init__(self, builder: IRBuilder, dtype: types.Type, count: int) -> None:
        self.builder, self.count, self.bits = builder, count, 64 if dtype == types.float64 else 32
        self.element = ir.DoubleType() if self.bits == 64 else ir.FloatType()
        self.vector, self.whole = ir.VectorType(self.element, count), ir.VectorType(_I32, count)
        self.halves = ir.VectorType(_I16, count)

    def load(self, dtype: types.Type, pointer: Value) -> Value:
        if dtype != _HALF:
            return self.builder.load(self._cast(pointer, self.vector), align=dtype.bitwidth // 8)
        # bfloat16 is the upper half of a float32.
        wide = self.builder.zext(self.load_halves(pointer), self.whole)
        return self.builder.bitcast(self.builder.shl(wide, self.constant(16, self.whole)), self.vector)

    def load_halves(self, pointer: Value) -> Value:
        """bfloat16 as it is, for a store to bfloat16."""
        return self.builder.load(self._cast(pointer, self.halves), align=2)

    def store(self, value: Value, dtype: types.Type, pointer: Value) -> None:
        if dtype == _HALF and value.type == self.vector:
            value = self._narrow(value)
        # Four bytes suit float32, int32 and float64, and are always true.
        self.builder.store(value, self._cast(pointer, value.type), align=2 if dtype == _HALF else 4)

    def _cast(self, pointer: Value, vector: ir.Type) -> Value:
        return self.builder.bitcast(pointer, vector.as_pointer())

    def _narrow(self, value: Value) -> Value:
        """float32 -> bfloat16, rounded to nearest even; by the instruction for it where it fits, see `has_bfloat16`."""
        b = self.builder
        if self.count % 16 == 0:
            part, name = Vectors(b, types.float32, 16), "llvm.x86.avx512bf16.cvtneps2bf16.512"
            runs = (range(n, n + 16) for n in range(0, self.count, 16))
            parts = [part.call(name, part.halves, [self.shuffle(value, value, run)]) for run in runs]
            while len(parts) > 1:
                lanes = range(2 * parts[0].type.count)
                parts = [self.shuffle(*pair, lanes) for pair in zip(parts[::2], parts[1::2], strict=True)]
            return parts[0]
        bits, shift = b.bitcast(value, self.whole), self.constant(16, self.whole)
        odd = b.and_(b.lshr(bits, shift), self.constant(1, self.whole))
        rounded = b.lshr(b.add(bits, b.add(odd, self.constant(0x7FFF, self.whole))), shift)
        nan = b.fcmp_unordered("uno", value, value)
        return b.trunc(b.select(nan, self.constant(0x7FC0, self.whole), rounded), self.halves)

    def call(self, name: str, result: ir.Type, args: Sequence[Value]) -> Value:
        """Call LLVM's own function `name`."""
        module = self.builder.module
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.builder.call(module.globals.get(name) or ir.Function(module, kind, name), args)

    def constant(self, number: float, vector: ir.VectorType | None = None) -> ir.Constant:
        return ir.Constant(vector or self.vector, [number] * self.count)

    def splat(self, scalar: Value) -> Value:
        """A vector that repeats a float, or an integer narrowed to 32 bits."""
        if isinstance(scalar.type, ir.IntType) and scalar.type.width > 32:
            scalar = self.builder.trunc(scalar, _I32)
        undefined = ir.Constant(ir.VectorType(scalar.type, self.count), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
        return self.shuffle(first, undefined, [0] * self.count)

    def real(self, whole: Value) -> Value:
        """A vector of floats that repeats an integer."""
        return self.builder.sitofp(self.splat(whole), self.vector)

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))

    def add(self, a: Value, b: Value) -> Value:
        return self.builder.fadd(a, b, flags=("contract",))

    def sub(self, a: Value, b: Value) -> Value:
        return self.builder.fsub(a, b, flags=("contract",))

    def mul(self, a: Value, b: Value) -> Value:
        return self.builder.fmul(a, b, flags=("contract",))

    def floor(self, a: Value) -> Value:
        return self.call(f"llvm.floor.v{self.count}f{self.bits}", self.vector, [a])

    def sums(self, vectors: Sequence[Value]) -> Value:
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


@functools.cache
def _features() -> list[str]:
    """Features of the processor that numba compiles for, such as +avx2."""
    return cpu_target.target_context.codegen().magic_tuple()[2].split(",")


def has_bfloat16() -> bool:
    """Whether `multiply` takes bfloat16, and numbers can be stored as such sixteen at a time."""
    return "+avx512bf16" in _features()


def block_shape(size: int) -> tuple[int, int]:
    """Rows and lanes of `multiply` for sums of `size` bytes: two vectors for each row, in most of the registers."""
    if "+avx512f" in _features():
        return 12, 64 // size
    if "+avx" in _features():
        return 6, 32 // size
    return 12 if "+neon" in _features() else 6, 16 // size


@intrinsic(prefer_literal=True)
def take(_: Any, counter: types.Type) -> tuple[Signature, Callable]:
    """The number in `counter`, an array of one int64 that threads share; the next one to ask gets one more."""

    def codegen(context: Any, builder: IRBuilder, signature: Signature, args: Sequence[Value]) -> Value:
        pointer = Array(context, builder, counter, args[0]).at(ir.Constant(_I64, 0))
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(counter), codegen


@emitted
def move(builder: IRBuilder, lanes: int, source: Array, source_at: Value, target: Array, target_at: Value) -> None:
    """`target[target_at:][:lanes] = source[source_at:][:lanes]`, from one precision to another if need be."""
    v = Vectors(builder, source.dtype, lanes)
    start, end = source.at(source_at), target.at(target_at)
    as_it_is = source.dtype == target.dtype == _HALF
    v.store(v.load_halves(start) if as_it_is else v.load(source.dtype, start), target.dtype, end)


@emitted
def transpose(builder: IRBuilder, lanes: int, source: Record, target: Record, n: Value, m: Value) -> None:
    """Copy a square of `lanes` times `lanes` from (n, m) of a `Matrix` of rows to one of columns, as `move` does."""
    array, end = source.array, target.array
    v = Vectors(builder, array.dtype, lanes)
    as_it_is = array.dtype == end.dtype == _HALF
    rows = []
    for k in range(lanes):
        start = array.at(element(source, builder, builder.add(n, like(n, k)), m))
        rows.append(v.load_halves(start) if as_it_is else v.load(array.dtype, start))
    width = 1
    while width < lanes:
        # In every square of twice the width, the upper right and the lower left quarter change places.
        upper = [lanes + k - width if k & width else k for k in range(lanes)]
        lower = [lanes + k if k & width else k + width for k in range(lanes)]
        for k in (k for k in range(lanes) if not k & width):
            pair = rows[k], rows[k + width]
            rows[k], rows[k + width] = v.shuffle(*pair, upper), v.shuffle(*pair, lower)
        width *= 2
    for k, row in enumerate(rows):
        v.store(row, end.dtype, end.at(element(target, builder, n, builder.add(m, like(m, k)))))


@emitted
def pair_up(b: IRBuilder, lanes: int, source: Array, first: Value, second: Value, target: Array, end: Value) -> None:
    """Write numbers of bfloat16 from `first` and from `second` of `source` by turns, `lanes` of each."""
    v = Vectors(b, source.dtype, lanes)
    rows = [v.load_halves(source.at(start)) for start in (first, second)]
    turns = [n // 2 + n % 2 * v.count for n in range(2 * v.count)]
    v.store(v.shuffle(*rows, turns), target.dtype, target.at(end))


@emitted
def multiply(
    builder: IRBuilder, vectors: int, c: Record, a: Record, b: Record, n: Value, m: Value, count: Value
) -> None:
    """Add a product of matrices to a block of `c`, which is kept in registers meanwhile.

    c[n + i, m + j] += sum over k < count of a[n + i, k] * b[k, m + j]

    The block has `rows` times `vectors * lanes` elements, see `block_shape`; `c` and `b` are matrices of rows. With
    bfloat16 `a` and `b`, an element is two numbers that lie side by side: two of a row of `a`, or of a column of `b`.
    """
    kind, half, zero = c.array.dtype, a.array.dtype == _HALF, like(n, 0)
    size = kind.bitwidth // 8
    rows, lanes = block_shape(size)
    v = Vectors(builder, kind, lanes)
    (c_step, _), (a_row, a_step), (b_step, _) = c.steps, a.steps, b.steps
    places = ((c, n, m), (a, n, zero), (b, zero, m))
    c_start, a_start, b_start = (part.array.at(element(part, builder, *place)) for part, *place in places)
    c_rows = [builder.gep(c_start, [builder.mul(c_step, like(c_step, i))]) for i in range(rows)]
    a_rows = [builder.gep(a_start, [builder.mul(a_row, like(a_row, i))]) for i in range(rows)]
    block = list(itertools.product(range(rows), range(vectors)))
    places = {(i, j): builder.gep(c_rows[i], [like(c_step, j * lanes)]) for i, j in block}
    # LLVM turns these variables into registers.
    sums = {at: cgutils.alloca_once_value(builder, v.load(kind, places[at])) for at in block}
    # Two bfloat16 travel as one int32.
    number, vector, align, pair = (_I32, v.whole, 2, 2) if half else (v.element, v.vector, size, 1)
    with cgutils.for_range(builder, count) as loop:
        b_row, a_shift = builder.gep(b_start, [builder.mul(loop.index, b_step)]), builder.mul(loop.index, a_step)
        starts = (builder.gep(b_row, [like(b_step, j * lanes * pair)]) for j in range(vectors))
        right = [builder.load(builder.bitcast(start, vector.as_pointer()), align=align) for start in starts]
        for i in range(rows):
            start = builder.bitcast(builder.gep(a_rows[i], [a_shift]), number.as_pointer())
            left = v.splat(builder.load(start, align=align))
            for j in range(vectors):
                total = builder.load(sums[i, j])
                if half:
                    total = v.call("llvm.x86.avx512bf16.dpbf16ps.512", v.vector, [total, left, right[j]])
                else:
                    total = v.add(total, v.mul(left, right[j]))
                builder.store(total, sums[i, j])
    for at in block:
        v.store(builder.load(sums[at]), kind, places[at])
