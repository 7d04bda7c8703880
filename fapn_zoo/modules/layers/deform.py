"""A deformable convolution with the convolution that says where it samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fapn_zoo.modules.deform_conv.conv import deform_conv2d
from fapn_zoo.modules.layers.conv import memory_format


class ModulatedDeformConv(nn.Module):
    """A 3x3 modulated deformable convolution (DCNv2) whose offsets and masks are read from a second map.

    `forward(x, *moves(guide))`: both (N, in_channels, H, W) -> (N, channels, H, W); without `in_channels` they have
    `channels` too. In two steps, so that the guide's memory is free for what follows: the more a CPU's allocator gives
    back to the system, the more has to come from there again, slowly. The 27 * groups channels of the offset
    convolution are 18 * groups offsets in torchvision's order, then 9 * groups masks before their sigmoid. Offsets
    start at zero and masks at one half, so a new module is half a plain convolution. Raises ValueError where groups do
    not divide the input's channels.
    """

    def __init__(self, channels: int, groups: int = 8, *, in_channels: int | None = None, bias: bool = True) -> None:
        super().__init__()
        in_channels = channels if in_channels is None else in_channels
        if in_channels % groups:
            raise ValueError(f"{in_channels} channels cannot be split into {groups} deformable groups")
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.offset_mask = nn.Conv2d(in_channels, 27 * groups, 3, padding=1)
        bound = (9 * in_channels) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Gives a new module weights that return `x`: under masks of one half, twice the Dirac kernel."""
        nn.init.dirac_(self.weight).mul_(2)

    def moves(self, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (N, 18 * groups, H, W), and masks (N, 9 * groups, H, W) in 0..1."""
        offset, mask = self.offset_mask(guide).split((18 * self.groups, 9 * self.groups), dim=1)
        if mask.requires_grad or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return offset, mask.sigmoid()
        return offset, mask.sigmoid_()

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        y = deform_conv2d(x, offset, self.weight, self.bias, padding=1, mask=mask)
        return y.contiguous(memory_format=memory_format(x))  # what follows would otherwise leave channels-last
