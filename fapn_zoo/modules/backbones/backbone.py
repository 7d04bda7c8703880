"""Backbones: any timm image pyramid or plain ViT as four NCHW maps at strides 4, 8, 16 and 32.

timm builds the network and fetches its ImageNet weights; `Backbone` chooses the levels, settles layout and input
sizes, gives Swin the exact computation of the segmentation Swin and plain ViTs a pyramid, and freezes and checkpoints
on demand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from timm.models import FeatureHookNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fapn_zoo.modules.backbones.imagenet import build_features
from fapn_zoo.modules.backbones.plain import PYRAMIDS, TOKENS, PlainPyramid, patch_of, power_of_two
from fapn_zoo.modules.backbones.plan import (
    STRIDES,
    ceil_div,
    depths,
    is_channels_last,
    parameters_before,
    plan,
    timm_name,
)
from fapn_zoo.modules.backbones.surgery import (
    dilate_last_stage,
    end_after,
    move_stride_to_1x1,
    swin_blocks,
    use_official_order,
    with_frozen_batch_norm,
)
from fapn_zoo.modules.layers.conv import memory_format


class Backbone(nn.Module):
    """Four feature maps of an image, fine to coarse, from any timm network that is a pyramid or a plain ViT.

    Args:
        name: short name (`fapn_zoo.zoo.parts.BACKBONES`) or any timm name, with or without a tag.
        pretrained: fetch ImageNet weights through timm (for `in_chans` other than 3 it adapts the first layer).
        in_chans: channels of the input image, at least 1.
        norm: `None` keeps the network's own; `"frozen_bn"` turns every BatchNorm into constants: statistics and
            affine terms become buffers, and no longer count as parameters.
        frozen_stages: 0 to 4, of a plain ViT 0 to its number of blocks, see `freeze`.
        grad_checkpointing: see `set_grad_checkpointing`.
        stride_in_1x1: put the stride of a bottleneck on its first 1x1 convolution, where the original Caffe ResNets and
            detectron2's R-CNN weights have it, instead of on the 3x3. ResNets with bottlenecks only.
        multi_grid: dilations of the 3x3 convolutions of the last stage's blocks, such as DeepLab's `(1, 2, 4)`; sizes
            of the maps do not change. ResNets with bottlenecks only.
        pyramid: how a plain ViT, whose maps have one stride, gets four (`PlainPyramid`): `"simple"`, its default, from
            the last block as ViTDet does, or `"levels"`, from the ends of four equal parts of its blocks. `"tokens"` is
            for a head that goes on with its last blocks: prefix tokens and one map, see `SplitTokens`.
        pyramid_channels: of those four maps.
        stages: 2 to 4, of an image pyramid: the network ends after so many levels, and the coarser maps are the last
            one with every second pixel. Most weights of a small network are in its last stage.
        cache_dir: where the ImageNet weights are kept; None is the Hub client's own place.
        timm_kwargs: further arguments of the timm model, such as `drop_path_rate`.

    Attributes:
        out_channels: channels of the four maps.
        strides: (4, 8, 16, 32).
        size_divisor: the image is padded, bottom and right with zeros, to a multiple of this before the network and
            the maps are cropped back, so that the map at stride `s` is always `ceil(H / s) x ceil(W / s)`. It is 1
            (nothing padded) for networks that round up by themselves, such as ResNet, RegNet, EfficientNet, MobileNet,
            PVTv2 and TinyViT; 4 for Swin, as in the original; 32 or more for those that round down or refuse, such as
            ConvNeXt, EdgeNeXt and HRNet. Of a plain ViT it is the size of a patch.
        fixed_size: `(H, W)` for the few networks that work at one size only (Hiera, MaxViT, CoaT, BEiT ...), else
            `None`. It is the size of their ImageNet weights, or the argument `img_size`. Smaller images are padded to
            it, larger ones refused.
        body: the timm feature network.
        pyramid: the layers that make four maps of a plain ViT's; None for a pyramid.
        patch: size of a plain ViT's patches in pixels, 0 for a pyramid.

    Raises ValueError for an unknown name or tag, no pyramid, an option that the network does not have; ConnectionError
    where `pretrained=True` and the weights can neither be fetched nor found in the cache.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        in_chans: int = 3,
        norm: str | None = None,
        frozen_stages: int = 0,
        grad_checkpointing: bool = False,
        stride_in_1x1: bool = False,
        multi_grid: Sequence[int] | None = None,
        pyramid: str | None = None,
        pyramid_channels: int = 256,
        stages: int = 4,
        cache_dir: str | Path | None = None,
        **timm_kwargs: Any,
    ) -> None:
        super().__init__()
        if norm not in (None, "frozen_bn"):
            raise ValueError(f"unknown norm {norm!r} for a backbone; known: None, 'frozen_bn'")
        if in_chans < 1:
            raise ValueError(f"in_chans must be at least 1, got {in_chans}")
        if pyramid not in (None, *PYRAMIDS, TOKENS):
            raise ValueError(f"unknown pyramid {pyramid!r} for a backbone; known: {', '.join(PYRAMIDS)}")
        self.name, self.timm_name, self.in_chans, self.strides = name, timm_name(name), in_chans, STRIDES
        self._asked = {**timm_kwargs, "in_chans": in_chans}
        options, self.size_divisor, self.fixed_size = plan(self.timm_name, self._asked, pyramid)
        if stages not in (2, 3, 4):
            raise ValueError(f"stages must be 2, 3 or 4, got {stages!r}")
        if stages < len(STRIDES):
            options["out_indices"] = options["out_indices"][:stages]
        self.body = build_features(self.timm_name, options, pretrained=pretrained, cache_dir=cache_dir)
        channels = tuple(self.body.feature_info.channels())
        if stages < len(STRIDES):
            end_after(self.body, name)
        self.out_channels = (*channels, *channels[-1:] * (len(STRIDES) - stages))
        self.pyramid: PlainPyramid | None = None
        self.patch = patch_of(self.body)
        if pyramid == TOKENS:
            self.out_channels *= 2
        elif self.patch:
            self.pyramid = PlainPyramid(self.out_channels, self.patch, STRIDES, pyramid_channels)
            self.out_channels = (pyramid_channels,) * len(STRIDES)
        self._frozen: frozenset[str] = frozenset()
        self.is_swin = bool(swin_blocks(self.body))
        if self.is_swin:
            use_official_order(self.body)
            for level, channels in enumerate(self.out_channels):
                self.add_module(f"norm{level}", nn.LayerNorm(channels, eps=1e-5))
        if stride_in_1x1:
            move_stride_to_1x1(self.body, name)
        if multi_grid:
            dilate_last_stage(self.body, multi_grid, name)
        if norm == "frozen_bn":
            self.body = with_frozen_batch_norm(self.body, name)
        if frozen_stages:
            self.freeze(frozen_stages)
        if grad_checkpointing:
            self.set_grad_checkpointing()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a normalised image `x (N, in_chans, H, W)` of any size to four maps `(N, C, ceil(H/s), ceil(W/s))`.

        Raises ValueError for an image that exceeds `fixed_size`, where the network has one.
        """
        height, width = x.shape[-2:]
        padded = self.fixed_size is not None or self.size_divisor > 1
        if padded:
            bottom, right = self._padding(height, width)
            x = F.pad(x, (0, right, 0, bottom))
        features = self.body(x)
        if self.patch and self.pyramid is None:
            return features
        if self.is_swin:
            features = [getattr(self, f"norm{level}")(feature) for level, feature in enumerate(features)]
        if is_channels_last(self.body):
            layout = memory_format(x)
            features = [feature.permute(0, 3, 1, 2).contiguous(memory_format=layout) for feature in features]
        if self.pyramid is not None:
            features = self.pyramid(features)
        while len(features) < len(self.strides):
            features = [*features, features[-1][..., ::2, ::2]]
        if padded:
            sizes = [(ceil_div(height, stride), ceil_div(width, stride)) for stride in self.strides]
            features = [feature[..., :h, :w] for feature, (h, w) in zip(features, sizes, strict=True)]
        return list(features)

    def _padding(self, height: int, width: int) -> tuple[int, int]:
        """Rows below and columns to the right that the network needs."""
        if self.fixed_size is None:
            divisor = self.size_divisor
            # A patch of 14 pixels becomes cells of 16, the last of which lies within the patches as well.
            cell = power_of_two(divisor) if self.pyramid is not None else 1
            bottom, right = (ceil_div(ceil_div(side, cell) * cell, divisor) * divisor for side in (height, width))
            return bottom - height, right - width
        bottom, right = self.fixed_size[0] - height, self.fixed_size[1] - width
        if bottom < 0 or right < 0:
            raise ValueError(
                f"backbone {self.name!r} works at {self.fixed_size[0]}x{self.fixed_size[1]} only and the image is "
                f"{height}x{width}: build it with a larger img_size=(H, W), or take a backbone that is free of size"
            )
        return bottom, right

    def freeze(self, stages: int) -> None:
        """Freeze the stem and the first `stages` (0 to 4) levels: no gradients, and BatchNorm statistics stay.

        `0` lifts an earlier freeze; detectron2's `FREEZE_AT: 2` (stem and res2) is `freeze(1)`. The state
        survives `train()`. The output norms of Swin belong to the pyramid, not to the levels, and stay trainable.
        Of a plain ViT the stages are its blocks; the last norm goes with the last block, and the pyramid goes on
        learning.
        """
        layers = self.depths() if self.patch and stages else {}
        most = max(layers.values(), default=len(self.strides))
        if not 0 <= stages <= most:
            raise ValueError(f"frozen_stages must be 0 to {most} for {self.name!r}, got {stages}")
        parameters = dict(self.body.named_parameters())
        for key in self._frozen:
            parameters[key].requires_grad_(True)
        frozen = [key for key, layer in layers.items() if layer <= stages]
        if stages and not layers:
            frozen = parameters_before(self.body, stages - 1, self.in_chans, self.fixed_size)
        self._frozen = frozenset(frozen)
        for key in self._frozen:
            parameters[key].requires_grad_(False)
        self.train(self.training)

    def depths(self) -> dict[str, int]:
        """The layer of each parameter of `body` by its name: 0 is the stem, then timm's finest groups in their order.

        Raises ValueError for a network of which timm does not know them.
        """
        return depths(self.timm_name, self._asked, self.body)

    def train(self, mode: bool = True) -> Backbone:
        """As `nn.Module.train`, except that BatchNorms of frozen levels go on using and keeping their statistics."""
        super().train(mode)
        owners = {key.rpartition(".")[0] for key in self._frozen}
        for key, module in self.body.named_modules():
            if key in owners and isinstance(module, _BatchNorm):
                module.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of storing them, as finely as timm offers for the network.

        Gradients are the same; BatchNorms in training mode see each batch twice and so update their statistics twice.
        Raises ValueError for a network that has no gradient checkpointing.
        """
        try:
            if isinstance(getattr(self.body, "model", None), nn.Module):  # timm's getter keeps the whole network
                self.body.model.set_grad_checkpointing(enable)
                return
            if isinstance(self.body, FeatureHookNet) or not hasattr(self.body, "set_grad_checkpointing"):
                raise AttributeError("its feature hooks leave nothing to checkpoint")
            # Inside the stages where timm has it there, else at their borders.
            stages = [m for m in self.body.modules() if m is not self.body and hasattr(m, "grad_checkpointing")]
            if not stages:
                self.body.set_grad_checkpointing(enable)
            for stage in stages:
                stage.grad_checkpointing = enable
        except (AssertionError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"backbone {self.name!r} has no gradient checkpointing ({error})") from error
