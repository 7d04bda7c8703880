"""A convolution with its norm and activation, the norms that parts choose by name, and the layout of maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

Maps = Sequence[Tensor]  # of a pyramid or a backbone, fine to coarse: (N, C, h, w)


def make_norm(name: str, channels: int) -> nn.Module:
    """`"gn"`: GroupNorm, 32 groups where they divide `channels`, eps 1e-5; `"bn"`; `"none"`: identity.

    `"ln"` is over the channels of each pixel, eps 1e-6. `"gn8"` is `"gn"` with groups of 8 channels or more, as 256
    channels have: maps of one pixel can be normalised.
    """
    norms = {
        "gn": lambda c: nn.GroupNorm(math.gcd(32, c), c),
        "gn8": lambda c: nn.GroupNorm(math.gcd(32, c, max(c // 8, 1)), c),
        "bn": nn.BatchNorm2d,
        "ln": LayerNorm2d,
        "none": nn.Identity,
    }
    if name not in norms:
        raise ValueError(f"norm {name!r}; expected one of {', '.join(norms)}")
    return norms[name](channels)


class ConvNormAct(nn.Module):
    """Same-size convolution, norm, optional ReLU; the kernel is odd.

    The convolution has a bias exactly when there is no norm, unless `bias` says otherwise. Input
    (N, in_channels, H, W), output (N, out_channels, H, W). Weights start as in detectron2's `c2_xavier_fill`
    (Kaiming uniform, a = 1), the initialisation of every official neck (FACTS section 3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm: str = "none",
        act: bool = False,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        bias = norm == "none" if bias is None else bias
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.norm = make_norm(norm, out_channels)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()
        nn.init.kaiming_uniform_(self.conv.weight, a=1)
        if bias:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


def is_channels_last(x: Tensor) -> bool:
    """Whether a tensor is channels-last and nothing else, as PyTorch's own convolutions see it."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def memory_format(x: Tensor) -> torch.memory_format:
    """`torch.channels_last` or `torch.contiguous_format`: the layout in which what is made of `x` should be."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
