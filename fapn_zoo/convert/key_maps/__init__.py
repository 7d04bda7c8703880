"""Which official names a model's tensors have: one small table over heads, necks and backbones, the rules beside it.

Rules are pairs of templates (`template.py`), official name first. Sources: FACTS sections 1 to 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fapn_zoo.convert.key_maps import backbones, detectron2, maskformer
from fapn_zoo.convert.key_maps.template import KeyMap, Pairs, Rule, below
from fapn_zoo.zoo.backbones import BACKBONES
from fapn_zoo.zoo.spec import ModelSpec

# head -> dialect of its release, rules
HEADS: dict[str, tuple[str, Pairs]] = {
    "perpixel": ("maskformer", maskformer.PER_PIXEL),
    "perpixel_plus": ("maskformer", maskformer.TRANSFORMER),
    "maskformer": ("maskformer", maskformer.TRANSFORMER + maskformer.CLASSES + maskformer.ENCODER),
    "semantic_fpn": ("detectron2", detectron2.SEMANTIC_FPN),
    "pointrend": ("detectron2", detectron2.POINTREND),
    "faster_rcnn": ("detectron2", detectron2.FASTER_RCNN),
    "mask_rcnn": ("detectron2", detectron2.FASTER_RCNN + detectron2.MASKS),
    "pointrend_rcnn": ("detectron2", detectron2.FASTER_RCNN + detectron2.POINTREND_RCNN),
    "panoptic_fcn": ("detectron2", detectron2.EXTRA_CONVS + detectron2.PANOPTIC_FCN),
    "panoptic_fpn": ("detectron2", detectron2.PANOPTIC_FPN),
}
# dialect, neck -> rules, second names of shared tensors
NECKS: dict[tuple[str, str], tuple[Pairs, Pairs]] = {
    ("maskformer", "fpn"): (maskformer.FPN, []),
    ("maskformer", "fapn"): (maskformer.FAPN, maskformer.FAPN_ALIASES),
    ("detectron2", "fpn"): (detectron2.FPN, []),
    ("detectron2", "fapn"): (detectron2.FAN, []),
}
# timm architecture -> rules, prefix of this package's names
BACKBONE_FAMILIES: list[tuple[str, Pairs, str]] = [
    (r"resnet\d+", backbones.PLAIN_STEM + backbones.STAGES, "backbone.body."),
    (r"resnet\d+s", backbones.DEEP_STEM + backbones.STAGES, "backbone.body."),
    (r"swin_(tiny|small|base|large)_patch4_window\d+_\d+", backbones.SWIN, "backbone."),
]
# detectron2 keeps the network that a pyramid reads one level deeper
BACKBONE_PREFIXES = {"maskformer": "backbone.", "detectron2": "backbone.bottom_up."}

# Names (shell patterns) that a converted model has no use for, and why.
DROPPED = {
    "criterion.empty_weight": "a constant of the training loss",
    "pixel_mean": "preprocessing is part of config.json",
    "pixel_std": "preprocessing is part of config.json",
    "*.relative_position_index": "follows from the window size",
    "*.attn_mask": "follows from the image size",
    "*.num_batches_tracked": "frozen norms count no batches",
    "*.cell_anchors.*": "anchors follow from the settings",
}


def empty_weight(bias: Tensor) -> Tensor:
    """The loss's class weights: "no object", which is last, counts a tenth. `bias` is the classifier's, (K + 1)."""
    weight = torch.ones(bias.shape, device=bias.device)
    weight[-1] = 0.1
    return weight


def relative_position_index(table: Tensor) -> Tensor:
    """Row of the bias table for every pair of tokens of a window: int64 (w * w, w * w) for a table of (2w - 1)^2 rows.

    The row is `(2w - 1) * (dy + w - 1) + dx + w - 1` for a query that lies (dy, dx) below and right of its key.
    """
    side = round(len(table) ** 0.5)
    window = (side + 1) // 2
    place = torch.arange(window**2, device=table.device)
    row, column = place // window, place % window
    down, right = row[:, None] - row[None], column[:, None] - column[None]
    return side * (down + window - 1) + right + window - 1


_POSITIONS = "backbone.layers.{stage}.blocks.{block}.attn.relative_position_"
# Tensors of official files that follow from others: name of the source, own name, how.
DERIVED: list[tuple[str, str, Callable[[Tensor], Tensor]]] = [
    ("sem_seg_head.predictor.class_embed.bias", "criterion.empty_weight", empty_weight),
    (f"{_POSITIONS}bias_table", f"{_POSITIONS}index", relative_position_index),
]


class OfficialNames(NamedTuple):
    """`keys`: official name <-> ours; `aliases`: second official name -> first one; `derived`: see `DERIVED`."""

    keys: KeyMap
    aliases: KeyMap
    derived: list[tuple[Rule, Callable[[Tensor], Tensor]]]


def official_names(spec: ModelSpec) -> OfficialNames:
    """The names of a model's tensors in official checkpoints.

    Raises:
        ValueError: no release has such a head, neck or backbone.
    """
    dialect, head = HEADS.get(spec.head, (None, []))
    if spec.args.get("neck_dialect", dialect) != dialect or (dialect, spec.neck) not in NECKS:
        known = ", ".join(f"{h}_{n}" for h, (d, _) in HEADS.items() for e, n in NECKS if d == e)
        raise ValueError(f"no official release has the head and neck of {spec.name!r}; those that have: {known}")
    neck, aliases = NECKS[dialect, spec.neck]
    pairs = backbone_pairs(spec.backbone or "", BACKBONE_PREFIXES[dialect]) + neck + head
    return OfficialNames(KeyMap(pairs), KeyMap(aliases), [(Rule(a, b), make) for a, b, make in DERIVED])


def backbone_pairs(backbone: str, prefix: str) -> Pairs:
    """The rules of a backbone (short or timm's name) whose official names begin with `prefix`."""
    architecture = BACKBONES.get(backbone, backbone).partition(".")[0]
    for pattern, pairs, ours in BACKBONE_FAMILIES:
        if re.fullmatch(pattern, architecture):
            return below(prefix, ours, pairs)
    raise ValueError(f"no official release has the backbone {backbone!r}; those that have are ResNets and Swins")
