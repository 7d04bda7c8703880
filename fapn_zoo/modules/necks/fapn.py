"""The feature-aligned pyramid network (Huang et al., ICCV 2021): alignment by deformable convolution, and selection.

Sections named below are those of FACTS, the description of what the official models compute.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.deform_conv.conv import ModulatedDeformConv
from fapn_zoo.modules.layers.conv import ConvNormAct
from fapn_zoo.modules.necks.fpn import Neck, sum_into

ALIGNMENTS = ("fam", "dcn", "deconv")
SELECTIONS = ("fsm", "se", "none")
STARTS = ("identity", "official")


class FeatureSelection(nn.Module):
    """FSM: emphasises channels by a global gate, then reduces them (paper section 3.2; section 0).

    g = sigmoid(W mean(x)); the result is a 1x1 convolution of `x + x * g`, or of `x * g` without the skip (the
    paper's squeeze-and-excitation row). (N, C, H, W) -> (N, out_channels, H, W). The mean runs over padding too.
    A single image is left as it is: its gate goes into the convolution's weight, which is smaller.
    """

    def __init__(self, in_channels: int, out_channels: int, *, skip: bool = True, norm: str = "none") -> None:
        super().__init__()
        self.skip = skip
        self.gate = ConvNormAct(in_channels, in_channels, 1, bias=False)
        self.reduce = ConvNormAct(in_channels, out_channels, 1, norm=norm, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        factor = 1 + factor if self.skip else factor
        if torch.compiler.is_compiling() or len(x) != 1:  # batches of one and of many shall be one program
            return self.reduce(x * factor)
        return self.reduce.norm(F.conv2d(x, self.reduce.conv.weight * factor))


class FeatureAlignment(nn.Module):
    """FAM: moves the coarse map onto the fine one by learned offsets (paper section 3.1; section 0, steps 1 to 4).

    `forward(fine, coarse)` with C channels each returns `relu(dcn(up(coarse))) + fine` at the fine size. Offsets
    come from a 1x1 convolution of fine and *twice* the upsampled coarse map, a factor of the official models. It is
    computed as the sum of two convolutions, the second one before upsampling: both are linear, each along other axes.

    `norm` is that of the offset feature. `reference=False` reads the offsets from the coarse map alone (the ablation
    without location reference).
    """

    def __init__(self, channels: int, *, deform_groups: int = 8, norm: str = "none", reference: bool = True) -> None:
        super().__init__()
        self.guide = ConvNormAct(2 * channels, channels, 1, norm=norm, bias=False) if reference else None
        self.dcn = ModulatedDeformConv(channels, deform_groups)

    def forward(self, fine: Tensor, coarse: Tensor, norm: nn.Module | None = None) -> Tensor:
        """`norm`: a norm owned by another module, applied to the offset feature as well."""
        if self.guide is None:
            up = _enlarged(coarse, fine)
            moves = self.dcn.moves(up)
        else:
            moves = self.dcn.moves(self._guided(fine, coarse, norm))
            up = _enlarged(coarse, fine)
        return sum_into(F.relu(self.dcn(up, *moves), inplace=True), fine)

    def _guided(self, fine: Tensor, coarse: Tensor, norm: nn.Module | None) -> Tensor:
        """What offsets and masks are read from, (N, C, H, W) of the fine size."""
        of_fine, of_coarse = self.guide.conv.weight.chunk(2, dim=1)
        guide = sum_into(F.conv2d(fine, of_fine), _enlarged(F.conv2d(coarse, 2 * of_coarse), fine))
        guide = self.guide.norm(guide)
        return guide if norm is None else norm(guide)


class DeconvAlignment(nn.Module):
    """The ablation's transposed 4x4 convolution in place of alignment: `relu(deconv(coarse)) + fine`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)

    def forward(self, fine: Tensor, coarse: Tensor, norm: nn.Module | None = None) -> Tensor:
        up = self.deconv(coarse)
        height, width = fine.shape[-2:]
        if not torch.compiler.is_compiling() and (up.shape[-2] < height or up.shape[-1] < width):
            raise ValueError(
                f"a stride-2 deconvolution makes {tuple(up.shape[-2:])} of the coarse map, "
                f"the fine map is {(height, width)}: levels must differ by a factor of 2"
            )
        return F.relu(up[..., :height, :width]) + fine


class FaPN(Neck):
    """Feature-aligned pyramid; a drop-in for torchvision's `FeaturePyramidNetwork`.

    The two official dialects (section 0):

    * `"detectron2"` (R-CNN family, PointRend, panoptic): feature selection on every level but the coarsest, no
      norms, a 1x1 convolution on the coarsest level; the *aligned* map flows down, a 3x3 convolution makes the output.
    * `"maskformer"`: plain 1x1 laterals, GroupNorm, a 3x3 convolution on the coarsest level; the *output* (3x3, GN,
      ReLU) flows down. One GroupNorm per level serves the output and the offset feature.

    Args:
        in_channels: channels per level, fine to coarse.
        out_channels: channels of every output; a multiple of `deform_groups`.
        dialect: see above.
        align: `"fam"`, `"dcn"` (no location reference) or `"deconv"` (no offsets), the paper's ablations.
        select: `"fsm"`, `"se"` (no skip) or `"none"`; None takes the dialect's own.
        norm: `"gn"`, `"bn"` or `"none"`; None takes the dialect's own.
        deform_groups: groups of channels that share offsets.
        init: `"identity"`: at first a coarse map is only enlarged, as in FPN, and alignment grows from there;
            `"official"`: uniform weights, of which masks of one half let 0.3 of the coarse map through.
        num_outputs, extra_blocks: see `Neck`.

    Raises ValueError for a choice outside those named, or channels that the groups do not divide.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        dialect: str = "detectron2",
        align: str = "fam",
        select: str | None = None,
        norm: str | None = None,
        deform_groups: int = 8,
        init: str = "identity",
        num_outputs: int | None = None,
        extra_blocks: nn.Module | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, dialect, num_outputs, extra_blocks)
        maskformer = dialect == "maskformer"
        norm = norm or ("gn" if maskformer else "none")
        select = select or ("none" if maskformer else "fsm")
        if align not in ALIGNMENTS:
            raise ValueError(f"align {align!r}; expected one of {', '.join(ALIGNMENTS)}")
        if select not in SELECTIONS:
            raise ValueError(f"select {select!r}; expected one of {', '.join(SELECTIONS)}")
        if init not in STARTS:
            raise ValueError(f"init {init!r}; expected one of {', '.join(STARTS)}")
        # Running statistics of two different maps must not mix, so only GroupNorm is shared.
        self.shares_norm = maskformer and norm == "gn"
        *fine_channels, top_channels = self.in_channels

        if maskformer:
            self.top = ConvNormAct(top_channels, out_channels, 3, norm=norm, act=True)
        else:
            self.top = nn.Conv2d(top_channels, out_channels, 1)
        self.lateral = nn.ModuleList(_lateral(c, out_channels, select, norm) for c in fine_channels)
        guide_norm = "none" if self.shares_norm else norm
        self.align = nn.ModuleList(_alignment(align, out_channels, deform_groups, guide_norm) for _ in fine_channels)
        if init == "identity":
            for module in filter(lambda module: isinstance(module, ModulatedDeformConv), self.align.modules()):
                module.start_as_identity()
        # In detectron2's dialect an output convolution serves its own level only.
        outputs = len(fine_channels) if maskformer else min(self.num_outputs, len(fine_channels))
        self.output = nn.ModuleList(
            ConvNormAct(out_channels, out_channels, 3, norm=norm, act=maskformer) for _ in range(outputs)
        )

    def pyramid(self, features: list[Tensor]) -> list[Tensor]:
        flow = self.top(features[-1])
        outputs = [flow]
        for level in reversed(range(self.num_levels - 1)):
            norm = self.output[level].norm if self.shares_norm else None
            aligned = self.align[level](self.lateral[level](features[level]), flow, norm)
            outputs.insert(0, self.output[level](aligned) if level < len(self.output) else aligned)
            flow = outputs[0] if self.dialect == "maskformer" else aligned
        return outputs


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _lateral(in_channels: int, out_channels: int, select: str, norm: str) -> nn.Module:
    if select == "none":
        return ConvNormAct(in_channels, out_channels, 1, norm=norm)
    return FeatureSelection(in_channels, out_channels, skip=select == "fsm", norm=norm)


def _alignment(kind: str, channels: int, deform_groups: int, norm: str) -> nn.Module:
    if kind == "deconv":
        return DeconvAlignment(channels)
    return FeatureAlignment(channels, deform_groups=deform_groups, norm=norm, reference=kind == "fam")
