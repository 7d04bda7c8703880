"""Backbones: any timm image pyramid as four NCHW maps at strides 4, 8, 16 and 32.

timm builds the network and fetches its ImageNet weights; :class:`Backbone` chooses the levels, settles layout and input
sizes, gives Swin the exact computation of the segmentation Swin, and freezes and checkpoints on demand.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import freeze_batch_norm_2d
from timm.models import FeatureHookNet
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fapn_zoo.modules.backbones.frozen_norm import use_one_step
from fapn_zoo.modules.backbones.imagenet import build_features
from fapn_zoo.modules.backbones.swin_official import SWIN_OPTIONS, swin_blocks, use_official_order
from fapn_zoo.modules.layers.layout import memory_format
from fapn_zoo.zoo.backbones import BACKBONES, REHEARSED

STRIDES = (4, 8, 16, 32)
_SWIN_EPS = 1e-5
# sizes that tell apart networks that round up, round down or refuse, and the paddings that can help the latter two
_PROBE_SIZES = ((33, 38), (97, 131), (62, 64))
_DIVISORS = (1, 4, 32, 64)
# arguments that change neither levels nor sizes
_HARMLESS_OPTIONS = {"in_chans", "drop_rate", "drop_path_rate"}
# how timm families are told to take sizes other than the one they were trained at
_ANY_SIZE_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})


def timm_name(name: str) -> str:
    """Resolve a short name, or check a timm name (``arch`` or ``arch.tag``), and return the timm name.

    Raises:
        ValueError: nothing is called ``name``; the message offers the nearest names.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if name.startswith(("hf-hub:", "local-dir:")):
        return name
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = sorted({*BACKBONES, *timm.list_models()})
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "timm.list_models() lists them all"
        raise ValueError(f"unknown backbone {name!r}; {hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"unknown tag {tag!r} of backbone {architecture!r}; known: {', '.join(tags) or 'no tag'}")
    return name


class Backbone(nn.Module):
    """Four feature maps of an image, fine to coarse, from any timm network that is a pyramid.

    Args:
        name: short name (``fapn_zoo.zoo.backbones.BACKBONES``) or any timm name, with or without a tag.
        pretrained: fetch ImageNet weights through timm (for ``in_chans`` other than 3 it adapts the first layer).
        in_chans: channels of the input image, at least 1.
        norm: ``None`` keeps the network's own; ``"frozen_bn"`` turns every BatchNorm into constants: statistics and
            affine terms become buffers, and no longer count as parameters.
        frozen_stages: 0 to 4, see :meth:`freeze`.
        grad_checkpointing: see :meth:`set_grad_checkpointing`.
        stride_in_1x1: put the stride of a bottleneck on its first 1x1 convolution, where the original Caffe ResNets and
            detectron2's R-CNN weights have it, instead of on the 3x3. ResNets with bottlenecks only.
        multi_grid: dilations of the 3x3 convolutions of the last stage's blocks, such as DeepLab's ``(1, 2, 4)``; sizes
            of the maps do not change. ResNets with bottlenecks only.
        cache_dir: where the ImageNet weights are kept; None is the Hub client's own place.
        timm_kwargs: further arguments of the timm model, such as ``drop_path_rate``.

    Attributes:
        out_channels: channels of the four maps.
        strides: (4, 8, 16, 32).
        size_divisor: the image is padded, bottom and right with zeros, to a multiple of this before the network and
            the maps are cropped back, so that the map at stride ``s`` is always ``ceil(H / s) x ceil(W / s)``. It is 1
            (nothing padded) for networks that round up by themselves, such as ResNet, RegNet, EfficientNet, MobileNet,
            PVTv2 and TinyViT; 4 for Swin, as in the original; 32 or more for those that round down or refuse, such as
            ConvNeXt, EdgeNeXt and HRNet.
        fixed_size: ``(H, W)`` for the few networks that work at one size only (Hiera, MaxViT, CoaT ...), else ``None``.
            It is the size of their ImageNet weights, or the argument ``img_size``. Smaller images are padded to it,
            larger ones refused.
        body: the timm feature network.

    Raises:
        ValueError: unknown name or tag, no pyramid, an option that the network does not have.
        ConnectionError: ``pretrained=True`` and the weights can neither be fetched nor found in the cache.
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
        cache_dir: str | Path | None = None,
        **timm_kwargs: Any,
    ):
        super().__init__()
        if norm not in (None, "frozen_bn"):
            raise ValueError(f"unknown norm {norm!r} for a backbone; known: None, 'frozen_bn'")
        if in_chans < 1:
            raise ValueError(f"in_chans must be at least 1, got {in_chans}")
        self.name, self.timm_name, self.in_chans, self.strides = name, timm_name(name), in_chans, STRIDES
        options, self.size_divisor, self.fixed_size = _plan(self.timm_name, {**timm_kwargs, "in_chans": in_chans})
        self.body = build_features(self.timm_name, options, pretrained=pretrained, cache_dir=cache_dir)
        self.out_channels = tuple(self.body.feature_info.channels())
        self._frozen: frozenset[str] = frozenset()
        self.is_swin = bool(swin_blocks(self.body))
        if self.is_swin:
            use_official_order(self.body)
            for level, channels in enumerate(self.out_channels):
                self.add_module(f"norm{level}", nn.LayerNorm(channels, eps=_SWIN_EPS))
        if stride_in_1x1:
            _move_stride_to_1x1(self.body, name)
        if multi_grid:
            _dilate_last_stage(self.body, multi_grid, name)
        if norm == "frozen_bn":
            self.body = _with_frozen_batch_norm(self.body, name)
        if frozen_stages:
            self.freeze(frozen_stages)
        if grad_checkpointing:
            self.set_grad_checkpointing()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a normalised image ``x (N, in_chans, H, W)`` of any size to four maps ``(N, C, ceil(H/s), ceil(W/s))``.

        Raises:
            ValueError: the image exceeds :attr:`fixed_size`, where the network has one.
        """
        height, width = x.shape[-2:]
        padded = self.fixed_size is not None or self.size_divisor > 1
        if padded:
            bottom, right = self._padding(height, width)
            x = F.pad(x, (0, right, 0, bottom))
        features = self.body(x)
        if self.is_swin:
            features = [getattr(self, f"norm{level}")(feature) for level, feature in enumerate(features)]
        if _is_channels_last(self.body):
            layout = memory_format(x)
            features = [feature.permute(0, 3, 1, 2).contiguous(memory_format=layout) for feature in features]
        if padded:
            sizes = [(_ceil(height, stride), _ceil(width, stride)) for stride in self.strides]
            features = [feature[..., :h, :w] for feature, (h, w) in zip(features, sizes, strict=True)]
        return list(features)

    def _padding(self, height: int, width: int) -> tuple[int, int]:
        """Rows below and columns to the right that the network needs."""
        if self.fixed_size is None:
            divisor = self.size_divisor
            return _ceil(height, divisor) * divisor - height, _ceil(width, divisor) * divisor - width
        bottom, right = self.fixed_size[0] - height, self.fixed_size[1] - width
        if bottom < 0 or right < 0:
            raise ValueError(
                f"backbone {self.name!r} works at {self.fixed_size[0]}x{self.fixed_size[1]} only and the image is "
                f"{height}x{width}: build it with a larger img_size=(H, W), or take a backbone that is free of size"
            )
        return bottom, right

    def freeze(self, stages: int) -> None:
        """Freeze the stem and the first ``stages`` levels: no gradients, and BatchNorm statistics stay as they are.

        ``0`` lifts an earlier freeze; detectron2's ``FREEZE_AT: 2`` (stem and res2) is ``freeze(1)``. The state
        survives ``train()``. The output norms of Swin belong to the pyramid, not to the levels, and stay trainable.

        Raises:
            ValueError: ``stages`` is not within 0 to 4.
        """
        if not 0 <= stages <= len(self.strides):
            raise ValueError(f"frozen_stages must be 0 to {len(self.strides)} for {self.name!r}, got {stages}")
        parameters = dict(self.body.named_parameters())
        for key in self._frozen:
            parameters[key].requires_grad_(True)
        frozen = _parameters_before(self.body, stages - 1, self.in_chans, self.fixed_size) if stages else ()
        self._frozen = frozenset(frozen)
        for key in self._frozen:
            parameters[key].requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, except that BatchNorms of frozen levels go on using and keeping their statistics."""
        super().train(mode)
        owners = {key.rpartition(".")[0] for key in self._frozen}
        for key, module in self.body.named_modules():
            if key in owners and isinstance(module, _BatchNorm):
                module.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of storing them, as finely as timm offers for the network.

        Gradients are the same; BatchNorms in training mode see each batch twice and so update their statistics twice.

        Raises:
            ValueError: the network has no gradient checkpointing.
        """
        try:
            if isinstance(getattr(self.body, "model", None), nn.Module):  # timm's getter keeps the whole network
                self.body.model.set_grad_checkpointing(enable)
            elif isinstance(self.body, FeatureHookNet) or not hasattr(self.body, "set_grad_checkpointing"):
                raise AttributeError("its feature hooks leave nothing to checkpoint")
            else:
                _checkpoint_stages(self.body, enable)
        except (AssertionError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"backbone {self.name!r} has no gradient checkpointing ({error})") from error


def _ceil(side: int, stride: int) -> int:
    """``side / stride`` rounded up, in the form that exporters simplify best when ``side`` is a symbol."""
    return (side + stride - 1) // stride


def _levels(name: str, reductions: Sequence[int]) -> tuple[int, ...]:
    """Indices of the deepest levels with strides 4, 8, 16 and 32.

    Raises:
        ValueError: one of them is missing.
    """
    if not set(STRIDES) <= set(reductions):
        raise ValueError(
            f"backbone {name!r} is no pyramid: its levels have strides {', '.join(map(str, reductions))}, and 4, 8, 16 "
            "and 32 are needed; pyramids are for example resnet50, swin_t, convnextv2_tiny, pvt_v2_b2, hieradet_small"
        )
    return tuple(max(index for index, found in enumerate(reductions) if found == stride) for stride in STRIDES)


def _plan(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], int, tuple[int, int] | None]:
    """Find out how the network is to be built and fed.

    Returns:
        timm arguments; divisor of the input size; the input size of a network that has only one, else ``None``.
    """
    reserved = {"features_only", "out_indices"} & set(options)
    if reserved:
        raise ValueError(f"{', '.join(sorted(reserved))}: a Backbone chooses these itself")
    architecture = name.partition(".")[0]
    if architecture in REHEARSED and options.keys() <= _HARMLESS_OPTIONS:
        levels, divisor = REHEARSED[architecture]
        extra = dict(SWIN_OPTIONS) if architecture.startswith("swin") else {}
        return {**options, **extra, "out_indices": levels}, divisor, None
    items = tuple(sorted(options.items()))
    try:
        hash(items)
    except TypeError:  # lists among the arguments
        extra, divisor, only = _rehearse.__wrapped__(name, items)
    else:
        extra, divisor, only = _rehearse(name, items)
    return {**options, **dict(extra)}, divisor, only


