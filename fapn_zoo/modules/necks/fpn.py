"""What every neck shares, the feature pyramid network, the baseline that FaPN is measured against, and coarser levels.

Those are what a neck's `extra_blocks` makes beyond the coarsest map, built for the channels of the pyramid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.layers.conv import ConvNormAct

DIALECTS = ("detectron2", "maskformer")


class Neck(nn.Module):
    """Turns feature maps, fine to coarse, into as many maps of `out_channels` channels and unchanged sizes.

    Subclasses implement `pyramid`. Called with a sequence it returns a list; called with an ordered dictionary (as
    torchvision's `FeaturePyramidNetwork`) it returns one with the same keys. `num_outputs` keeps only that many
    of the finest maps, and no layer that serves none of them. `extra_blocks` is torchvision's: a module called as
    `(results, inputs, names)` that appends coarser levels.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        dialect: str,
        num_outputs: int | None,
        extra_blocks: nn.Module | None,
    ) -> None:
        super().__init__()
        if dialect not in DIALECTS:
            raise ValueError(f"dialect {dialect!r}; expected one of {', '.join(DIALECTS)}")
        if len(in_channels) < 2:
            raise ValueError(f"a pyramid needs two levels or more, in_channels has {len(in_channels)}")
        if num_outputs is not None and not 1 <= num_outputs <= len(in_channels):
            raise ValueError(f"num_outputs={num_outputs}; expected 1 to {len(in_channels)}, the number of levels")
        self.in_channels = tuple(in_channels)
        self.out_channels, self.dialect = out_channels, dialect
        self.num_levels = len(self.in_channels)
        self.num_outputs = num_outputs or self.num_levels
        self.extra_blocks = extra_blocks

    def forward(self, features: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor] | OrderedDict[str, Tensor]:
        """(N, in_channels[i], H_i, W_i), fine to coarse -> (N, out_channels, H_i, W_i), the finest num_outputs.

        Raises ValueError where the number of levels, their channels or the order of their sizes do not fit.
        """
        names = list(features) if isinstance(features, Mapping) else [str(i) for i in range(len(features))]
        maps = list(features.values()) if isinstance(features, Mapping) else list(features)
        self._check(maps)
        out, names = self.pyramid(maps)[: self.num_outputs], names[: self.num_outputs]
        if self.extra_blocks is not None:
            out, names = self.extra_blocks(out, maps, names)
        return OrderedDict(zip(names, out, strict=True)) if isinstance(features, Mapping) else out

    def _check(self, maps: list[Tensor]) -> None:
        if len(maps) != self.num_levels:
            raise ValueError(f"{type(self).__name__} was built for {self.num_levels} levels and got {len(maps)}")
        for level, (x, channels) in enumerate(zip(maps, self.in_channels, strict=True)):
            if x.shape[1] != channels:
                raise ValueError(f"level {level} has {x.shape[1]} channels, {type(self).__name__} expects {channels}")
        if torch.compiler.is_compiling():  # sizes may be symbols there, and a comparison would pin them
            return
        for level in range(1, len(maps)):
            fine, coarse = maps[level - 1].shape[-2:], maps[level].shape[-2:]
            if coarse[0] > fine[0] or coarse[1] > fine[1]:
                raise ValueError(
                    f"levels go from fine to coarse, but level {level - 1} is {tuple(fine)} and level {level} "
                    f"is {tuple(coarse)}"
                )


def sum_into(own: Tensor, other: Tensor) -> Tensor:
    """`own + other`, in the memory of `own` where no gradient can ask for it again.

    New memory for a large map is slow on a CPU. Nobody else may hold `own`.
    """
    if own.requires_grad or other.requires_grad or own.dtype != other.dtype:
        return own + other
    return own.add_(other)


class FPN(Neck):
    """The FPN of Lin et al. (CVPR 2017): top-down by nearest upsampling and addition, in the two official forms.

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
        super().__init__(in_channels, out_channels, dialect, num_outputs, extra_blocks)
        maskformer = dialect == "maskformer"
        norm = norm or ("gn" if maskformer else "none")
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


class NoNeck(nn.Module):
    """Hands on what the backbone gives, to a head that reads nothing else; `num_outputs` and `dialect` do nothing."""

    def __init__(self, in_channels: Sequence[int], *, num_outputs: int | None = None, dialect: str = "") -> None:
        super().__init__()
        self.in_channels, self.out_channels = tuple(in_channels), in_channels[-1]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return features


class SubsampledLevel(nn.Module):
    """One more level: every second row and column of the coarsest (p6 of the R-CNN family; FACTS section 3)."""

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()

    def forward(self, results: list[Tensor], inputs: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """(N, C, H, W), the last of `results` -> another one (N, C, ceil(H / 2), ceil(W / 2)), called "pool"."""
        return [*results, results[-1][:, :, ::2, ::2]], [*names, "pool"]


class ConvolvedLevels(nn.Module):
    """Two more levels by 3x3 convolutions of stride 2: of the coarsest, and of that one's ReLU (FACTS section 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p6, self.p7 = (nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))
        for conv in (self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, results: list[Tensor], inputs: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """(N, C, H, W), the last of `results` -> "p6" (N, C, ceil(H / 2), ceil(W / 2)), and "p7", half of that."""
        p6 = self.p6(results[-1])
        return [*results, p6, self.p7(p6.relu())], [*names, "p6", "p7"]
