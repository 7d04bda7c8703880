"""From a complete description to modules: which classes, with which arguments."""

from __future__ import annotations

import importlib
import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from fapn_zoo import _load
from fapn_zoo._registry import nearest
from fapn_zoo._spec import ModelSpec
from fapn_zoo.backbones import Backbone
from fapn_zoo.models import SegmentationModel
from fapn_zoo.zoo.parts import HEADS, NECKS

# Arguments of the parts that building itself decides.
RESERVED = {
    "backbone": {"self", "name", "pretrained", "in_chans", "cache_dir"},
    "neck": {"self", "in_channels", "num_outputs", "extra_blocks"},
    "head": {"self", "in_channels", "feature_channels", "num_classes"},
}


def build(
    spec: ModelSpec, *, pretrained_backbone: bool = False, empty: bool = False, cache_dir: str | Path | None = None
) -> SegmentationModel:
    """The modules of a complete description, with fresh weights; or with none yet, for `_load.assign_tensors`.

    Raises ValueError where the description is not complete.
    """
    if spec.backbone is None:
        raise ValueError(f"{spec.name!r} is an architecture: pass backbone= (a short name or any timm pyramid)")
    if spec.num_classes is None:
        raise ValueError(f"{spec.name!r} has no label set: pass num_classes=")
    neck_class, fixed = NECKS[spec.neck]
    neck_class, head_class = _part(neck_class), _part(HEADS[spec.head])
    args = _split_args(spec, neck_class, head_class)

    with _load.WithoutInit() if empty else nullcontext():
        backbone = Backbone(
            spec.backbone, pretrained=pretrained_backbone, in_chans=spec.in_chans, cache_dir=cache_dir,
            **args["backbone"],
        )
        neck_args = {"dialect": head_class.default_dialect} | fixed | args["neck"]
        neck = neck_class(backbone.out_channels, num_outputs=head_class.pyramid_levels, **neck_args)
        head = head_class(neck.out_channels, backbone.out_channels[-1], spec.num_classes, **args["head"])
        return SegmentationModel(backbone, neck, head, spec)


def _part(path: str) -> type[nn.Module]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _split_args(spec: ModelSpec, neck_class: type, head_class: type) -> dict[str, dict[str, Any]]:
    """``{"neck_norm": "gn"}`` -> ``{"neck": {"norm": "gn"}}``; raises ValueError for what no part takes."""
    parts = {"backbone": Backbone, "neck": neck_class, "head": head_class}
    split: dict[str, dict[str, Any]] = {part: {} for part in parts}
    allowed = {
        f"{part}_{name}"
        for part, cls in parts.items()
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name not in RESERVED[part] and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    for key, value in spec.args.items():
        part, _, name = key.partition("_")
        # The backbone hands what it does not know to timm, which refuses unknown arguments itself.
        if key not in allowed and not (part == "backbone" and name and name not in RESERVED[part]):
            raise ValueError(f"unknown argument {key!r} for {spec.name!r}{nearest(key, sorted(allowed))}; "
                             f"known: {', '.join(sorted(allowed))}")
        split[part][name] = value
    return split