@functools.lru_cache(maxsize=256)
def _rehearse(name: str, items: tuple) -> tuple[tuple, int, tuple[int, int] | None]:
    """Build the network without memory and run it without computing (meta device), at sizes that tell how it rounds.

    timm states neither which levels a network has before it is built, nor which sizes it takes and how it rounds them.

    Returns:
        as :func:`_plan`, with only those timm arguments that come on top of ``items``.
    """
    options = dict(items)
    with torch.device("meta"):
        network = build_features(name, options)
        added: dict[str, Any] = dict(SWIN_OPTIONS) if swin_blocks(network) else {}
        added["out_indices"] = _levels(name, [int(level["reduction"]) for level in network.feature_info.info])
        for extra in _ANY_SIZE_OPTIONS:
            try:
                network = build_features(name, {**options, **added, **extra})
            except ValueError:
                continue  # the family does not know this option
            for divisor in _DIVISORS:
                sizes = [tuple(_ceil(side, divisor) * divisor for side in size) for size in _PROBE_SIZES]
                if all(_rounds_up(network, options["in_chans"], size) for size in sizes):
                    return (*added.items(), *extra.items()), divisor, None
        network = build_features(name, {**options, **added})
        only = options.get("img_size") or network.pretrained_cfg["input_size"][-2:]
        only = (only, only) if isinstance(only, int) else tuple(only)
        if _rounds_up(network, options["in_chans"], only):
            return tuple(added.items()), 1, only
    raise ValueError(
        f"backbone {name!r} gives maps that no zero padding of the image makes a pyramid with strides 4, 8, 16 and 32"
    )


