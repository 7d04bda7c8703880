"""What timm does not say of a network before it is built: its levels and strides, and the sizes that it takes."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn
from torch.func import functional_call

from fapn_zoo.modules.backbones.imagenet import build_features
from fapn_zoo.modules.backbones.plain import TOKENS, NormedTokens, SplitTokens, chosen_blocks, patch_of, power_of_two
from fapn_zoo.modules.backbones.surgery import SWIN_OPTIONS, swin_blocks
from fapn_zoo.zoo.parts import BACKBONES, REHEARSED

STRIDES = (4, 8, 16, 32)
# sizes that tell apart networks that round up, round down or refuse, and the paddings that can help the latter two
_PROBE_SIZES = ((33, 38), (97, 131), (62, 64))
_DIVISORS = (1, 4, 32, 64)
# arguments that change neither levels nor sizes
_HARMLESS_OPTIONS = {"in_chans", "drop_rate", "drop_path_rate"}
# how timm families are told to take sizes other than the one they were trained at
_ANY_SIZE_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})


def timm_name(name: str) -> str:
    """The timm name of a short name, or a timm name (`arch` or `arch.tag`) itself.

    Raises ValueError where nothing is called `name`; the message offers the nearest names.
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


def plan(
    name: str, options: Mapping[str, Any], pyramid: str | None = None
) -> tuple[dict[str, Any], int, tuple[int, int] | None]:
    """timm arguments; divisor of the input size; the input size of a network that has only one, else `None`.

    `pyramid` is what a plain network's maps become; None: the simple one, where it is plain.
    """
    reserved = {"features_only", "out_indices", "feature_cls"} & set(options)
    if reserved:
        raise ValueError(f"{', '.join(sorted(reserved))}: a Backbone chooses these itself")
    architecture = name.partition(".")[0]
    if architecture in REHEARSED and not pyramid and options.keys() <= _HARMLESS_OPTIONS:
        levels, divisor = REHEARSED[architecture]
        extra = dict(SWIN_OPTIONS) if architecture.startswith("swin") else {}
        return {**options, **extra, "out_indices": levels}, divisor, None
    items = tuple(sorted(options.items()))
    try:
        extra, divisor, only = _rehearse(name, items, pyramid)
    except TypeError:  # lists among the arguments cannot be remembered
        extra, divisor, only = _rehearse.__wrapped__(name, items, pyramid)
    extra = dict(extra) | ({"feature_cls": SplitTokens} if pyramid == TOKENS else {})
    return {**options, **extra}, divisor, only


@functools.lru_cache(maxsize=256)
def _rehearse(name: str, items: tuple, pyramid: str | None = None) -> tuple[tuple, int, tuple[int, int] | None]:
    """Build the network without memory and run it without computing (meta device), at sizes that tell how it rounds.

    timm states neither which levels a network has before it is built, nor which sizes it takes and how it rounds them.
    Returns the same as `plan`, with only those timm arguments that come on top of `items`.
    """
    options = dict(items)
    with torch.device("meta"):
        network = build_features(name, options)
        added: dict[str, Any] = dict(SWIN_OPTIONS) if swin_blocks(network) else {}
        if patch := patch_of(network):
            added = _plain_levels(name, patch, len(network.feature_info.info), pyramid or "simple")
        else:
            added["out_indices"] = _levels(name, [int(level["reduction"]) for level in network.feature_info.info])
            if pyramid:
                raise ValueError(f"pyramid={pyramid!r} is for plain ViTs; backbone {name!r} is a pyramid by itself")
        divisors, strides = ((patch,), (patch,) * len(added["out_indices"])) if patch else (_DIVISORS, STRIDES)
        for extra in _ANY_SIZE_OPTIONS:
            if extra.keys() & options.keys():
                continue  # the caller has decided
            try:
                network = build_features(name, {**options, **added, **extra})
            except ValueError:
                continue  # the family does not know this option
            for divisor in divisors:
                sizes = [tuple(ceil_div(side, divisor) * divisor for side in size) for size in _PROBE_SIZES]
                if all(_rounds_up(network, options["in_chans"], size, strides) for size in sizes):
                    return (*added.items(), *extra.items()), divisor, None
        network = build_features(name, {**options, **added})
        only = options.get("img_size") or network.pretrained_cfg["input_size"][-2:]
        only = (only, only) if isinstance(only, int) else tuple(only)
        if _rounds_up(network, options["in_chans"], only, strides):
            return tuple(added.items()), patch or 1, only
    if patch:
        raise ValueError(
            f"backbone {name!r} turns images neither of any size nor of {only[0]}x{only[1]} into a map of its patches "
            f"of {patch} pixels; where it takes one size, img_size=(H, W) must be multiples of {patch}"
        )
    raise ValueError(
        f"backbone {name!r} gives maps that no zero padding of the image makes a pyramid with strides 4, 8, 16 and 32"
    )


