"""Operations on vectors for the numba kernels, written in LLVM's language.

LLVM finds no vectors in loops as short as these over arrays that could alias, and numba has no bfloat16: here arrays of
uint16 hold bfloat16, and its numbers are float32 outside of memory. `lanes` and the like are literals. Importing this
module imports numba (about a second), so only kernels do.
"""

import functools
import itertools

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_HALF = types.uint16


def like(value, number):
    """A constant of the type of `value`."""
    return ir.Constant(value.type, number)


class Vectors:
    """Emits operations on vectors of `count` elements of numba's floating type `dtype`, float32 for bfloat16."""

    def __init__(self, context, builder, dtype, count):
        real = types.float32 if dtype == _HALF else dtype
        self.context, self.builder, self.count, self.bits = context, builder, count, real.bitwidth
        self.element = context.get_data_type(real)
        self.vector, self.whole = ir.VectorType(self.element, count), ir.VectorType(_I32, count)
        self.halves = ir.VectorType(_I16, count)

    def data(self, kind, array, start):
        """Pointer to element `start` of an array of numba's type `kind`."""
        return self.builder.gep(self.context.make_array(kind)(self.context, self.builder, array).data, [start])

    def load(self, dtype, pointer):
        if dtype != _HALF:
            return self.builder.load(self._cast(pointer, self.vector), align=dtype.bitwidth // 8)
        # bfloat16 is the upper half of a float32.
        wide = self.builder.zext(self.load_halves(pointer), self.whole)
        return self.builder.bitcast(self.builder.shl(wide, self.constant(16, self.whole)), self.vector)

    def load_halves(self, pointer):
        """bfloat16 as it is, for a store to bfloat16."""
        return self.builder.load(self._cast(pointer, self.halves), align=2)

    def store(self, value, dtype, pointer):
        if dtype == _HALF and value.type == self.vector:
            value = self._narrow(value)
        # Four bytes suit float32, int32 and float64, and are always true.
        self.builder.store(value, self._cast(pointer, value.type), align=2 if dtype == _HALF else 4)

    def _cast(self, pointer, vector):
        return self.builder.bitcast(pointer, vector.as_pointer())

    def _narrow(self, value):
        """float32 -> bfloat16, rounded to nearest even; by the instruction for it where it fits, see `has_bfloat16`."""
        b = self.builder
        if self.count % 16 == 0:
            part, name = Vectors(self.context, b, types.float32, 16), "llvm.x86.avx512bf16.cvtneps2bf16.512"
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

    def call(self, name, result, args):
        """Call LLVM's own function `name`."""
        module = self.builder.module
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.builder.call(module.globals.get(name) or ir.Function(module, kind, name), args)

    def constant(self, number, vector=None):
        return ir.Constant(vector or self.vector, [number] * self.count)

    def splat(self, scalar):
        """A vector that repeats a float, or an integer narrowed to 32 bits."""
        if isinstance(scalar.type, ir.IntType) and scalar.type.width > 32:
            scalar = self.builder.trunc(scalar, _I32)
        undefined = ir.Constant(ir.VectorType(scalar.type, self.count), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
        return self.shuffle(first, undefined, [0] * self.count)

    def real(self, whole):
        """A vector of floats that repeats an integer."""
        return self.builder.sitofp(self.splat(whole), self.vector)

    def shuffle(self, a, b, lanes):
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))

    def add(self, a, b):
        return self.builder.fadd(a, b, flags=("contract",))

    def sub(self, a, b):
        return self.builder.fsub(a, b, flags=("contract",))

    def mul(self, a, b):
        return self.builder.fmul(a, b, flags=("contract",))

    def floor(self, a):
        return self.call(f"llvm.floor.v{self.count}f{self.bits}", self.vector, [a])

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


@functools.cache
def _features():
    """Features of the processor that numba compiles for, such as +avx2."""
    return cpu_target.target_context.codegen().magic_tuple()[2].split(",")


def has_bfloat16():
    """Whether `multiply` takes bfloat16, and numbers can be stored as such sixteen at a time."""
    return "+avx512bf16" in _features()


def block_shape(size):
    """Rows and lanes of `multiply` for sums of `size` bytes: two vectors for each row, in most of the registers."""
    if "+avx512f" in _features():
        return 12, 64 // size
    if "+avx" in _features():
        return 6, 32 // size
    return 12 if "+neon" in _features() else 6, 16 // size


@intrinsic(prefer_literal=True)
def take(typingctx, counter):
    """The number in `counter`, an array of one int64 that threads share; the next one to ask gets one more."""

    def codegen(context, builder, signature, args):
        pointer = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(counter), codegen


@intrinsic(prefer_literal=True)
def move(typingctx, lanes, source, source_at, target, target_at):
    """`target[target_at:][:lanes] = source[source_at:][:lanes]`, from one precision to another if need be."""

    def codegen(context, builder, signature, args):
        (_, source_type, _, target_type, _), (_, source, source_at, target, target_at) = signature.args, args
        v = Vectors(context, builder, source_type.dtype, lanes.literal_value)
        start, end = v.data(source_type, source, source_at), v.data(target_type, target, target_at)
        as_it_is = source_type.dtype == target_type.dtype == _HALF
        v.store(v.load_halves(start) if as_it_is else v.load(source_type.dtype, start), target_type.dtype, end)
        return context.get_dummy_value()

    return types.void(lanes, source, source_at, target, target_at), codegen


