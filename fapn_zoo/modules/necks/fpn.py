"""The feature pyramid network (Lin et al., CVPR 2017), the baseline that FaPN is measured against."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.layers.conv import ConvNormAct
from fapn_zoo.modules.necks.common import Neck, resolve_norm, sum_into


class FPN(Neck):
    """Top-down pathway by nearest upsampling and addition, in the two forms that the official models use.

    * `dialect="detectron2"`: 1x1 laterals and 3x3 outputs with bias, no norms; the sum *before* the output
      convolution flows down, and the coarsest level has an output convolution too.
    * `dialect="maskformer"`: 1x1 laterals + GN, 3x3 outputs + GN + ReLU; the *output* flows down, and the coarsest
      level is one 3x3 convolution + GN + ReLU of its feature (FACTS section 2).

    Args:
        in_channels: channels per level, fine to coarse.
        out_channels: channels of every output.
        dialect: see above.
        norm: `"gn"`, `"bn"` or `"none"`; None takes the dialect's own.
        extra_convs: 3x3 convolutions added to every output, without norm: the "extra 3x3" row of the paper's
            ablation table is 2 per level (33.4 M parameters with PointRend R50, FACTS section 5).
        num_outputs, extra_blocks: see `Neck`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        dialect: str = "detectron2",
        norm: str | None = None,
        extra_convs: int = 0,
        num_outputs: int | None = None,
        extra_blocks: nn.Module | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, num_outputs, extra_blocks)
        norm = resolve_norm(norm, dialect)
        self.dialect = dialect
        maskformer = dialect == "maskformer"
        laterals = self.in_channels[:-1] if maskformer else self.in_channels
        self.lateral = nn.ModuleList(ConvNormAct(c, out_channels, 1, norm=norm) for c in laterals)
        sources = [out_channels] * (self.num_levels - 1) + [self.in_channels[-1] if maskformer else out_channels]
        sources = sources if maskformer else sources[: self.num_outputs]
        self.output = nn.ModuleList(ConvNormAct(c, out_channels, 3, norm=norm, act=maskformer) for c in sources)
        self.extra = nn.ModuleList(
            nn.Sequential(*(ConvNormAct(out_channels, out_channels, 3) for _ in range(extra_convs)))
            for _ in range(self.num_outputs)
        )

    def pyramid(self, features: list[Tensor]) -> list[Tensor]:
        outputs: list[Tensor] = []
        flow: Tensor | None = None
        for level in reversed(range(self.num_levels)):
            # The coarsest level of MaskFormer's dialect has no lateral: its output convolution reads the feature.
            x = self.lateral[level](features[level]) if level < len(self.lateral) else features[level]
            if flow is not None:
                x = sum_into(F.interpolate(flow, size=x.shape[-2:], mode="nearest"), x)
            output = self.output[level](x) if level < len(self.output) else x
            flow = output if self.dialect == "maskformer" else x
            outputs.insert(0, output)
        return [extra(out) for extra, out in zip(self.extra, outputs, strict=False)]
