"""Random numbers that follow from seeds alone, so that they are equal in every batch and on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def drawn_bits(seeds: Tensor, count: int) -> Tensor:
    """(N, count) int64 of 64 random bits, by seeds (N,) int64.

    They are the first numbers of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), whose sums wrap at 64 bits.
    """
    place = torch.arange(1, count + 1, device=seeds.device)
    x = seeds[:, None] + place * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ shifted(x, shift)) * factor
    return x ^ shifted(x, 31)


def shifted(x: Tensor, bits: int) -> Tensor:
    """`x >> bits` of unsigned numbers: the upper bits become zero."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def seeds_or_new(seeds: Tensor | None, count: int, device: torch.device) -> Tensor:
    """The seeds (count,) on a device; without any, such as PyTorch's generator gives."""
    if seeds is None:
        seeds = torch.randint(2**62, (count,), device="cpu")
    return seeds.to(device)
