"""Deformable convolution on the CPU: numba samples, oneDNN multiplies, both on small tiles that stay in cache.

The kernels of `_deform_ops` for the CPU. numba is imported when one first runs, not before.

Each thread takes tiles of output pixels: it samples a tile of columns (pixels x taps*channels), then multiplies it with
the weight. No column matrix of the whole image ever exists.
"""

import itertools
import math

import numpy as np
import torch

from ._deform_geometry import Geometry
from ._deform_threads import WORKERS

# A column tile is as wide as the matrix product needs to be fast, unless that takes more than 1.5 MiB of float32.
_TILE_PIXELS, _TILE_FLOATS = 512, 3 << 17


class TiledGeometry(Geometry):
    """The sizes of one call and how the kernels cut it up."""

    __slots__ = ()

    @property
    def tile(self):
        """Output pixels per tile."""
        pixels = _TILE_FLOATS // (self.taps * self.channels) // 16 * 16
        return min(max(pixels, 16), _TILE_PIXELS)

    @property
    def vec(self):
        """Channels per row of the kernels' arrays: the widest that divides every group."""
        run = math.gcd(self.channels // self.groups, self.channels // self.offset_groups)
        return next(vec for vec in (16, 8, 4, 1) if run % vec == 0)

    def block(self, blocks):
        """The geometry of one of `blocks` equal runs of channels; see `_channel_blocks`."""
        return self._replace(
            channels=self.channels // blocks,
            groups=max(self.groups // blocks, 1),
            offset_groups=self.offset_groups // blocks,
        )

    def pack(self):
        """The numbers the kernels read; the last four count rows of `vec` channels, or offset groups."""
        rows = self.channels // self.vec
        return np.array(
            [self.height, self.width, self.kernel[1], self.taps, *self.dilation]
            + [self.offset_groups, rows // self.offset_groups, rows // self.groups, rows],
            dtype=np.int64,
        )

    def origins(self, dtype):
        """(2, Ho*Wo) of numpy `dtype`: where tap 0 of each output pixel is, vertically and horizontally."""
        y = np.arange(self.out_height, dtype=dtype) * self.stride[0] - self.padding[0]
        x = np.arange(self.out_width, dtype=dtype) * self.stride[1] - self.padding[1]
        return np.stack([y.repeat(self.out_width), np.tile(x, self.out_height)]).astype(dtype)

    def places(self, count):
        """(C/vec,) int64: where each row of channels goes in the column of a tile of `count` pixels.

        The column is ordered (weight group, pixel, tap, channel); these are the rows of pixel 0 and tap 0.
        """
        rows = self.channels // self.vec // self.groups
        group = np.arange(self.groups, dtype=np.int64)[:, None] * (count * self.taps * rows)
        return (group + np.arange(rows, dtype=np.int64)).reshape(-1)


def _has_onednn():
    return torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled


def _multiply(a, b):
    """`a @ b.T`: (N, K), (M, K) -> (N, M), where `a` is contiguous and `b` or its transpose is."""
    # oneDNN's product is twice as fast as the default BLAS where that does not use AVX-512 (MKL on AMD).
    if a.dtype == torch.float32 and _has_onednn():
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return torch.mm(a, b.t())


def _stack(tensors):
    """`torch.stack`, without copying a single tensor."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _rows(tensor, vec):
    """A contiguous tensor as a numpy array in rows of `vec`."""
    return tensor.numpy().reshape(-1, vec)


def _to_nhwc(image):
    """(C, H, W) of any strides -> contiguous (H*W, C)."""
    # As a matrix: PyTorch transposes matrices by blocks, several times faster than it permutes axes.
    return image.flatten(1).t().contiguous()


class _Sampler:
    """What every tile of one call shares, and what one thread needs to work on tiles."""

    def __init__(self, geometry, input, offset, mask):
        self.geometry, self.vec, self.tile = geometry, geometry.vec, min(geometry.tile, geometry.pixels)
        self.real = np.float32 if input.dtype == torch.float32 else np.float64
        self.numbers, self.origins = geometry.pack(), geometry.origins(self.real)
        # (B, offset channels, Ho, Wo) -> (B, blocks, offset channels of a block, Ho*Wo)
        self.offset = offset.numpy().reshape(
            geometry.batch, -1, geometry.offset_groups * geometry.taps * 2, geometry.pixels
        )
        none = np.empty((geometry.batch, self.offset.shape[1], 0, 0), self.real)
        self.mask = none if mask is None else mask.numpy().reshape(*self.offset.shape[:2], -1, geometry.pixels)

    def scratch(self):
        """Memory for one thread: factor, rows, weights of the kernels."""
        return np.empty(self.tile, self.real), np.empty(4 * self.tile, np.int32), np.empty(4 * self.tile, self.real)

    def column(self, memory, count):
        """A column for `count` pixels in the flat `memory`: (groups, count, taps * channels of a group)."""
        geo = self.geometry
        length = geo.taps * geo.channels // geo.groups
        return memory[: geo.groups * count * length].view(geo.groups, count, length)


def forward(input, offset, weight, bias, mask, stride, padding, dilation):
    """Deformable convolution of checked float32 or float64 tensors of one dtype, all pairs given; output is NCHW."""
    from . import _deform_kernels

    geo = TiledGeometry.of(input, offset, weight, stride, padding, dilation)
    output = input.new_empty(geo.batch, geo.out_channels, geo.out_height, geo.out_width)
    if output.numel() == 0:
        return output
    input, offset, weight = input.detach(), offset.detach().contiguous(), weight.detach()
    mask = None if mask is None else mask.detach().contiguous()
    bias = None if bias is None else bias.detach().view(geo.groups, -1, 1)
    # (groups, O/groups, taps * C/groups): the column's order, tap before channel
    weight = weight.reshape(geo.groups, -1, geo.channels // geo.groups, geo.taps)
    weight = weight.transpose(2, 3).flatten(2).contiguous()
    sampler = _Sampler(geo, input, offset, mask)
    vec, tile = sampler.vec, sampler.tile
    kernel = _deform_kernels.make_sample(vec)
    flat = output.view(geo.batch, geo.groups, -1, geo.pixels)
    nhwc = [None] * geo.batch
    # Each tile is computed the same whoever takes it: results do not depend on the number of threads.
    images = iter(range(geo.batch))
    tiles = iter(list(itertools.product(range(geo.batch), range(0, geo.pixels, tile))))

    def convert(_):
        for image in images:
            nhwc[image] = _rows(_to_nhwc(input[image]), vec)

    def work(_):
        # The same memory for every tile: it stays in the core's cache.
        scratch, memory = sampler.scratch(), input.new_empty(tile * geo.taps * geo.channels)
        for image, start in tiles:
            stop = min(start + tile, geo.pixels)
            column = sampler.column(memory, stop - start)
            kernel(
                nhwc[image], sampler.origins, sampler.offset[image, 0], sampler.mask[image, 0], _rows(column, vec),
                geo.places(stop - start), *scratch, start, stop, sampler.numbers,
            )  # fmt: skip
            for group in range(geo.groups):
                flat[image, group, :, start:stop] = _multiply(weight[group], column[group])
            if bias is not None:
                flat[image, :, :, start:stop] += bias

    threads = torch.get_num_threads()
    WORKERS.run(convert, min(threads, geo.batch))
    WORKERS.run(work, min(threads, geo.batch * -(-geo.pixels // tile)))
    return output


def _channel_blocks(geometry, threads):
    """Into how many runs of channels the backward splits each image so that every thread has work of its own.

    A block holds whole offset groups, and whole weight groups or a part of one, so no two threads write one gradient.
    """
    wanted = -(-threads // geometry.batch)
    groups, offset_groups = geometry.groups, geometry.offset_groups
    divisors = (n for n in range(1, offset_groups + 1) if offset_groups % n == 0)
    allowed = [n for n in divisors if groups % n == 0 or n % groups == 0]
    return next((n for n in allowed if n >= wanted), allowed[-1])


class _Backward:
    """One backward pass: its items are (run of channels, image), each done by one thread."""

    def __init__(self, geo, grad, input, offset, weight, mask, grads):
        from . import _deform_kernels

        self.geo, self.input, self.grads = geo, input, grads
        self.threads = torch.get_num_threads()
        self.blocks = _channel_blocks(geo, self.threads)
        self.part = geo.block(self.blocks)
        # How many blocks share one weight group.
        self.split = max(self.blocks // geo.groups, 1)
        self.sampler = _Sampler(self.part, input, offset, mask)
        self.kernel = _deform_kernels.make_adjoint(self.sampler.vec)
        wanted = [grads[name].numel() > 0 for name in ("input", "offset", "mask", "weight")]
        self.need_input, _, _, self.need_weight = wanted
        self.needs = np.array(wanted, dtype=np.int64)
        self.grad = grad.view(geo.batch, geo.groups, -1, geo.pixels)
        # (blocks, weight groups in a block, taps * channels, O/groups)
        weight = weight.reshape(geo.groups, -1, self.split, self.part.channels // self.part.groups, geo.taps)
        weight = weight.permute(0, 2, 4, 3, 1).contiguous()
        self.weight = weight.view(self.blocks, self.part.groups, -1, weight.shape[-1])

    def run(self):
        items = list(itertools.product(range(self.blocks), range(self.geo.batch)))
        count = min(self.threads, len(items))
        # Fixed shares, summed in a fixed order: with the same number of threads the result is the same to the last bit.
        shares = [items[len(items) * n // count : len(items) * (n + 1) // count] for n in range(count)]
        totals = [{} for _ in range(count)]

        def work(worker):
            for block, image in shares[worker]:
                self._item(block, image, totals[worker])

        WORKERS.run(work, count)
        if self.need_weight:
            self._gather_weight(totals)

    def _planes(self, name, like, block, image):
        """The gradient's planes that the kernel writes: (channels of the block, Ho*Wo), or (0, 0) if not wanted."""
        grad = self.grads[name]
        return grad.numpy().reshape(like.shape)[image, block] if grad.numel() else np.empty((0, 0), self.sampler.real)

    def _item(self, block, image, totals):
        geo, part, sampler = self.geo, self.part, self.sampler
        vec, tile = sampler.vec, sampler.tile
        channels = slice(block * part.channels, (block + 1) * part.channels)
        nhwc = _to_nhwc(self.input[image, channels])
        grad_nhwc = torch.zeros_like(nhwc) if self.need_input else nhwc
        grad_offset = self._planes("offset", sampler.offset, block, image)
        grad_mask = self._planes("mask", sampler.mask, block, image)
        scratch = sampler.scratch()
        memory = nhwc.new_empty(tile * part.taps * part.channels if self.need_weight else 0)
        more = np.empty(4 * tile, sampler.real), np.empty(3 * tile, sampler.real)
        # The weight groups this block belongs to.
        first = block * geo.groups // self.blocks
        groups = range(part.groups)
        for start in range(0, geo.pixels, tile):
            stop = min(start + tile, geo.pixels)
            grad = self.grad[image, first : first + part.groups, :, start:stop].contiguous()
            column = sampler.column(memory, stop - start if self.need_weight else 0)
            grad_column = _stack([_multiply(grad[g].t().contiguous(), self.weight[block, g]) for g in groups])
            self.kernel(
                _rows(nhwc, vec), sampler.origins, sampler.offset[image, block], sampler.mask[image, block],
                _rows(column, vec), part.places(stop - start), *scratch, start, stop, sampler.numbers,
                _rows(grad_column, vec), _rows(grad_nhwc, vec), grad_offset, grad_mask, *more, self.needs,
            )  # fmt: skip
            if self.need_weight:
                products = _stack([_multiply(grad[g], column[g].t()) for g in groups])
                totals[block] = totals[block].add_(products) if block in totals else products
        if self.need_input:
            self.grads["input"][image, channels].flatten(1).copy_(grad_nhwc.t())

    def _gather_weight(self, totals):
        """Add the threads' sums, each (groups in a block, O/groups, taps * channels), into the weight's gradient."""
        geo, part = self.geo, self.part
        target = self.grads["weight"].view(geo.groups, -1, self.split, part.channels // part.groups, geo.taps)
        for block, total in (pair for worker in totals for pair in worker.items()):
            first = block * geo.groups // self.blocks
            total = total.unflatten(2, (geo.taps, -1)).transpose(2, 3)
            target[first : first + part.groups, :, block % self.split] += total


def backward(grad, input, offset, weight, mask, stride, padding, dilation, needs):
    """Gradients of input, offset, weight, bias, mask where `needs` says so, an empty tensor elsewhere."""
    geo = TiledGeometry.of(input, offset, weight, stride, padding, dilation)
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    wanted = {"input": (input, need_input), "offset": (offset, need_offset)}
    wanted |= {"mask": (mask, need_mask), "weight": (weight, need_weight)}
    grads = {name: input.new_zeros(tensor.shape if need else (0,)) for name, (tensor, need) in wanted.items()}
    grads["bias"] = grad.detach().sum((0, 2, 3)) if need_bias else input.new_empty(0)
    if grad.numel() and (need_input or need_offset or need_mask or need_weight):
        grad, offset = grad.detach().contiguous(), offset.detach().contiguous()
        mask = None if mask is None else mask.detach().contiguous()
        _Backward(geo, grad, input.detach(), offset, weight.detach(), mask, grads).run()
    return [grads[name] for name in ("input", "offset", "weight", "bias", "mask")]
