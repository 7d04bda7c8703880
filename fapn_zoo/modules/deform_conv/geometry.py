"""Sizes of a deformable convolution, shared by its backends; plain numbers, no kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

Pairs = Sequence[Sequence[int]]  # stride, padding and dilation, each (vertical, horizontal)


class Geometry(NamedTuple):
    """Sizes of one call: `groups` are the weight's, `offset_groups` the offset's."""

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

    @classmethod
    def of(cls, input: Tensor, offset: Tensor, weight: Tensor, pairs: Pairs) -> Geometry:
        """The geometry of a call whose shapes have been checked.

        Raises ValueError where float32 cannot count the rows or columns of the input, or 32 bits not its pixels.
        """
        batch, channels, height, width = input.shape
        # Tables of the kernels add a border, of three rows at most.
        if max(height, width) >= 2**24 or (height + 3) * (width + 2) >= 2**31:
            raise ValueError(f"input of {height}x{width} is too large: 2**24 pixels along a side, or 2**31 in all")
        out_channels, group_channels, *kernel = weight.shape
        out_height, out_width = output_sizes(input, weight, pairs)
        groups, offset_groups = channels // group_channels, offset.shape[1] // (2 * kernel[0] * kernel[1])
        sizes = (batch, channels, height, width, out_channels, out_height, out_width)
        return cls(*sizes, *(tuple(pair) for pair in (kernel, *pairs)), groups, offset_groups)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels(self) -> int:
        return self.out_height * self.out_width


def output_sizes(input: Tensor, weight: Tensor, pairs: Pairs) -> list[int]:
    """Output height and width, as for a plain convolution."""
    return [
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(input.shape[2:], weight.shape[2:], *pairs, strict=True)
    ]


# The next two also work on the symbolic sizes of a graph that torch.compile makes for any size.


def power_of_two(number: int) -> int:
    """The least power of two that is not smaller than `number`."""
    power = 1
    while power < number:
        power *= 2
    return power


def _common_divisor(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


class ChannelBlocks(NamedTuple):
    """How channels are cut into blocks of `samples` * `width` that a matrix product takes at once.

    A block lies in one weight group. It is `samples` offset groups of `width` channels each or, with one sample,
    a piece of a run: `run` channels that share weight group and offset group. The last piece of a run may be padded.
    """

    run: int
    samples: int
    width: int

    @property
    def size(self) -> int:
        return self.samples * self.width


def channel_blocks(channels: int, groups: int, offset_groups: int, wanted: int, least: int = 16) -> ChannelBlocks:
    """Cut `channels` into blocks of at most `wanted` and at least `least` channels, both powers of two."""
    per_group, per_offset = channels // groups, channels // offset_groups
    samples = wanted // per_offset
    if power_of_two(per_offset) == per_offset:
        # Neighbouring offset groups together fill a block where one alone is too narrow.
        while samples > 1 and (offset_groups % samples or per_group % (samples * per_offset)):
            samples //= 2
        if samples > 1 and samples * per_offset >= least:
            return ChannelBlocks(samples * per_offset, samples, per_offset)
    run = _common_divisor(per_group, per_offset)
    width = wanted
    while width > least and run % width:
        width //= 2
    if run % width:
        width = min(wanted, max(least, power_of_two(run)))
    return ChannelBlocks(run, 1, width)


def useful_share(channels: int, groups: int, offset_groups: int, out_channels: int) -> float:
    """The share of the products of 16x16 blocks that takes no padding: from near 0 to 1."""
    blocks = channel_blocks(channels, groups, offset_groups, 32)
    out = out_channels // groups
    blocks_per_run = -(-blocks.run // blocks.size)
    return blocks.run / (blocks_per_run * blocks.size) * out / (-(-out // 16) * 16)
