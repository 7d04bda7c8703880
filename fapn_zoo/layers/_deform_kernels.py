"""Numba kernels of deformable convolution: sampling into column tiles, and its adjoint.

Importing this module imports numba (about a second), so only `_deform_numba` does, at first use.

Arrays are flat views in rows of `vec` channels, where `vec` is a compile-time constant: a row is read and written as one
SIMD vector. Kernels are serial and release the GIL; the caller runs them from its own threads.
"""

import functools
import math

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

# No 'nnan' and 'ninf': NaN offsets must be recognised by comparison, and infinities must reach the result.
_JIT = {"nogil": True, "cache": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}


class _Rows:
    """Emits vector loads and stores of whole rows: LLVM does not find them in short loops over arrays that may alias."""

    def __init__(self, context, builder, dtype, vec):
        self.context, self.builder, self.vec = context, builder, vec
        self.align = dtype.bitwidth // 8
        self.element = context.get_data_type(dtype)
        self.vector = ir.VectorType(self.element, vec)

    def _pointer(self, array_type, array, row):
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        index = self.builder.mul(row, ir.Constant(row.type, self.vec))
        return self.builder.bitcast(self.builder.gep(data, [index]), self.vector.as_pointer())

    def load(self, array_type, array, row):
        return self.builder.load(self._pointer(array_type, array, row), align=self.align)

    def store(self, value, array_type, array, row):
        self.builder.store(value, self._pointer(array_type, array, row), align=self.align)

    def splat(self, scalar):
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), self.vec), [0] * self.vec)
        return self.builder.shuffle_vector(first, undefined, lanes)

    def multiply_add(self, a, b, c):
        product = self.builder.fmul(a, b, flags=("contract",))
        return self.builder.fadd(product, c, flags=("contract",))

    def dot(self, a, b):
        name = f"llvm.vector.reduce.fadd.v{self.vec}f{self.align * 8}"
        kind = ir.FunctionType(self.element, [self.element, self.vector])
        reduce = self.builder.module.globals.get(name) or ir.Function(self.builder.module, kind, name)
        product = self.builder.fmul(a, b)
        # 'reassoc' lets the sum be a tree instead of a chain of `vec` dependent additions.
        return self.builder.call(reduce, [ir.Constant(self.element, -0.0), product], fastmath=("reassoc", "nsz"))


@functools.cache
def _make_row_intrinsics(vec):
    """Return (blend, spread, dots), the three row operations, for rows of `vec` channels."""

    @intrinsic
    def blend(typingctx, column, target, image, r00, r01, r10, r11, w00, w01, w10, w11):
        """`column[target] = sum of w * image[r]` over the four corners."""
        signature = types.void(column, target, image, r00, r01, r10, r11, w00, w01, w10, w11)

        def codegen(context, builder, signature, args):
            rows = _Rows(context, builder, image.dtype, vec)
            total = builder.fmul(rows.load(image, args[2], args[3]), rows.splat(args[7]))
            for row, weight in zip(args[4:7], args[8:11]):
                total = rows.multiply_add(rows.load(image, args[2], row), rows.splat(weight), total)
            rows.store(total, column, args[0], args[1])
            return context.get_dummy_value()

        return signature, codegen

    @intrinsic
    def spread(typingctx, column, target, image, r00, r01, r10, r11, w00, w01, w10, w11):
        """`image[r] += w * column[target]`, corner after corner, since clamped corners may be the same row."""
        signature = types.void(column, target, image, r00, r01, r10, r11, w00, w01, w10, w11)

        def codegen(context, builder, signature, args):
            rows = _Rows(context, builder, image.dtype, vec)
            value = rows.load(column, args[0], args[1])
            for row, weight in zip(args[3:7], args[7:11]):
                rows.store(
                    rows.multiply_add(value, rows.splat(weight), rows.load(image, args[2], row)), image, args[2], row
                )
            return context.get_dummy_value()

        return signature, codegen

    @intrinsic
    def dots(typingctx, column, target, image, r00, r01, r10, r11):
        """Inner products of `column[target]` with each corner of the image."""
        signature = types.UniTuple(image.dtype, 4)(column, target, image, r00, r01, r10, r11)

        def codegen(context, builder, signature, args):
            rows = _Rows(context, builder, image.dtype, vec)
            value = rows.load(column, args[0], args[1])
            sums = [rows.dot(value, rows.load(image, args[2], row)) for row in args[3:7]]
            return context.make_tuple(builder, signature.return_type, sums)

        return signature, codegen

    return blend, spread, dots