def _plain_levels(name: str, patch: int, depth: int, pyramid: str) -> dict[str, Any]:
    """The timm arguments of a plain network; ValueError where it has too few blocks or its patches are out of reach."""
    if pyramid == "levels" and depth < len(STRIDES):
        raise ValueError(f"pyramid='levels' takes four blocks, and backbone {name!r} has {depth}")
    if power_of_two(patch) not in STRIDES:
        raise ValueError(f"backbone {name!r} has patches of {patch} pixels; maps are made of patches of 3 to 45")
    return {"out_indices": chosen_blocks(pyramid, depth), "feature_cls": NormedTokens}


def _levels(name: str, reductions: Sequence[int]) -> tuple[int, ...]:
    """Indices of the deepest levels with strides 4, 8, 16 and 32; ValueError where one of them is missing."""
    if not set(STRIDES) <= set(reductions):
        raise ValueError(
            f"backbone {name!r} is no pyramid: its levels have strides {', '.join(map(str, reductions))}, and 4, 8, 16 "
            "and 32 are needed, or a single one, which a plain ViT has (dinov2_s, vit_b); pyramids are for example "
            "resnet50, swin_t, convnextv2_tiny, pvt_v2_b2, hieradet_small"
        )
    return tuple(max(index for index, found in enumerate(reductions) if found == stride) for stride in STRIDES)


@torch.no_grad()
def _rounds_up(network: nn.Module, in_chans: int, size: Sequence[int], strides: Sequence[int] = STRIDES) -> bool:
    """Whether a network on the meta device takes an image of `size` and gives maps of `ceil(size / stride)`."""
    try:
        features = network.eval()(torch.empty(1, in_chans, *size, device="meta"))
    except Exception:  # whatever a network raises at a size that it does not take
        return False
    first = 1 if is_channels_last(network) else 2
    found = [tuple(feature.shape[first : first + 2]) for feature in features]
    return found == [(ceil_div(size[0], stride), ceil_div(size[1], stride)) for stride in strides]


def parameters_before(body: nn.Module, level: int, in_chans: int, size: Sequence[int] | None) -> list[str]:
    """Names of the parameters that the map of `level` depends on.

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


def depths(name: str, options: Mapping[str, Any], body: nn.Module) -> dict[str, int]:
    """Parameters of a feature network -> their layers by timm's group matcher: 0 for the stem, then 1, 2, ...

    Asked of the whole network on the meta device, because most feature networks have lost the matcher; ValueError where
    there is none.
    """
    with torch.device("meta"):
        whole = timm.create_model(name, **options)
    if not hasattr(whole, "group_matcher"):
        raise ValueError(f"timm does not know the order of the layers of backbone {name!r}: it has no group matcher")
    matcher = whole.group_matcher(coarse=False)
    if isinstance(matcher, dict) and isinstance(matcher.get("stem"), str):
        matcher["stem"] += "|rope"  # learned rotations, which all blocks share
    layers = {plain_key(key): layer for key, layer in group_parameters(whole, matcher, reverse=True).items()}
    return {key: layers[plain_key(key)] for key, _ in body.named_parameters()}


def plain_key(key: str) -> str:
    """A name under which timm's feature networks and whole networks agree: the former flatten or wrap some modules."""
    return key.removeprefix("model.").replace(".", "_")


def is_channels_last(body: nn.Module) -> bool:
    """Whether the maps of a timm feature network are NHWC."""
    layout = getattr(body, "output_fmt", "NCHW")
    return getattr(layout, "value", layout) == "NHWC"


def ceil_div(side: int, stride: int) -> int:
    """`side / stride` rounded up, in the form that exporters simplify best when `side` is a symbol."""
    return (side + stride - 1) // stride
