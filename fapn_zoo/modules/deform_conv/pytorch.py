"""Deformable convolution of PyTorch's operators alone, for CPUs on which numba does not work.

These are the kernels that `ops.py` calls there. Samples are weighted sums of four rows of a table, which is what
`embedding_bag` computes, for as many output pixels at once as stay in cache. It takes a third of torchvision's time or
less (hub/results/deform_conv_pytorch.csv).

A table is an image with a row per pixel and offset group, and with a border of zeros: one row of pixels above, two
below, one pixel to the left and to the right. Samples outside the image read the border.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fapn_zoo.modules.deform_conv.geometry import Geometry, Pairs
from fapn_zoo.modules.layers.conv import memory_format

_PIXELS = 512  # of the output at once


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _axis(at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First of two neighbours, its place in the table and the weight of the second, for positions along one axis."""
    inside = (at >= -1) & (at < size)
    floor = at.floor()
    first = torch.where(inside, floor, size).to(torch.int64) + 1
    # At exactly -1 the weight is zero, but the slope towards the first pixel exists.
    return first, torch.where(inside, at - floor, 0)


class _Samples:
    """The samples of some output pixels of one image: four `rows` of the table and `weights`, each (n, taps, G, 4)."""

    def __init__(self, geometry: Geometry, offset: Tensor, mask: Tensor | None, start: int, stop: int) -> None:
        """`offset` is (G, taps, 2, Ho * Wo), `mask` (G, taps, Ho * Wo) or None."""
        geo, real = geometry, _real(offset.dtype)
        pixels, taps = torch.arange(start, stop), torch.arange(geo.taps)
        y = pixels // geo.out_width * geo.stride[0] - geo.padding[0]
        x = pixels % geo.out_width * geo.stride[1] - geo.padding[1]
        y = y[:, None] + taps // geo.kernel[1] * geo.dilation[0]
        x = x[:, None] + taps % geo.kernel[1] * geo.dilation[1]
        # (n, taps, G); a whole number plus the offset, rounded once: exactly where the definition puts the sample.
        dy, dx = offset[..., start:stop].to(real).permute(2, 3, 1, 0)
        y, x = y[..., None].to(real) + dy, x[..., None].to(real) + dx
        self.factor = torch.ones_like(y) if mask is None else mask[..., start:stop].to(real).permute(2, 1, 0)
        # A NaN position shows in the result instead of hiding as a zero.
        self.factor = torch.where(y.isnan() | x.isnan(), float("nan"), self.factor)
        (y, self.down), (x, self.right) = _axis(y, geo.height), _axis(x, geo.width)
        line, step = (geo.width + 2) * geo.offset_groups, geo.offset_groups
        first = y * line + x * step + torch.arange(step)
        self.rows = torch.stack([first, first + step, first + line, first + line + step], -1)
        up, left = 1 - self.down, 1 - self.right
        corners = [up * left, up * self.right, self.down * left, self.down * self.right]
        self.weights = torch.stack(corners, -1) * self.factor[..., None]

    def column(self, table: Tensor) -> Tensor:
        """The samples, (n, taps, C)."""
        rows, weights = self.rows.view(-1, 4), self.weights.view(-1, 4)
        return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum").view(*self.rows.shape[:2], -1)

    def spread(self, grad_column: Tensor, grad_table: Tensor) -> None:
        """The adjoint of `column`: add to the table's gradient."""
        grad = grad_column.view(-1, grad_table.shape[1])
        for n in range(4):
            grad_table.index_add_(0, self.rows[..., n].reshape(-1), grad * self.weights[..., n].reshape(-1, 1))

    def slopes(self, grad_column: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the offsets, (n, taps, G, 2), and of the factors, (n, taps, G)."""
        grad = grad_column.view(-1, table.shape[1])
        dots = [(table[self.rows[..., n].reshape(-1)] * grad).sum(1).view(self.down.shape) for n in range(4)]
        top, bottom = torch.lerp(dots[0], dots[1], self.right), torch.lerp(dots[2], dots[3], self.right)
        across = torch.lerp(dots[1] - dots[0], dots[3] - dots[2], self.down)
        offset = torch.stack([bottom - top, across], -1) * self.factor[..., None]
        return offset, torch.lerp(top, bottom, self.down)


def _table(image: Tensor, geometry: Geometry) -> Tensor:
    """(C, H, W) -> (rows, C / G)."""
    lines = F.pad(image.permute(1, 2, 0), (0, 0, 1, 1, 1, 2)).flatten(0, 1)
    return F.pad(lines, (0, 0, 0, 1)).reshape(-1, geometry.channels // geometry.offset_groups)


def _by_group(column: Tensor, geometry: Geometry) -> Tensor:
    """(n, taps, C) -> (groups, n, taps * C / groups)."""
    return column.unflatten(2, (geometry.groups, -1)).permute(2, 0, 1, 3).flatten(2)


def _packed(weight: Tensor, geometry: Geometry) -> Tensor:
    """(O, C / groups, kh, kw) -> (groups, taps * C / groups, O / groups)."""
    return weight.flatten(2).unflatten(0, (geometry.groups, -1)).permute(0, 3, 2, 1).flatten(1, 2)


def _positions(geometry: Geometry, offset: Tensor, mask: Tensor | None) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Offsets and factors by image, offset group and tap, pixels last."""
    lead = geometry.batch, geometry.offset_groups, geometry.taps
    offset = offset.reshape(*lead, 2, geometry.pixels)
    return offset, [None] * geometry.batch if mask is None else mask.reshape(*lead, geometry.pixels)


def _chunks(geometry: Geometry) -> Iterator[tuple[int, int]]:
    for start in range(0, geometry.pixels, _PIXELS):
        yield start, min(start + _PIXELS, geometry.pixels)


def forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, pairs: Pairs
) -> Tensor:
    """Deformable convolution of checked tensors, half precision in float32; dtype and layout of `input`."""
    geo = Geometry.of(input, offset, weight, pairs)
    real, size = _real(input.dtype), (geo.batch, geo.out_channels, geo.out_height, geo.out_width)
    output = torch.empty(size, dtype=input.dtype, memory_format=memory_format(input))
    if output.numel() == 0:
        return output
    weight = _packed(weight.to(real), geo)
    offset, mask = _positions(geo, offset, mask)
    for image in range(geo.batch):
        table = _table(input[image].to(real), geo)
        found = input.new_empty(geo.groups, geo.pixels, weight.shape[2], dtype=real)
        for start, stop in _chunks(geo):
            column = _Samples(geo, offset[image], mask[image], start, stop).column(table)
            torch.bmm(_by_group(column, geo), weight, out=found[:, start:stop])
        if bias is not None:
            found += bias.to(real).view(geo.groups, 1, -1)
        output[image] = found.transpose(1, 2).reshape(size[1:])
    return output


