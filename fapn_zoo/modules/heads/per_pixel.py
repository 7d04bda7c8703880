"""Heads that score every pixel on its own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import ClassRows, SemanticOutput
from fapn_zoo.modules.layers.conv import ConvNormAct, Maps


class PerPixelHead(nn.Module):
    """A 1x1 classifier on mask features: the per-pixel baseline of MaskFormer (FACTS section 2).

    Args:
        in_channels: channels of the neck's outputs.
        feature_channels: channels of the coarsest backbone map; not used, every head takes it.
        num_classes: K.
        mask_channels: channels of the 3x3 convolution before the classifier; 0 classifies the finest neck output
            as it is, which the real-time models do.
        dropout: probability of zeroing a channel before the classifier, while training.
    """

    classifier = {"predictor": ClassRows()}

    def __init__(
        self, in_channels: int, feature_channels: int, num_classes: int, mask_channels: int = 256, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.mask_features = ConvNormAct(in_channels, mask_channels, 3) if mask_channels else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(mask_channels or in_channels, num_classes, 1)

    def forward(self, pyramid: Maps, features: Maps, *_: object) -> SemanticOutput:
        """Uses `pyramid[0]` (N, C, h, w); logits are (N, K, h, w)."""
        return SemanticOutput(self.predictor(self.dropout(self.mask_features(pyramid[0]))))


class SemanticFPN(nn.Module):
    """The semantic branch of Panoptic FPN without its classifier (Kirillov et al., CVPR 2019; FACTS section 3).

    Every level is brought to stride 4 by steps of 3x3 convolution, GroupNorm, ReLU and doubling; the levels are
    summed. Each doubling goes to the size of the next finer level, which for inputs that are multiples of 32 is exactly
    twice the size and otherwise keeps levels aligned.

    Args:
        in_channels: channels of the neck's outputs.
        channels: width of the branches. norm: see `make_norm`.
        levels: how many neck outputs it reads.
    """

    def __init__(self, in_channels: int, channels: int = 128, norm: str = "gn", levels: int = 4) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(in_channels if step == 0 else channels, channels, 3, norm=norm, act=True, bias=False)
                for step in range(max(1, level))
            )
            for level in range(levels)
        )

    def forward(self, pyramid: Maps) -> Tensor:
        """`pyramid[i]` (N, C, h / 2^i, w / 2^i) -> (N, channels, h, w)."""
        sizes = [x.shape[-2:] for x in pyramid]
        total = 0
        for level, branch in enumerate(self.branches):
            x = pyramid[level]
            for step, conv in enumerate(branch):
                x = conv(x)
                if level:
                    x = F.interpolate(x, size=sizes[level - 1 - step], mode="bilinear", align_corners=False)
            total = total + x
        return total


class SemanticFPNHead(SemanticFPN):
    """`SemanticFPN` and a 1x1 classifier on the sum.

    Args: as `PerPixelHead`, and those of `SemanticFPN`.
    """

    classifier = {"predictor": ClassRows()}

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        num_classes: int,
        *,
        channels: int = 128,
        norm: str = "gn",
        levels: int = 4,
    ) -> None:
        super().__init__(in_channels, channels, norm, levels)
        self.predictor = nn.Conv2d(channels, num_classes, 1)

    def forward(self, pyramid: Maps, features: Maps, *_: object) -> SemanticOutput:
        """`pyramid[i]` (N, C, h / 2^i, w / 2^i); logits are (N, K, h, w)."""
        return SemanticOutput(self.predictor(super().forward(pyramid)))
