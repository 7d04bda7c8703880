"""Triton kernels of deformable convolution; `tuning.py` chooses their block sizes, `launch.py` launches them.

Names: M output pixels of a program's tile, K = S * R channels of a step, where S neighbouring offset groups have R
channels each (S = 1: at most R channels of one group), N output channels.

A step is one tap and K channels. The kernels make it alike: the S positions of each pixel are computed in registers, in
float32 whatever the dtype, and the four corners are read from the NHWC image as rows of R neighbouring channels.
Corners outside the image are not read and count as zero, so their weights need no care.
"""

import triton
import triton.language as tl

# Code that is compiled for some of these sizes serves all, so that other images need not wait for the compiler. It does
# depend on `out_width`: where 16 divides that, it reads and writes several pixels of NCHW tensors at once.
_SIZES = ["height", "width", "out_height", "tiles_x", "tiles"]


@triton.jit
def _pixels(tile, out_height, out_width, tiles_x, tiles, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Image, rows and columns of a tile's output pixels, and which of them exist: a number and three times (M,)."""
    place = tile % tiles
    m = tl.arange(0, TILE_Y * TILE_X)
    y = (place // tiles_x) * TILE_Y + m // TILE_X
    x = (place % tiles_x) * TILE_X + m % TILE_X
    return (tile // tiles).to(tl.int64), y, x, (y < out_height) & (x < out_width)


@triton.jit
def _axis(position, exists, size):
    """Along one axis: the first neighbour, the second one's share, and whether the two lie inside."""
    # At exactly -1 the share is zero, but the slope towards the first pixel exists. A NaN is not inside.
    inside = exists & (position >= -1.0) & (position < size)
    floor = tl.floor(position)
    first = tl.where(inside, floor, -2.0).to(tl.int32)
    share = tl.where(inside, position - floor, 0.0)
    return first, share, first >= 0, (first >= -1) & (first < size - 1)


@triton.jit
def _moves(
    offset_at, mask_at, offset_c, mask_c, sample, tap, exists,
    HAS_MASK: tl.constexpr, INDEX: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Vertical and horizontal offset and factor of the offset groups `sample` (S,) at one tap: three times (M, S)."""
    channel = (sample * TAPS + tap).to(INDEX)[None, :]
    move_y = tl.load(offset_at + 2 * channel * offset_c, mask=exists, other=0.0)
    move_x = tl.load(offset_at + (2 * channel + 1) * offset_c, mask=exists, other=0.0)
    if HAS_MASK:
        factor = tl.load(mask_at + channel * mask_c, mask=exists, other=0.0)
    else:
        factor = tl.full(move_y.shape, 1.0, tl.float32)
    return move_y, move_x, factor


@triton.jit
def _locate(
    move_y, move_x, factor, y, x, tap, exists, height, width,
    KERNEL_X: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, PAD_Y: tl.constexpr, PAD_X: tl.constexpr,
    DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
):  # fmt: skip
    """Where `tap` samples for the output pixels `y`, `x` (M,).

    Returns, all (M, S): the factor, the top row, the left column, the shares of the bottom row and the right column,
    and whether top, bottom, left and right exist.
    """
    # A whole number plus the offset, rounded once: exactly where the definition puts the sample.
    at_y = (y * STRIDE_Y - PAD_Y + tap // KERNEL_X * DILATION_Y).to(tl.float32)[:, None] + move_y.to(tl.float32)
    at_x = (x * STRIDE_X - PAD_X + tap % KERNEL_X * DILATION_X).to(tl.float32)[:, None] + move_x.to(tl.float32)
    # A NaN position shows in the result instead of hiding as a zero.
    factor = tl.where((at_y == at_y) & (at_x == at_x), factor.to(tl.float32), float("nan"))
    top, low, has_top, has_bottom = _axis(at_y, exists, height)
    left, right, has_left, has_right = _axis(at_x, exists, width)
    return factor, top, left, low, right, has_top, has_bottom, has_left, has_right


@triton.jit
def _present(corner, real, PADDED: tl.constexpr):
    """(M, S, 1) or (M, S, R): a corner (M, S) exists, and so do the channels (1, S, R) where R is padded."""
    return corner[:, :, None] & real if PADDED else corner[:, :, None]


@triton.jit
def _read(at, corner, real, PADDED: tl.constexpr, CACHE: tl.constexpr):
    return tl.load(at, mask=_present(corner, real, PADDED), other=0.0, cache_modifier=CACHE)


@triton.jit
def _gather(
    image_at, image_y, image_x, channel, real, move_y, move_x, factor, y, x, tap, exists, height, width,
    PADDED: tl.constexpr, CACHE: tl.constexpr, INDEX: tl.constexpr, KERNEL_X: tl.constexpr,
    STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, PAD_Y: tl.constexpr, PAD_X: tl.constexpr,
    DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
):  # fmt: skip
    """The four corners (M, S, R) in the image's dtype and their weights times the factor (M, S)."""
    factor, top, left, low, right, has_top, has_bottom, has_left, has_right = _locate(
        move_y, move_x, factor, y, x, tap, exists, height, width,
        KERNEL_X, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X, DILATION_Y, DILATION_X,
    )  # fmt: skip
    at = image_at + (top.to(INDEX) * image_y + left.to(INDEX) * image_x)[:, :, None] + channel
    v00 = _read(at, has_top & has_left, real, PADDED, CACHE)
    v01 = _read(at + image_x, has_top & has_right, real, PADDED, CACHE)
    v10 = _read(at + image_y, has_bottom & has_left, real, PADDED, CACHE)
    v11 = _read(at + image_y + image_x, has_bottom & has_right, real, PADDED, CACHE)
    above, below = (1.0 - low) * factor, low * factor
    return v00, v01, v10, v11, above * (1.0 - right), above * right, below * (1.0 - right), below * right


@triton.jit
def _wide(value, OPERAND: tl.constexpr):
    """In float32."""
    if OPERAND == tl.bfloat16:
        # Two at once, one instruction each: a bfloat16 is the upper half of a float32.
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=&r,=&r,r", [value], tl.float32, is_pure=True, pack=2
        )
    return value.to(tl.float32)


@triton.jit
def _blend(v00, v01, v10, v11, w00, w01, w10, w11, OPERAND: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    """(M, K) in the dtype of the corners, added up in float32."""
    value = _wide(v00, OPERAND) * w00[:, :, None] + _wide(v01, OPERAND) * w01[:, :, None]
    value += _wide(v10, OPERAND) * w10[:, :, None]
    value += _wide(v11, OPERAND) * w11[:, :, None]
    return tl.reshape(value.to(v00.dtype), (M, K))


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    image, offset, mask, weight, bias, output,
    image_b, image_y, image_x, offset_b, offset_c, offset_y, offset_x, mask_b, mask_c, mask_y, mask_x,
    output_b, output_c, output_y, output_x, height, width, out_height, out_width, tiles_x, tiles,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, INDEX: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    KERNEL_X: tl.constexpr, TAPS: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    GROUPS: tl.constexpr, GROUP_IN: tl.constexpr, GROUP_OUT: tl.constexpr, OFFSET_IN: tl.constexpr,
    RUN: tl.constexpr, S: tl.constexpr, R: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK_N: tl.constexpr, PREFETCH: tl.constexpr, CACHE: tl.constexpr,
):  # fmt: skip
    """A tile of pixels times a block of one weight group's output channels; the taps of a run follow each other.

    image (B, H, W, C), channels one apart; weight (O, taps, GROUP_IN) contiguous; the others of any strides.
    """
    M: tl.constexpr = TILE_Y * TILE_X
    K: tl.constexpr = S * R
    CHUNKS: tl.constexpr = (RUN + K - 1) // K
    PADDED: tl.constexpr = RUN % K != 0
    BLOCKS: tl.constexpr = (GROUP_OUT + BLOCK_N - 1) // BLOCK_N
    STEPS: tl.constexpr = GROUP_IN // RUN * CHUNKS * TAPS
    block = tl.program_id(0) % (GROUPS * BLOCKS)
    group = block // BLOCKS
    tile = tl.program_id(0) // (GROUPS * BLOCKS)
    picture, y, x, exists = _pixels(tile, out_height, out_width, tiles_x, tiles, TILE_Y, TILE_X)
    exists, far_y, far_x = exists[:, None], y.to(INDEX)[:, None], x.to(INDEX)[:, None]
    offset_at = offset + picture * offset_b + far_y * offset_y + far_x * offset_x
    mask_at = mask + picture * mask_b + far_y * mask_y + far_x * mask_x
    image += picture * image_b
    s, k, n = tl.arange(0, S), tl.arange(0, K), (block % BLOCKS) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = s[None, :, None] * R + tl.arange(0, R)[None, None, :]
    weight += (group * GROUP_OUT + n)[None, :] * (TAPS * GROUP_IN) + k[:, None]
    total = tl.zeros((M, BLOCK_N), tl.float32)
    if PREFETCH:
        # Read offsets one step before the corners they lead to.
        my, mx, mf = _moves(
            offset_at, mask_at, offset_c, mask_c, group * GROUP_IN // OFFSET_IN + s, 0, exists, HAS_MASK, INDEX, TAPS
        )
    for step in range(STEPS):
        tap, chunk = step % TAPS, step // TAPS
        inner = (chunk // CHUNKS) * RUN + (chunk % CHUNKS) * K
        start, left_over = group * GROUP_IN + inner, RUN - (chunk % CHUNKS) * K
        if not PREFETCH:
            my, mx, mf = _moves(
                offset_at, mask_at, offset_c, mask_c, start // OFFSET_IN + s, tap, exists, HAS_MASK, INDEX, TAPS
            )
        v00, v01, v10, v11, w00, w01, w10, w11 = _gather(
            image + start, image_y, image_x, channel, channel < left_over, my, mx, mf, y, x, tap, exists, height, width,
            PADDED, CACHE, INDEX, KERNEL_X, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X, DILATION_Y, DILATION_X,
        )  # fmt: skip
        if PREFETCH:
            early = tl.minimum(step + 1, STEPS - 1)
            later = group * GROUP_IN + early // TAPS // CHUNKS * RUN
            my, mx, mf = _moves(
                offset_at, mask_at, offset_c, mask_c, later // OFFSET_IN + s, early % TAPS, exists,
                HAS_MASK, INDEX, TAPS,
            )  # fmt: skip
        inside = (n < GROUP_OUT)[None, :]
        if PADDED:
            inside = inside & (k < left_over)[:, None]
        factors = tl.load(weight + tap * GROUP_IN + inner, mask=inside, other=0.0)
        value = _blend(v00, v01, v10, v11, w00, w01, w10, w11, OPERAND, M, K)
        total = tl.dot(value.to(OPERAND), factors.to(OPERAND), total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + group * GROUP_OUT + n, mask=n < GROUP_OUT, other=0.0).to(tl.float32)[None, :]
    output += picture * output_b + far_y * output_y + far_x * output_x
    output += (group * GROUP_OUT + n).to(INDEX)[None, :] * output_c
    tl.store(output, total.to(output.dtype.element_ty), mask=exists & (n < GROUP_OUT)[None, :])


@triton.jit
def _add(at, value, weight, corner, real, PADDED: tl.constexpr):
    present = tl.broadcast_to(_present(corner, real, PADDED), value.shape)
    tl.atomic_add(at, value * weight[:, :, None], mask=present, sem="relaxed")


@triton.jit
def _spread(to, step_y, step_x, value, factor, low, right, has_00, has_01, has_10, has_11, real, PADDED: tl.constexpr):
    """Add `value` (M, S, R) to the four corners, by their shares; `to` points to the top left one."""
    above, below = (1.0 - low) * factor, low * factor
    _add(to, value, above * (1.0 - right), has_00, real, PADDED)
    _add(to + step_x, value, above * right, has_01, real, PADDED)
    _add(to + step_y, value, below * (1.0 - right), has_10, real, PADDED)
    _add(to + step_y + step_x, value, below * right, has_11, real, PADDED)


@triton.jit
def _slopes(s00, s01, s10, s11, factor, low, right):
    """From the inner products with the corners: the gradients of vertical offset, horizontal offset and factor."""
    above, below = (1.0 - right) * s00 + right * s01, (1.0 - right) * s10 + right * s11
    across = (1.0 - low) * (s01 - s00) + low * (s11 - s10)
    return factor * (below - above), factor * across, (1.0 - low) * above + low * below


@triton.jit
def _grad_columns(
    held, grad_at, grad_c, weight, k, left_over, exists, HOLD: tl.constexpr, PADDED: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, TAPS: tl.constexpr, GROUP_IN: tl.constexpr,
    GROUP_OUT: tl.constexpr, M: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of K channels of the column, (M, K): the output's gradient times one group's weight."""
    columns = tl.zeros((M, K), tl.float32)
    for first in range(0, GROUP_OUT, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        inside = (n < GROUP_OUT)[:, None]
        if PADDED:
            inside = inside & (k < left_over)[None, :]
        if HOLD:
            grad = held
        else:
            there = grad_at + n.to(INDEX)[None, :] * grad_c
            grad = tl.load(there, mask=exists & (n < GROUP_OUT)[None, :], other=0.0)
        factors = tl.load(weight + n[:, None] * (TAPS * GROUP_IN) + k[None, :], mask=inside, other=0.0)
        columns = tl.dot(grad.to(OPERAND), factors.to(OPERAND), columns, input_precision=PRECISION)
    return columns


@triton.jit(do_not_specialize=_SIZES)
def backward_data_kernel(
    grad, image, offset, mask, weight, grad_image, grad_offset, grad_mask,
    grad_b, grad_c, grad_y, grad_x, image_b, image_y, image_x,
    offset_b, offset_c, offset_y, offset_x, mask_b, mask_c, mask_y, mask_x,
    grad_offset_b, grad_offset_c, grad_offset_y, grad_offset_x, grad_mask_b, grad_mask_c, grad_mask_y, grad_mask_x,
    height, width, out_height, out_width, tiles_x, tiles,
    NEED_IMAGE: tl.constexpr, NEED_OFFSET: tl.constexpr, NEED_MASK: tl.constexpr,
    HAS_MASK: tl.constexpr, INDEX: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    KERNEL_X: tl.constexpr, TAPS: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    GROUPS: tl.constexpr, GROUP_IN: tl.constexpr, GROUP_OUT: tl.constexpr, OFFSET_IN: tl.constexpr,
    RUN: tl.constexpr, S: tl.constexpr, R: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK_N: tl.constexpr, CACHE: tl.constexpr,
):  # fmt: skip
    """Gradients of the image (added to `grad_image`, float32 of the image's strides), the offset and the mask.

    A program has a tile of pixels and S offset groups with all their channels, so nobody else writes its part of
    the offset's and the mask's gradients.
    """
    M: tl.constexpr = TILE_Y * TILE_X
    K: tl.constexpr = S * R
    CHUNKS: tl.constexpr = (RUN + K - 1) // K
    PADDED: tl.constexpr = RUN % K != 0
    OWNERS: tl.constexpr = GROUPS * GROUP_IN // (S * OFFSET_IN)
    owner = tl.program_id(0) % OWNERS
    picture, y, x, exists = _pixels(tl.program_id(0) // OWNERS, out_height, out_width, tiles_x, tiles, TILE_Y, TILE_X)
    exists, far_y, far_x = exists[:, None], y.to(INDEX)[:, None], x.to(INDEX)[:, None]
    offset_at = offset + picture * offset_b + far_y * offset_y + far_x * offset_x
    mask_at = mask + picture * mask_b + far_y * mask_y + far_x * mask_x
    grad_at = grad + picture * grad_b + far_y * grad_y + far_x * grad_x
    s, k, n = owner * S + tl.arange(0, S), tl.arange(0, K), tl.arange(0, BLOCK_N)
    channel = tl.arange(0, S)[None, :, None] * R + tl.arange(0, R)[None, None, :]
    # One block of output channels of one weight group stays in the chip's fast memory for all taps.
    HOLD: tl.constexpr = GROUP_OUT <= BLOCK_N and GROUP_IN % (S * OFFSET_IN) == 0
    held = grad_at
    if HOLD:
        first = owner * (S * OFFSET_IN) // GROUP_IN * GROUP_OUT
        held = tl.load(
            grad_at + (first + n).to(INDEX)[None, :] * grad_c, mask=exists & (n < GROUP_OUT)[None, :], other=0.0
        )
    for tap in range(TAPS):
        my, mx, mf = _moves(offset_at, mask_at, offset_c, mask_c, s, tap, exists, HAS_MASK, INDEX, TAPS)
        factor, top, left, low, right, has_top, has_bottom, has_left, has_right = _locate(
            my, mx, mf, y, x, tap, exists, height, width,
            KERNEL_X, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X, DILATION_Y, DILATION_X,
        )  # fmt: skip
        corner = (top.to(INDEX) * image_y + left.to(INDEX) * image_x)[:, :, None] + channel
        has_00, has_01 = has_top & has_left, has_top & has_right
        has_10, has_11 = has_bottom & has_left, has_bottom & has_right
        s00 = tl.zeros((M, S), tl.float32)
        s01, s10, s11 = s00, s00, s00
        for chunk in range(S * OFFSET_IN // RUN * CHUNKS):
            start = owner * (S * OFFSET_IN) + (chunk // CHUNKS) * RUN + (chunk % CHUNKS) * K
            group = start // GROUP_IN
            left_over = RUN - (chunk % CHUNKS) * K
            real = channel < left_over
            first = group * GROUP_OUT
            columns = _grad_columns(
                held, grad_at + first.to(INDEX) * grad_c, grad_c,
                weight + first * (TAPS * GROUP_IN) + tap * GROUP_IN + start - group * GROUP_IN, k, left_over, exists,
                HOLD, PADDED, OPERAND, PRECISION, INDEX, TAPS, GROUP_IN, GROUP_OUT, M, K, BLOCK_N,
            )  # fmt: skip
            columns = tl.reshape(columns, (M, S, R))
            at = image + picture * image_b + start + corner
            if NEED_OFFSET or NEED_MASK:
                s00 += tl.sum(columns * _wide(_read(at, has_00, real, PADDED, CACHE), OPERAND), 2)
                s01 += tl.sum(columns * _wide(_read(at + image_x, has_01, real, PADDED, CACHE), OPERAND), 2)
                s10 += tl.sum(columns * _wide(_read(at + image_y, has_10, real, PADDED, CACHE), OPERAND), 2)
                s11 += tl.sum(columns * _wide(_read(at + image_y + image_x, has_11, real, PADDED, CACHE), OPERAND), 2)
            if NEED_IMAGE:
                to = grad_image + picture * image_b + start + corner
                _spread(to, image_y, image_x, columns, factor, low, right, has_00, has_01, has_10, has_11, real, PADDED)
        place = (s * TAPS + tap).to(INDEX)[None, :]
        down, across, value = _slopes(s00, s01, s10, s11, factor, low, right)
        if NEED_OFFSET:
            to = grad_offset + picture * grad_offset_b + far_y * grad_offset_y + far_x * grad_offset_x
            tl.store(to + 2 * place * grad_offset_c, down.to(grad_offset.dtype.element_ty), mask=exists)
            tl.store(to + (2 * place + 1) * grad_offset_c, across.to(grad_offset.dtype.element_ty), mask=exists)
        if NEED_MASK:
            to = grad_mask + picture * grad_mask_b + far_y * grad_mask_y + far_x * grad_mask_x
            tl.store(to + place * grad_mask_c, value.to(grad_mask.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=_SIZES + ["all_tiles", "share"])
def backward_weight_kernel(
    grad, image, offset, mask, grad_weight, grad_b, grad_c, grad_y, grad_x, image_b, image_y, image_x,
    offset_b, offset_c, offset_y, offset_x, mask_b, mask_c, mask_y, mask_x,
    height, width, out_height, out_width, tiles_x, tiles, all_tiles, share,
    HAS_MASK: tl.constexpr, INDEX: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    KERNEL_X: tl.constexpr, TAPS: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    GROUPS: tl.constexpr, GROUP_IN: tl.constexpr, GROUP_OUT: tl.constexpr, OFFSET_IN: tl.constexpr,
    RUN: tl.constexpr, S: tl.constexpr, R: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK_N: tl.constexpr, CACHE: tl.constexpr,
):  # fmt: skip
    """The weight's gradient from `share` tiles of pixels: grad_weight (shares, O, taps, GROUP_IN) float32.

    A program has one step (K channels at one tap) and a block of output channels; it sums over its pixels.
    """
    M: tl.constexpr = TILE_Y * TILE_X
    K: tl.constexpr = S * R
    CHUNKS: tl.constexpr = (RUN + K - 1) // K
    PADDED: tl.constexpr = RUN % K != 0
    BLOCKS: tl.constexpr = (GROUP_OUT + BLOCK_N - 1) // BLOCK_N
    STEPS: tl.constexpr = GROUP_IN // RUN * CHUNKS * TAPS
    step = tl.program_id(0) % STEPS
    block = tl.program_id(0) // STEPS % (GROUPS * BLOCKS)
    part = tl.program_id(0) // (STEPS * GROUPS * BLOCKS)
    group, tap, chunk = block // BLOCKS, step % TAPS, step // TAPS
    inner = (chunk // CHUNKS) * RUN + (chunk % CHUNKS) * K
    start = group * GROUP_IN + inner
    left_over = RUN - (chunk % CHUNKS) * K
    s, k, n = tl.arange(0, S), tl.arange(0, K), (block % BLOCKS) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = s[None, :, None] * R + tl.arange(0, R)[None, None, :]
    real, wanted = channel < left_over, (n < GROUP_OUT)[:, None]
    grad += (group * GROUP_OUT + n).to(INDEX)[:, None] * grad_c
    total = tl.zeros((BLOCK_N, K), tl.float32)
    for tile in range(part * share, tl.minimum(part * share + share, all_tiles)):
        picture, y, x, exists = _pixels(tile, out_height, out_width, tiles_x, tiles, TILE_Y, TILE_X)
        far_y, far_x = y.to(INDEX)[:, None], x.to(INDEX)[:, None]
        offset_at = offset + picture * offset_b + far_y * offset_y + far_x * offset_x
        mask_at = mask + picture * mask_b + far_y * mask_y + far_x * mask_x
        my, mx, mf = _moves(
            offset_at, mask_at, offset_c, mask_c, start // OFFSET_IN + s, tap, exists[:, None], HAS_MASK, INDEX, TAPS
        )
        v00, v01, v10, v11, w00, w01, w10, w11 = _gather(
            image + picture * image_b + start, image_y, image_x, channel, real, my, mx, mf, y, x, tap, exists[:, None],
            height, width, PADDED, CACHE, INDEX, KERNEL_X, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X, DILATION_Y, DILATION_X,
        )  # fmt: skip
        column = _blend(v00, v01, v10, v11, w00, w01, w10, w11, OPERAND, M, K)
        there = grad + picture * grad_b + (y.to(INDEX) * grad_y + x.to(INDEX) * grad_x)[None, :]
        slopes = tl.load(there, mask=wanted & exists[None, :], other=0.0)
        total = tl.dot(slopes.to(OPERAND), column.to(OPERAND), total, input_precision=PRECISION)
    to = grad_weight + (part * (GROUPS * GROUP_OUT) + group * GROUP_OUT + n).to(tl.int64)[:, None] * (TAPS * GROUP_IN)
    tl.store(to + tap * GROUP_IN + inner + k[None, :], total, mask=wanted & (k < left_over)[None, :])


@triton.jit
def copy_kernel(
    source, target, source_b, source_c, source_p, target_b, target_c, target_p, channels, pixels,
    INDEX: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Copy images (B, C, H*W) between any strides and dtypes, P pixels and C channels per program."""
    blocks = tl.cdiv(pixels, P)
    picture = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(INDEX) * P + tl.arange(0, P)[:, None]
    c = tl.program_id(1).to(INDEX) * C + tl.arange(0, C)[None, :]
    inside = (p < pixels) & (c < channels)
    value = tl.load(source + picture * source_b + p * source_p + c * source_c, mask=inside)
    tl.store(target + picture * target_b + p * target_p + c * target_c, value.to(target.dtype.element_ty), mask=inside)