def _make_corners(real):
    """Return `corners(y, x, height, width)`: the clamped corner coordinates, their weights and whether they exist."""
    zero, one = real(0), real(1)

    @numba.njit(inline="always", **{**_JIT, "cache": False})
    def corners(y, x, height, width):
        y0 = math.floor(y)
        x0 = math.floor(x)
        ly = y - real(y0)
        lx = x - real(x0)
        hy = one - ly
        hx = one - lx
        y1, x1 = y0 + 1, x0 + 1
        has_y0 = has_x0 = has_y1 = has_x1 = one
        # A corner outside counts as zero: its weight becomes zero and it moves to the nearest pixel, for a safe read.
        if y0 < 0:
            hy, has_y0, y0 = zero, zero, 0
        if x0 < 0:
            hx, has_x0, x0 = zero, zero, 0
        if y1 >= height:
            ly, has_y1, y1 = zero, zero, height - 1
        if x1 >= width:
            lx, has_x1, x1 = zero, zero, width - 1
        return y0, x0, y1, x1, hy, hx, ly, lx, has_y0, has_x0, has_y1, has_x1

    return corners


@functools.cache
def make_sample(dtype_name, vec):
    """Kernel that fills a column tile for output pixels `start` to `stop` of one image.

    Args of the kernel: `image` (H*W*C/vec, vec), the NHWC image; `offset` (G*taps*2, Ho*Wo); `mask` (G*taps, Ho*Wo) or
    (0, 0) when there is none; `column` (groups*tile*taps*C/groups/vec, vec), ordered (weight group, pixel, tap,
    channel); `geometry`, int64: see `_deform_numba.Geometry.pack`.
    """
    real = np.float32 if dtype_name == "float32" else np.float64
    blend, _, _ = _make_row_intrinsics(vec)
    corners = _make_corners(real)

    @numba.njit(**_JIT)
    def sample(image, offset, mask, column, start, stop, geometry):
        height, width, out_width, kernel_w, taps = geometry[0], geometry[1], geometry[2], geometry[3], geometry[4]
        stride_h, stride_w, pad_h, pad_w = geometry[5], geometry[6], geometry[7], geometry[8]
        dilation_h, dilation_w, offset_groups = geometry[9], geometry[10], geometry[11]
        # In rows of `vec` channels: an offset group, a weight group, a pixel.
        offset_rows, weight_rows, pixel_rows = geometry[12], geometry[13], geometry[14]
        tile = stop - start
        has_mask = mask.shape[0] > 0
        zero, one = real(0), real(1)
        for pixel in range(start, stop):
            base_y = (pixel // out_width) * stride_h - pad_h
            base_x = (pixel % out_width) * stride_w - pad_w
            for index in range(offset_groups * taps):
                group = index // taps
                tap = index - group * taps
                y = real(base_y + (tap // kernel_w) * dilation_h) + offset[2 * index, pixel]
                x = real(base_x + (tap % kernel_w) * dilation_w) + offset[2 * index + 1, pixel]
                scale = mask[index, pixel] if has_mask else one
                if y > -one and x > -one and y < real(height) and x < real(width):
                    y0, x0, y1, x1, hy, hx, ly, lx, _, _, _, _ = corners(y, x, height, width)
                    hy, ly = hy * scale, ly * scale
                    for row in range(group * offset_rows, (group + 1) * offset_rows):
                        owner = row // weight_rows
                        target = ((owner * tile + pixel - start) * taps + tap) * weight_rows + row - owner * weight_rows
                        blend(
                            column, target, image,
                            (y0 * width + x0) * pixel_rows + row, (y0 * width + x1) * pixel_rows + row,
                            (y1 * width + x0) * pixel_rows + row, (y1 * width + x1) * pixel_rows + row,
                            hy * hx, hy * lx, ly * hx, ly * lx,
                        )  # fmt: skip
                else:
                    # Zero far outside; but a NaN position or weight shows in the result instead of hiding.
                    fill = real(np.nan) if math.isnan(y + x + scale) else zero
                    for row in range(group * offset_rows, (group + 1) * offset_rows):
                        owner = row // weight_rows
                        target = ((owner * tile + pixel - start) * taps + tap) * weight_rows + row - owner * weight_rows
                        for v in range(vec):
                            column[target, v] = fill

    return sample


@functools.cache
def make_adjoint(dtype_name, vec):
    """Kernel of the backward pass for output pixels `start` to `stop` of one image.

    Args of the kernel: as `make_sample`, where `column` receives the recomputed column (for the weight's gradient), and:
    `grad_column`, its gradient, in the same order; `grad_image`, added to; `grad_offset` and `grad_mask`, overwritten
    in the tile's pixels; `needs` (4,) int64: whether image, offset, mask and column are wanted (the others are not
    touched and may be empty).
    """
    real = np.float32 if dtype_name == "float32" else np.float64
    blend, spread, dots = _make_row_intrinsics(vec)
    corners = _make_corners(real)

    @numba.njit(**_JIT)
    def adjoint(
        image, offset, mask, column, grad_column, grad_image, grad_offset, grad_mask, needs, start, stop, geometry
    ):
        height, width, out_width, kernel_w, taps = geometry[0], geometry[1], geometry[2], geometry[3], geometry[4]
        stride_h, stride_w, pad_h, pad_w = geometry[5], geometry[6], geometry[7], geometry[8]
        dilation_h, dilation_w, offset_groups = geometry[9], geometry[10], geometry[11]
        offset_rows, weight_rows, pixel_rows = geometry[12], geometry[13], geometry[14]
        tile = stop - start
        has_mask = mask.shape[0] > 0
        need_image, need_offset, need_mask, need_column = needs[0] > 0, needs[1] > 0, needs[2] > 0, needs[3] > 0
        zero, one = real(0), real(1)
        for pixel in range(start, stop):
            base_y = (pixel // out_width) * stride_h - pad_h
            base_x = (pixel % out_width) * stride_w - pad_w
            for index in range(offset_groups * taps):
                group = index // taps
                tap = index - group * taps
                y = real(base_y + (tap // kernel_w) * dilation_h) + offset[2 * index, pixel]
                x = real(base_x + (tap % kernel_w) * dilation_w) + offset[2 * index + 1, pixel]
                scale = mask[index, pixel] if has_mask else one
                grad_y = grad_x = grad_scale = zero
                # Unlike the value, the slope exists at exactly -1, where moving inwards meets the first pixel.
                if y >= -one and x >= -one and y < real(height) and x < real(width):
                    y0, x0, y1, x1, hy, hx, ly, lx, has_y0, has_x0, has_y1, has_x1 = corners(y, x, height, width)
                    w00, w01, w10, w11 = hy * hx, hy * lx, ly * hx, ly * lx
                    s00 = s01 = s10 = s11 = zero
                    for row in range(group * offset_rows, (group + 1) * offset_rows):
                        owner = row // weight_rows
                        target = ((owner * tile + pixel - start) * taps + tap) * weight_rows + row - owner * weight_rows
                        r00 = (y0 * width + x0) * pixel_rows + row
                        r01 = (y0 * width + x1) * pixel_rows + row
                        r10 = (y1 * width + x0) * pixel_rows + row
                        r11 = (y1 * width + x1) * pixel_rows + row
                        if need_column:
                            blend(
                                column, target, image, r00, r01, r10, r11,
                                w00 * scale, w01 * scale, w10 * scale, w11 * scale,
                            )  # fmt: skip
                        if need_offset or need_mask:
                            d00, d01, d10, d11 = dots(grad_column, target, image, r00, r01, r10, r11)
                            s00, s01, s10, s11 = s00 + d00, s01 + d01, s10 + d10, s11 + d11
                        if need_image:
                            spread(
                                grad_column, target, grad_image, r00, r01, r10, r11,
                                w00 * scale, w01 * scale, w10 * scale, w11 * scale,
                            )  # fmt: skip
                    grad_scale = w00 * s00 + w01 * s01 + w10 * s10 + w11 * s11
                    grad_y = scale * (hx * (has_y1 * s10 - has_y0 * s00) + lx * (has_y1 * s11 - has_y0 * s01))
                    grad_x = scale * (hy * (has_x1 * s01 - has_x0 * s00) + ly * (has_x1 * s11 - has_x0 * s10))
                else:
                    fill = real(np.nan) if math.isnan(y + x + scale) else zero
                    grad_y = grad_x = grad_scale = fill
                    if need_column:
                        for row in range(group * offset_rows, (group + 1) * offset_rows):
                            owner = row // weight_rows
                            target = (owner * tile + pixel - start) * taps + tap
                            target = target * weight_rows + row - owner * weight_rows
                            for v in range(vec):
                                column[target, v] = fill
                if need_offset:
                    grad_offset[2 * index, pixel] = grad_y
                    grad_offset[2 * index + 1, pixel] = grad_x
                if need_mask:
                    grad_mask[index, pixel] = grad_scale

    return adjoint