def backward(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, pairs: Pairs, needs: list[bool]
) -> list[Tensor]:
    """Gradients of input, offset, weight, bias, mask where `needs` says so, an empty tensor elsewhere."""
    geo = Geometry.of(input, offset, weight, pairs)
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    real, tensors = _real(input.dtype), [input, offset, weight, weight[:, 0, 0, 0], input if mask is None else mask]
    grads = [tensor.new_empty(0) for tensor in tensors]
    for n, tensor in enumerate(tensors):
        if needs[n]:
            layout = torch.contiguous_format if tensor is weight else memory_format(tensor)
            grads[n] = torch.zeros_like(tensor, memory_format=layout)
    grad_input, grad_offset, grad_weight, grad_bias, grad_mask = grads
    if need_bias:
        grad_bias += grad.sum((0, 2, 3), dtype=real)
    if grad.numel() == 0 or not (need_input or need_offset or need_weight or need_mask):
        return grads
    packed = _packed(weight.to(real), geo)
    total = torch.zeros_like(packed)
    offset, mask = _positions(geo, offset, mask)
    for image in range(geo.batch):
        table = _table(input[image].to(real), geo)
        grad_table = torch.zeros_like(table)
        # (groups, Ho * Wo, O / groups)
        out = grad[image].to(real).reshape(geo.groups, -1, geo.pixels).transpose(1, 2)
        slopes = []
        for start, stop in _chunks(geo):
            samples = _Samples(geo, offset[image], mask[image], start, stop)
            # Gradients may be asked for inside a region of autocast, which would round this product.
            with torch.autocast("cpu", enabled=False):
                column = torch.bmm(out[:, start:stop], packed.transpose(1, 2))
            column = column.unflatten(2, (geo.taps, -1)).permute(1, 2, 0, 3).flatten(2)
            if need_input:
                samples.spread(column.contiguous(), grad_table)
            if need_offset or need_mask:
                slopes.append(samples.slopes(column.contiguous(), table))
            if need_weight:
                total.baddbmm_(_by_group(samples.column(table), geo).transpose(1, 2), out[:, start:stop])
        if need_input:
            # The adjoint of `_table`.
            lines = grad_table.view(-1, geo.channels)[:-1].view(geo.height + 3, geo.width + 2, geo.channels)
            grad_input[image] = lines[1:-2, 1:-1].permute(2, 0, 1)
        if need_offset or need_mask:
            by_offset, by_factor = (torch.cat(parts) for parts in zip(*slopes, strict=True))
            if need_offset:
                grad_offset[image] = by_offset.permute(2, 1, 3, 0).reshape(grad_offset.shape[1:])
            if need_mask:
                grad_mask[image] = by_factor.permute(2, 1, 0).reshape(grad_mask.shape[1:])
    if need_weight:
        total = total.unflatten(1, (geo.taps, -1)).permute(0, 3, 2, 1)
        grad_weight += total.reshape(grad_weight.shape)
    return grads
