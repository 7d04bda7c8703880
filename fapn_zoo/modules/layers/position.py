"""Positions on a map, as numbers that attention can compare."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position(height: int, width: int, channels: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The position embedding of DETR (channels, height, width): the first half encodes rows, the second columns.

    Positions count from 1 and are scaled to 2 pi; sine and cosine alternate, temperature 10000. `channels` is a
    multiple of 4.
    """
    half = channels // 2
    frequency = 10000 ** (2 * (torch.arange(half, device=device) // 2) / half)

    def axis(size: int) -> Tensor:
        position = torch.arange(1, size + 1, device=device, dtype=torch.float32)
        angle = (position / (position[-1:] + 1e-6) * 2 * math.pi)[:, None] / frequency
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    rows = axis(height).t()[:, :, None].expand(half, height, width)
    columns = axis(width).t()[:, None, :].expand(half, height, width)
    return torch.cat([rows, columns]).to(dtype)
