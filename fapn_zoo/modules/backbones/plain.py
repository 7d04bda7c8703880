"""Plain vision transformers as pyramids: all their maps have one stride, the size of a patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fapn_zoo.modules.layers.conv import ConvNormAct

PYRAMIDS = ("simple", "levels")
TOKENS = "tokens"  # in place of a pyramid, for heads that go on with the network's own blocks


class NormedTokens(FeatureGetterNet):
    """timm's maps of chosen blocks, class and register tokens dropped, each through the network's last norm.

    Where timm joins that norm to convolutions, as the neck of SAM's ViT, both are left out, as in ViTDet.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        infos = getattr(model.feature_info, "info", model.feature_info)
        super().__init__(model, norm=all(i.get("num_chs_norm", i["num_chs"]) == i["num_chs"] for i in infos), **options)


class SplitTokens(NormedTokens):
    """A ViT that stops before its last `late` blocks, which are run with tokens of others among its own (EoMT).

    Raises ValueError for a network whose blocks take no mask of attention.
    """

    late = 0

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        if type(model) is not VisionTransformer or not all(type(block) is Block for block in model.blocks):
            raise ValueError("other tokens can join ViTs of timm's plain kind only, such as vit_s, dinov2_s, siglip2_b")

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_chans, H, W) -> prefix tokens (N, P, C) and the others as a map (N, C, h, w)."""
        vit, size = self.model, self.model.patch_embed.dynamic_feat_size(x.shape[-2:])
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))
        for block in vit.blocks[: len(vit.blocks) - self.late]:
            x = self.run(block, x)
        prefix, tokens = x.tensor_split((vit.num_prefix_tokens,), dim=1)
        return [prefix, tokens.transpose(1, 2).unflatten(2, size)]

    def run(self, block: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """One block on tokens (N, T, C); `mask` (N, 1, T, T) bool is where the first T attend to the second."""
        if self.model.grad_checkpointing and self.training:
            return checkpoint(block, x, attn_mask=mask, use_reentrant=False)
        return block(x, attn_mask=mask)


def patch_of(body: nn.Module) -> int:
    """The one stride of all maps of a plain timm network, in pixels; 0 for a pyramid and other kinds of networks."""
    strides = {int(level["reduction"]) for level in body.feature_info.info}
    return strides.pop() if len(strides) == 1 and isinstance(body, FeatureGetterNet) else 0


def chosen_blocks(pyramid: str, depth: int) -> tuple[int, ...]:
    """Which of `depth` blocks a pyramid reads: the last (`"simple"`), or the ends of four equal parts (`"levels"`)."""
    if pyramid != "levels":
        return (depth - 1,)
    return tuple(max(depth * part // 4 - 1, 0) for part in (1, 2, 3, 4))


def power_of_two(patch: int) -> int:
    """The stride that maps of a patch size are made from: itself, or the power of two that it is nearest to."""
    return 2 ** round(math.log2(patch))


class PlainPyramid(nn.Module):
    """Maps of one stride -> four maps at `strides`: the simple pyramid of ViTDet (arXiv 2203.16527, section 3).

    Finer maps come from transposed 2x2 convolutions, which halve the channels (LayerNorm and GELU between two of
    them), coarser ones from a max-pool; each then goes through a 1x1 and a 3x3 convolution with LayerNorm. One map
    serves all four levels, or each level has a map of its own (as DPT reassembles them, arXiv 2103.13413).

    A patch that is no power of two is brought to the nearest one by bilinear sampling at the exact positions, so that
    every cell lies where its pixels are: cell i of the map at stride s stands for the pixels s * i to s * (i + 1).

    Args:
        in_channels: of the one map, or of each of the four.
        patch: their stride in pixels.
        strides: of the four results, powers of two.
        out_channels: of each of them.
    """

    def __init__(self, in_channels: Sequence[int], patch: int, strides: Sequence[int], out_channels: int) -> None:
        super().__init__()
        stride = power_of_two(patch)
        self.scale = patch / stride
        pairs = list(zip(strides, cycle(in_channels), strict=False))
        self.sample = nn.ModuleList(_sampler(channels, stride, wanted) for wanted, channels in pairs)
        widths = [channels // max(stride // wanted, 1) for wanted, channels in pairs]
        self.output = nn.ModuleList(
            nn.Sequential(
                ConvNormAct(width, out_channels, 1, norm="ln"), ConvNormAct(out_channels, out_channels, 3, norm="ln")
            )
            for width in widths
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One map or four, (N, C, h, w) each -> (N, out_channels, h', w'), which reach as far as the maps or further.

        Where a level is coarser than the maps, its last cells may stand for less than their pixels.
        """
        if self.scale != 1:
            maps = [F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False) for x in maps]
        steps = zip(cycle(maps), self.sample, self.output, strict=False)
        return [output(sample(x)) for x, sample, output in steps]


def _sampler(channels: int, stride: int, wanted: int) -> nn.Module:
    if wanted >= stride:
        factor = wanted // stride
        return nn.MaxPool2d(factor, factor, ceil_mode=True) if factor > 1 else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(int(math.log2(stride // wanted))):
        layers += [LayerNorm2d(channels), nn.GELU()] if layers else []
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    return nn.Sequential(*layers)