def _is_channels_last(body: nn.Module) -> bool:
    """Whether the maps of a timm feature network are NHWC."""
    layout = getattr(body, "output_fmt", "NCHW")
    return getattr(layout, "value", layout) == "NHWC"


@torch.no_grad()
def _rounds_up(network: nn.Module, in_chans: int, size: Sequence[int]) -> bool:
    """Whether a network on the meta device takes an image of ``size`` and gives maps of ``ceil(size / stride)``."""
    try:
        features = network.eval()(torch.empty(1, in_chans, *size, device="meta"))
    except Exception:  # whatever a network raises at a size that it does not take
        return False
    first = 1 if _is_channels_last(network) else 2
    found = [tuple(feature.shape[first : first + 2]) for feature in features]
    return found == [(_ceil(size[0], stride), _ceil(size[1], stride)) for stride in STRIDES]


def _parameters_before(body: nn.Module, level: int, in_chans: int, size: Sequence[int] | None) -> list[str]:
    """Names of the parameters that the map of ``level`` depends on.

    Asked of autograd on the meta device, which knows it for every family, however its modules are named and nested.
    """
    names = [key for key, _ in body.named_parameters()]
    state = {key: torch.empty_like(value, device="meta") for key, value in body.named_buffers()}
    state |= {key: torch.empty_like(value, device="meta", requires_grad=True) for key, value in body.named_parameters()}
    x = torch.empty(1, in_chans, *(size or (64, 64)), device="meta")
    was_training = body.training
    # recomputing would happen after the call, when the real parameters are back in place
    thrifty = [module for module in body.modules() if getattr(module, "grad_checkpointing", False)]
    for module in thrifty:
        module.grad_checkpointing = False
    with torch.enable_grad():
        feature = functional_call(body.eval(), state, (x,))[level]
        gradients = torch.autograd.grad(feature.sum(), [state[key] for key in names], allow_unused=True)
    for module in thrifty:
        module.grad_checkpointing = True
    body.train(was_training)
    return [key for key, gradient in zip(names, gradients, strict=True) if gradient is not None]


