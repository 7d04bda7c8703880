"""The memory layout of maps (N, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether a tensor is channels-last and nothing else, as PyTorch's own convolutions see it."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def memory_format(x: Tensor) -> torch.memory_format:
    """`torch.channels_last` or `torch.contiguous_format`: the layout in which what is made of `x` should be."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
