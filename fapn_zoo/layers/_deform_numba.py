"""Deformable convolution on the CPU: numba samples, PyTorch multiplies matrices, both on small tiles that stay in cache.

The two operators `fapn_zoo::deform_conv2d` and `fapn_zoo::deform_conv2d_backward` are ordinary PyTorch custom
operators: they compile, export and differentiate. numba is imported when one first runs, not before.

Each worker thread takes tiles of output pixels: it samples a tile of columns (pixels x taps*channels), then multiplies it
with the weight. No column matrix of the whole image ever exists.
"""

import itertools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

# Floats in a column tile: with the weight and the corners it reads, this stays within a core's L2 cache.
_TILE_FLOATS = 1 << 18


class Geometry(NamedTuple):
    """Sizes of one call: `groups` are the weight's, `offset_groups` the offset's; see `geometry_of`."""

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int

    @property
    def taps(self):
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels(self):
        return self.out_height * self.out_width

    @property
    def vec(self):
        """Channels per row of the kernels' arrays: the widest that divides every group."""
        run = math.gcd(self.channels // self.groups, self.channels // self.offset_groups)
        return next(vec for vec in (16, 8, 4, 1) if run % vec == 0)

    @property
    def tile(self):
        """Output pixels per tile."""
        pixels = _TILE_FLOATS // max(self.taps * self.channels, 1) // 32 * 32
        return max(32, min(pixels, 1024))

    def block(self, blocks):
        """The geometry of one of `blocks` equal runs of channels; see `channel_blocks`."""
        return self._replace(
            channels=self.channels // blocks,
            groups=max(self.groups // blocks, 1),
            offset_groups=self.offset_groups // blocks,
        )

    def pack(self, vec):
        """The numbers the kernels read, as an int64 array."""
        import numpy as np

        channels = self.channels
        return np.array(
            [self.height, self.width, self.out_width, self.kernel[1], self.taps, *self.stride, *self.padding, *self.dilation]
            + [self.offset_groups, channels // self.offset_groups // vec, channels // self.groups // vec, channels // vec],
            dtype=np.int64,
        )  # fmt: skip


def output_size(size, kernel, stride, padding, dilation):
    """Output size along one axis, as for a plain convolution."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def geometry_of(input, offset, weight, stride, padding, dilation):
    """Geometry of a call whose shapes are already checked by the door."""
    batch, channels, height, width = input.shape
    out_channels, group_channels, *kernel = weight.shape
    out_size = [output_size(*axis) for axis in zip((height, width), kernel, stride, padding, dilation)]
    return Geometry(
        batch, channels, height, width, out_channels, *out_size, tuple(kernel), tuple(stride), tuple(padding),
        tuple(dilation), channels // group_channels, offset.shape[1] // (2 * kernel[0] * kernel[1]),
    )  # fmt: skip


class _Workers:
    """Threads that each run single-threaded PyTorch: tiles are the parallelism, the operators inside must not add more.

    Plain threads instead of numba's: they may be used from several threads at once, and a forked process (a data loader's
    worker) makes its own at first use.
    """

    def __init__(self):
        self.reset()

    def reset(self):
        self.lock = threading.Lock()
        self.pools = {}

    def _pool(self, count):
        with self.lock:
            if count not in self.pools:
                caller_threads = torch.get_num_threads()
                started = threading.Barrier(count)

                def begin():
                    torch.set_num_threads(1)
                    torch.set_grad_enabled(False)
                    started.wait()

                pool = ThreadPoolExecutor(count, thread_name_prefix="fapn_zoo_deform", initializer=begin)
                for future in [pool.submit(int) for _ in range(count)]:
                    future.result()
                # The count of OpenMP threads is per thread, but PyTorch also keeps a default for threads to come.
                torch.set_num_threads(caller_threads)
                self.pools[count] = pool
            return self.pools[count]

    def run(self, function, count):
        """Call `function(worker)` for worker = 0 to count - 1 at once; the first error is raised."""
        if count == 1:
            function(0)
            return
        for future in [self._pool(count).submit(function, worker) for worker in range(count)]:
            future.result()


_WORKERS = _Workers()
os.register_at_fork(after_in_child=_WORKERS.reset)


def _multiply(a, b):
    """`a @ b.T`: (N, K), (M, K) -> (N, M)."""
    # oneDNN's product is twice as fast as the default BLAS where that does not use AVX-512 (MKL on AMD).
    if a.dtype == torch.float32 and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled:
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return torch.mm(a, b.t())


def _rows(tensor, vec):
    """A contiguous tensor as a numpy array in rows of `vec`."""
    return tensor.numpy().reshape(-1, vec)


def _planes(tensor):
    """(N, H, W) -> numpy (N, H*W)."""
    return tensor.reshape(tensor.shape[0], -1).numpy()


def _packed_weight(weight, geometry):
    """(O, C/groups, kh, kw) -> contiguous (groups, O/groups, taps*C/groups): the column's order, tap before channel."""
    weight = weight.reshape(geometry.groups, geometry.out_channels // geometry.groups, -1, geometry.taps)
    return weight.transpose(2, 3).flatten(2).contiguous()


def _contiguous(*tensors):
    return [None if tensor is None else tensor.detach().contiguous() for tensor in tensors]


def _forward(input, offset, weight, bias, mask, stride, padding, dilation):
    from . import _deform_kernels

    geo = geometry_of(input, offset, weight, stride, padding, dilation)
    output = input.new_empty(geo.batch, geo.out_channels, geo.out_height, geo.out_width)
    if output.numel() == 0:
        return output
    nhwc = input.detach().permute(0, 2, 3, 1).contiguous()
    offset, bias, mask = _contiguous(offset, bias, mask)
    weight = _packed_weight(weight.detach(), geo)
    vec, tile = geo.vec, geo.tile
    kernel = _deform_kernels.make_sample(str(input.dtype).removeprefix("torch."), vec)
    numbers = geo.pack(vec)
    flat = output.view(geo.batch, geo.groups, -1, geo.pixels)
    no_mask = input.new_empty(0, 0).numpy()
    # Each tile is computed the same whoever takes it: results do not depend on the number of threads.
    queue = iter(list(itertools.product(range(geo.batch), range(0, geo.pixels, tile))))

    def work(_):
        column = input.new_empty(geo.groups, min(tile, geo.pixels), geo.taps * geo.channels // geo.groups)
        for image, start in queue:
            stop = min(start + tile, geo.pixels)
            part = column.view(-1)[: (stop - start) * geo.taps * geo.channels].view(geo.groups, stop - start, -1)
            planes = no_mask if mask is None else _planes(mask[image])
            kernel(_rows(nhwc[image], vec), _planes(offset[image]), planes, _rows(part, vec), start, stop, numbers)
            for group in range(geo.groups):
                flat[image, group, :, start:stop] = _multiply(weight[group], part[group])
            if bias is not None:
                flat[image, :, :, start:stop] += bias.view(geo.groups, -1, 1)

    _run(work, geo.batch * -(-geo.pixels // tile))
    return output


def _run(work, items):
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        _WORKERS.run(work, max(1, min(torch.get_num_threads(), items)))


def _channel_blocks(geometry, threads):
    """Into how many runs of channels the backward splits each image so that every thread has work of its own.

    A block holds whole offset groups, so no two threads write one gradient.
    """
    wanted = -(-threads // geometry.batch)
    groups, offset_groups = geometry.groups, geometry.offset_groups
    allowed = [
        n for n in range(1, offset_groups + 1) if offset_groups % n == 0 and (groups % n == 0 or n % groups == 0)
    ]
    return next((n for n in allowed if n >= wanted), allowed[-1])


def _backward(grad, input, offset, weight, mask, stride, padding, dilation, needs):
    """Gradients of input, offset, weight, bias, mask; an empty tensor where `needs` says no."""
    geo = geometry_of(input, offset, weight, stride, padding, dilation)
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    wanted = {"input": (input, need_input), "offset": (offset, need_offset)}
    wanted |= {"mask": (mask, need_mask), "weight": (weight, need_weight)}
    grads = {name: input.new_zeros(tensor.shape if need else (0,)) for name, (tensor, need) in wanted.items()}
    grads["bias"] = grad.detach().sum((0, 2, 3)) if need_bias else input.new_empty(0)
    if grad.numel() and input.numel() and (need_input or need_offset or need_mask or need_weight):
        grad, offset, mask = _contiguous(grad, offset, mask)
        _Backward(geo, grad, input.detach(), offset, weight.detach(), mask, grads).run()
    return [grads[name] for name in ("input", "offset", "weight", "bias", "mask")]


class _Backward:
    """One backward pass: items are (image, run of channels), each owned by one thread."""

    def __init__(self, geo, grad, input, offset, weight, mask, grads):
        import numpy as np

        from . import _deform_kernels

        self.geo, self.input, self.grads = geo, input, grads
        self.threads = torch.get_num_threads()
        self.blocks = _channel_blocks(geo, self.threads)
        part = geo.block(self.blocks)
        self.part, self.vec = part, part.vec
        self.kernel = _deform_kernels.make_adjoint(str(input.dtype).removeprefix("torch."), part.vec)
        self.numbers = part.pack(part.vec)
        self.needs = np.array(
            [grads[name].numel() > 0 for name in ("input", "offset", "mask", "weight")], dtype=np.int64
        )
        self.offset = self._split(offset)
        self.mask = None if mask is None else self._split(mask)
        self.grad = grad.view(geo.batch, geo.groups, -1, geo.pixels)
        # (blocks, weight groups in a block, taps * channels, O/groups)
        weight = weight.reshape(geo.groups, -1, geo.channels // geo.groups, geo.taps)
        split = max(self.blocks // geo.groups, 1)
        weight = weight.unflatten(2, (split, -1)).permute(0, 2, 4, 3, 1).contiguous()
        self.weight = weight.view(self.blocks, part.groups, -1, geo.out_channels // geo.groups)

    def _split(self, tensor):
        """(B, offset groups * n, Ho, Wo) -> (B, blocks, n * offset groups in a block, Ho * Wo)."""
        return tensor.view(self.geo.batch, self.blocks, -1, self.geo.pixels)

    def run(self):
        items = list(itertools.product(range(self.blocks), range(self.geo.batch)))
        count = min(self.threads, len(items))
        # Fixed shares, summed in a fixed order: with the same number of threads the result is the same to the last bit.
        shares = [items[len(items) * n // count : len(items) * (n + 1) // count] for n in range(count)]
        totals = [{} for _ in range(count)]

        def work(worker):
            for block, image in shares[worker]:
                self._item(block, image, totals[worker])

        _run(work, count)
        if self.needs[3]:
            self._gather_weight(totals)

    def _item(self, block, image, totals):
        geo, part, vec, grads = self.geo, self.part, self.vec, self.grads
        channels = slice(block * part.channels, (block + 1) * part.channels)
        nhwc = self.input[image, channels].permute(1, 2, 0).contiguous()
        grad_nhwc = torch.zeros_like(nhwc) if self.needs[0] else nhwc
        none = nhwc.new_empty(0, 0).numpy()
        mask = none if self.mask is None else self.mask[image, block].numpy()
        grad_offset = self._split(grads["offset"])[image, block].numpy() if self.needs[1] else none
        grad_mask = self._split(grads["mask"])[image, block].numpy() if self.needs[2] else none
        # The weight groups this block belongs to.
        first = block * geo.groups // self.blocks
        for start in range(0, geo.pixels, geo.tile):
            stop = min(start + geo.tile, geo.pixels)
            grad = self.grad[image, first : first + part.groups, :, start:stop].transpose(1, 2).contiguous()
            grad_column = torch.stack([_multiply(g, w) for g, w in zip(grad, self.weight[block])])
            column = torch.empty_like(grad_column) if self.needs[3] else grad_column
            self.kernel(
                _rows(nhwc, vec), self.offset[image, block].numpy(), mask, _rows(column, vec), _rows(grad_column, vec),
                _rows(grad_nhwc, vec), grad_offset, grad_mask, self.needs, start, stop, self.numbers,
            )  # fmt: skip
            if self.needs[3]:
                products = torch.stack([_multiply(g.t(), c.t()) for g, c in zip(grad, column)])
                totals[block] = totals[block].add_(products) if block in totals else products
        if self.needs[0]:
            grads["input"][image, channels] = grad_nhwc.permute(2, 0, 1)

    def _gather_weight(self, totals):
        """Add the threads' sums, each (groups in a block, O/groups, taps * channels), into the weight's gradient."""
        geo, part = self.geo, self.part
        split = max(self.blocks // geo.groups, 1)
        target = self.grads["weight"].view(geo.groups, -1, split, part.channels // part.groups, geo.taps)
        for block, total in (pair for worker in totals for pair in worker.items()):
            first = block * geo.groups // self.blocks
            total = total.unflatten(2, (geo.taps, -1)).transpose(2, 3)
            target[first : first + part.groups, :, block % split] += total


@torch.library.custom_op("fapn_zoo::deform_conv2d", mutates_args=(), device_types="cpu")
def deform_conv2d_op(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Deformable convolution of checked float32 or float64 tensors of one dtype, all pairs given; output is NCHW."""
    return _forward(input, offset, weight, bias, mask, stride, padding, dilation)


@deform_conv2d_op.register_fake
def _(input, offset, weight, bias, mask, stride, padding, dilation):
    size = [output_size(*axis) for axis in zip(input.shape[2:], weight.shape[2:], stride, padding, dilation)]
    return input.new_empty(input.shape[0], weight.shape[0], *size)


@torch.library.custom_op("fapn_zoo::deform_conv2d_backward", mutates_args=(), device_types="cpu")
def deform_conv2d_backward_op(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of input, offset, weight, bias, mask where `needs` says so, an empty tensor elsewhere."""
    return _backward(grad, input, offset, weight, mask, stride, padding, dilation, needs)


@deform_conv2d_backward_op.register_fake
def _(grad, input, offset, weight, mask, stride, padding, dilation, needs):
    shapes = [input.shape, offset.shape, weight.shape, (weight.shape[0],), None if mask is None else mask.shape]
    return [input.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs)]


def _setup_context(ctx, inputs, output):
    input, offset, weight, _, mask, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.has_mask = mask is not None
    ctx.save_for_backward(input, offset, weight, *([mask] if ctx.has_mask else []))


def _autograd_backward(ctx, grad):
    input, offset, weight, *mask = ctx.saved_tensors
    mask = mask[0] if mask else None
    needs = [bool(need) for need in ctx.needs_input_grad[:5]]
    grads = torch.ops.fapn_zoo.deform_conv2d_backward(
        grad, input, offset, weight, mask, ctx.stride, ctx.padding, ctx.dilation, needs
    )
    return *(value if need else None for value, need in zip(grads, needs)), None, None, None


deform_conv2d_op.register_autograd(_autograd_backward, setup_context=_setup_context)
