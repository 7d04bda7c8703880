"""Panoptic FCN: kernels of objects and of stuff, found at positions, make masks (Li et al., CVPR 2021; FACTS 4).

N images, T classes of things, S of stuff. The choice among positions is made by `fapn_zoo.postprocess.panoptic_fcn`, so
that what the network gives is maps alone, while predicting and while training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.deform_conv.conv import ModulatedDeformConv
from fapn_zoo.modules.heads.outputs import ClassRows, MergeRule, PanopticFCNOutput, count_things
from fapn_zoo.modules.heads.per_pixel import SemanticFPN
from fapn_zoo.modules.layers.conv import ConvNormAct, Maps, make_norm

PRIOR = -2.19  # bias of position logits at the start: a probability of 0.1


class DeformNormAct(nn.Module):
    """A modulated deformable 3x3 convolution that reads its offsets from its own input, norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv = ModulatedDeformConv(out_channels, 1, in_channels=in_channels, bias=norm == "none")
        self.norm = make_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        return F.relu(self.norm(self.conv(x, *self.conv.moves(x))))


class PositionHead(nn.Module):
    """Where objects have their centres and stuff its regions, of every class; one head for all levels.

    Args:
        in_channels: of a level. channels, convs, norm: width, number and norm of the deformable convolutions.
        things: T. stuff: S + 1, of which the first is all things together.
    """

    def __init__(self, in_channels: int, channels: int, things: int, stuff: int, convs: int, norm: str) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * convs
        self.layers = nn.Sequential(*(DeformNormAct(a, b, norm) for a, b in zip(widths, widths[1:], strict=False)))
        self.centres, self.regions = (nn.Conv2d(widths[-1], count, 3, padding=1) for count in (things, stuff))
        for conv in (self.centres, self.regions):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.constant_(conv.bias, PRIOR)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> logits (N, T, h, w) and (N, S + 1, h, w)."""
        x = self.layers(x)
        return self.centres(x), self.regions(x)


class PanopticFCNHead(nn.Module):
    """Positions and kernels on five levels from stride 8 on, and features at stride 4 which kernels make masks of.

    Args:
        in_channels: channels of the pyramid, of six levels.
        feature_channels: channels of the coarsest backbone map; not used, every head takes it.
        num_classes: K.
        things: ids of the countable ones of the K classes; empty: all are.
        channels, convs, norm: width and number of layers of the heads and of the semantic branch, and their norm.
        embed: channels of the features, and numbers of a kernel.
        positions: of an object, whose kernels are trained.
        merge_score, merge_overlap, stuff_area: how an answer is made of objects and stuff, see `MergeRule`.

    Raises ValueError for things that are none of the classes, a number of layers or positions below 1, a score or
    overlap outside 0..1, or an area below 0.
    """

    classifier = {"position.centres": ClassRows("things"), "position.regions": ClassRows("stuff", first=1)}

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        num_classes: int,
        *,
        things: Sequence[int] = (),
        channels: int = 256,
        convs: int = 3,
        norm: str = "gn8",
        embed: int = 64,
        positions: int = 7,
        merge_score: float = 0.2,
        merge_overlap: float = 0.5,
        stuff_area: int = 4096,
    ) -> None:
        super().__init__()
        if min(convs, positions) < 1:
            raise ValueError(f"convs={convs}, positions={positions}; expected 1 or more of each")
        count = count_things(things, num_classes)
        self.positions, self.rule = positions, MergeRule.checked(merge_score, merge_overlap, stuff_area)
        self.semantic = SemanticFPN(in_channels, channels, norm)
        self.encoder = _layers(channels, embed, convs, "none")
        self.position = PositionHead(in_channels, channels, count, num_classes - count + 1, convs, norm)
        self.kernels = _layers(in_channels, channels, convs, norm)
        self.kernel_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.thing_embed, self.stuff_embed = (nn.Conv2d(channels, embed, 1) for _ in range(2))
        for conv in (self.kernel_out, self.thing_embed, self.stuff_embed):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, pyramid: Maps, features: Maps, *_: object) -> PanopticFCNOutput:
        """`pyramid[i]` (N, C, h / 2^i, w / 2^i), i = 0..5."""
        encoded = self.encoder(with_places(self.semantic(pyramid[:4])))
        centres, regions = zip(*map(self.position, pyramid[1:]), strict=True)
        kernels = [self.kernel_out(self.kernels(with_places(x))) for x in pyramid[1:]]
        things = tuple(map(self.thing_embed, kernels))
        # a kernel of stuff is a mean over many places, and zero outside of its region: the bias is added once, after it
        stuff = tuple(F.conv2d(x, self.stuff_embed.weight) for x in kernels)
        base = (encoded * self.stuff_embed.bias[:, None, None]).sum(dim=1)
        return PanopticFCNOutput(centres, regions, things, stuff, encoded, base, rule=self.rule)


def with_places(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, C + 2, h, w): also the row and the column of every pixel, from -1 to 1."""
    height, width = x.shape[-2:]
    # linspace would pin the sizes of an exported program
    counts = (torch.arange(side, device=x.device).float() for side in (height, width))
    rows, columns = ((2 * count / count[-1:].clamp(min=1) - 1).to(x.dtype) for count in counts)
    row, column = (place.expand(x.shape[0], 1, height, width) for place in (rows[:, None], columns))
    return torch.cat([x, row, column], dim=1)


def _layers(in_channels: int, channels: int, count: int, norm: str) -> nn.Sequential:
    """3x3 convolutions with norm and ReLU, the first of which also reads places."""
    widths = [in_channels + 2] + [channels] * count
    pairs = zip(widths, widths[1:], strict=False)
    return nn.Sequential(*(ConvNormAct(a, b, 3, norm=norm, act=True) for a, b in pairs))