def _checkpoint_stages(body: nn.Module, enable: bool) -> None:
    """Switch checkpointing inside the stages where timm has it there, else at the borders of the stages."""
    inner = [module for module in body.modules() if module is not body and hasattr(module, "grad_checkpointing")]
    if not inner:
        body.set_grad_checkpointing(enable)
    for module in inner:
        module.grad_checkpointing = enable


def _move_stride_to_1x1(body: nn.Module, name: str) -> None:
    """Let the first convolution of each strided ResNet bottleneck take the stride; weights fit either way.

    Raises:
        ValueError: the network has no strided bottlenecks, or anti-aliased ones.
    """
    blocks = [m for m in body.modules() if isinstance(m, Bottleneck) and m.conv2.stride != (1, 1)]
    if not blocks:
        raise ValueError(f"stride_in_1x1 needs a ResNet with bottleneck blocks such as resnet50, not {name!r}")
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _dilate_last_stage(body: nn.Module, dilations: Sequence[int], name: str) -> None:
    """Give each bottleneck of a ResNet's last stage a dilation of its own; weights fit either way.

    Raises:
        ValueError: the last stage is not made of as many bottlenecks.
    """
    blocks = [block for block in getattr(body, "layer4", ()) if isinstance(block, Bottleneck)]
    if len(blocks) != len(dilations):
        raise ValueError(
            f"multi_grid={tuple(dilations)} needs a ResNet with {len(dilations)} bottleneck blocks in its "
            f"last stage, and {name!r} has {len(blocks)}"
        )
    for block, dilation in zip(blocks, dilations, strict=True):
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)


def _with_frozen_batch_norm(body: nn.Module, name: str) -> nn.Module:
    """Replace each BatchNorm, fused activation included, by its frozen counterpart.

    Raises:
        ValueError: there is none, or one of a kind that cannot be replaced.
    """
    if not any(isinstance(module, _BatchNorm) for module in body.modules()):
        raise ValueError(f"norm='frozen_bn' needs a backbone with BatchNorm, and {name!r} has none")
    body = freeze_batch_norm_2d(body)
    use_one_step(body)
    left = {type(module).__name__ for module in body.modules() if isinstance(module, _BatchNorm)}
    if left:
        raise ValueError(f"norm='frozen_bn' cannot freeze {', '.join(sorted(left))} of backbone {name!r}")
    return body