@intrinsic(prefer_literal=True)
def transpose(typingctx, lanes, source, source_at, source_step, target, target_at, target_step):
    """Transpose a square of `lanes` times `lanes`, as `move`; rows are `source_step` and `target_step` apart."""
    signature = types.void(lanes, source, source_at, source_step, target, target_at, target_step)

    def codegen(context, builder, signature, args):
        count, (_, source_type, *_, target_type, _, _) = lanes.literal_value, signature.args
        _, source, source_at, source_step, target, target_at, target_step = args
        v = Vectors(context, builder, source_type.dtype, count)
        as_it_is = source_type.dtype == target_type.dtype == _HALF
        rows = []
        for n in range(count):
            start = builder.add(source_at, builder.mul(source_step, like(source_step, n)))
            start = v.data(source_type, source, start)
            rows.append(v.load_halves(start) if as_it_is else v.load(source_type.dtype, start))
        width = 1
        while width < count:
            # In every square of twice the width, the upper right and the lower left quarter change places.
            upper = [count + n - width if n & width else n for n in range(count)]
            lower = [count + n if n & width else n + width for n in range(count)]
            for n in (n for n in range(count) if not n & width):
                pair = rows[n], rows[n + width]
                rows[n], rows[n + width] = v.shuffle(*pair, upper), v.shuffle(*pair, lower)
            width *= 2
        for n, row in enumerate(rows):
            end = builder.add(target_at, builder.mul(target_step, like(target_step, n)))
            v.store(row, target_type.dtype, v.data(target_type, target, end))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def pair_up(typingctx, lanes, source, first, second, target, target_at):
    """Write numbers of bfloat16 from `first` and from `second` of `source` by turns, `lanes` of each."""

    def codegen(context, builder, signature, args):
        (_, source_type, *_, target_type, _), (_, source, first, second, target, target_at) = signature.args, args
        v = Vectors(context, builder, source_type.dtype, lanes.literal_value)
        rows = [v.load_halves(v.data(source_type, source, start)) for start in (first, second)]
        turns = [n // 2 + n % 2 * v.count for n in range(2 * v.count)]
        v.store(v.shuffle(*rows, turns), target_type.dtype, v.data(target_type, target, target_at))
        return context.get_dummy_value()

    return types.void(lanes, source, first, second, target, target_at), codegen


@intrinsic(prefer_literal=True)
def multiply(typingctx, vectors, c, c_at, c_step, a, a_at, a_row, a_step, b, b_at, b_step, count):
    """Add a product of matrices to a block of `rows` times `vectors * lanes`, which is kept in registers meanwhile.

    c[c_at + n * c_step + m] += sum over k < count of a[a_at + n * a_row + k * a_step] * b[b_at + k * b_step + m]

    `block_shape` tells rows and lanes. With bfloat16 `a` and `b`, each k stands for two numbers of a row of `a`, which
    lie side by side, and two rows of `b`, whose elements m lie side by side.
    """
    signature = types.void(vectors, c, c_at, c_step, a, a_at, a_row, a_step, b, b_at, b_step, count)

    def codegen(context, builder, signature, args):
        half, size, vectors = a.dtype == _HALF, c.dtype.bitwidth // 8, signature.args[0].literal_value
        rows, lanes = block_shape(size)
        v = Vectors(context, builder, c.dtype, lanes)
        c_step, a_row, a_step, b_step, count = (args[n] for n in (3, 6, 7, 10, 11))
        c_start, a_start, b_start = (v.data(signature.args[n], args[n], args[n + 1]) for n in (1, 4, 8))
        c_rows = [builder.gep(c_start, [builder.mul(c_step, like(c_step, n))]) for n in range(rows)]
        a_rows = [builder.gep(a_start, [builder.mul(a_row, like(a_row, n))]) for n in range(rows)]
        block = list(itertools.product(range(rows), range(vectors)))
        places = {(n, m): builder.gep(c_rows[n], [like(c_step, m * lanes)]) for n, m in block}
        # LLVM turns these variables into registers.
        sums = {at: cgutils.alloca_once_value(builder, v.load(c.dtype, places[at])) for at in block}
        # Two bfloat16 travel as one int32.
        number, vector, align, pair = (_I32, v.whole, 2, 2) if half else (v.element, v.vector, size, 1)
        with cgutils.for_range(builder, count) as loop:
            b_row, a_shift = builder.gep(b_start, [builder.mul(loop.index, b_step)]), builder.mul(loop.index, a_step)
            starts = (builder.gep(b_row, [like(b_step, m * lanes * pair)]) for m in range(vectors))
            right = [builder.load(builder.bitcast(start, vector.as_pointer()), align=align) for start in starts]
            for n in range(rows):
                start = builder.bitcast(builder.gep(a_rows[n], [a_shift]), number.as_pointer())
                left = v.splat(builder.load(start, align=align))
                for m in range(vectors):
                    total = builder.load(sums[n, m])
                    if half:
                        total = v.call("llvm.x86.avx512bf16.dpbf16ps.512", v.vector, [total, left, right[m]])
                    else:
                        total = v.add(total, v.mul(left, right[m]))
                    builder.store(total, sums[n, m])
        for at in block:
            v.store(builder.load(sums[at]), c.dtype, places[at])
        return context.get_dummy_value()

    return signature, codegen
