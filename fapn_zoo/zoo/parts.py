"""Names of heads and necks, and what each stands for: paths of classes (`module:Class`) and their fixed settings."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

_HEADS, _LOSSES, _NECKS = (f"fapn_zoo.modules.{room}" for room in ("heads", "losses", "necks"))


class HeadPart(NamedTuple):
    """A head and what belongs to it.

    Attributes:
        module: its class, an `nn.Module`; see `fapn_zoo.modules.heads.outputs` for what it takes and gives.
        loss: the class of its loss, a `fapn_zoo.modules.losses.loss.Loss`; empty where it cannot be trained yet.
        tasks: what its output answers, keys of `fapn_zoo.tasks.TASKS`; the first is the default.
        dialect: of `fpn` and `fapn` below it.
        levels: how many neck outputs it reads, the finest first.
        extra: which levels the neck adds to them, a key of `EXTRA_LEVELS`; empty for none.
    """

    module: str
    loss: str
    tasks: tuple[str, ...]
    dialect: str
    levels: int = 4
    extra: str = ""


class NeckPart(NamedTuple):
    """A neck: its class, and the arguments that its name fixes."""

    module: str
    args: dict[str, Any] = {}


HEADS: dict[str, HeadPart] = {
    "perpixel": HeadPart(f"{_HEADS}:PerPixelHead", f"{_LOSSES}:PerPixelLoss", ("semantic",), "maskformer", 1),
    "perpixel_plus": HeadPart(f"{_HEADS}:PerPixelPlusHead", f"{_LOSSES}:PerPixelLoss", ("semantic",), "maskformer", 1),
    "semantic_fpn": HeadPart(f"{_HEADS}:SemanticFPNHead", f"{_LOSSES}:PerPixelLoss", ("semantic",), "detectron2"),
    "pointrend": HeadPart(f"{_HEADS}:PointRendHead", f"{_LOSSES}:PointRendLoss", ("semantic",), "detectron2"),
    "maskformer": HeadPart(
        f"{_HEADS}:MaskFormerHead", f"{_LOSSES}:SetCriterion", ("semantic", "panoptic", "instance"), "maskformer", 1
    ),
    "faster_rcnn": HeadPart(
        f"{_HEADS}.rcnn:FasterRCNNHead", f"{_LOSSES}:RCNNLoss", ("detection",), "detectron2", extra="pool"
    ),
    "mask_rcnn": HeadPart(
        f"{_HEADS}.rcnn:MaskRCNNHead", f"{_LOSSES}:RCNNLoss", ("instance", "detection"), "detectron2", extra="pool"
    ),
    "pointrend_rcnn": HeadPart(
        f"{_HEADS}.rcnn:PointRendRCNNHead", f"{_LOSSES}:RCNNLoss", ("instance", "detection"), "detectron2", extra="pool"
    ),
    "panoptic_fcn": HeadPart(
        f"{_HEADS}:PanopticFCNHead", f"{_LOSSES}:PanopticFCNLoss", ("panoptic", "instance"), "detectron2", extra="convs"
    ),
    "panoptic_fpn": HeadPart(
        f"{_HEADS}.panoptic_fpn:PanopticFPNHead",
        f"{_LOSSES}:PanopticFPNLoss",
        ("panoptic", "instance", "detection"),
        "detectron2",
        extra="pool",
    ),
}

EXTRA_LEVELS: dict[str, str] = {"pool": f"{_NECKS}:SubsampledLevel", "convs": f"{_NECKS}:ConvolvedLevels"}

# `fpn` and `fapn` take the dialect of their head; the other names are rows of the paper's ablation table
# (FACTS section 5), which was made in detectron2's dialect.
NECKS: dict[str, NeckPart] = {
    "fpn": NeckPart(f"{_NECKS}:FPN"),
    "fapn": NeckPart(f"{_NECKS}:FaPN"),
    "fpn_extra3x3": NeckPart(f"{_NECKS}:FPN", {"dialect": "detectron2", "extra_convs": 2}),
    "fam": NeckPart(f"{_NECKS}:FaPN", {"dialect": "detectron2", "select": "none"}),
    "fam_se": NeckPart(f"{_NECKS}:FaPN", {"dialect": "detectron2", "select": "se"}),
    "deconv_fsm": NeckPart(f"{_NECKS}:FaPN", {"dialect": "detectron2", "align": "deconv"}),
    "fam_noref_fsm": NeckPart(f"{_NECKS}:FaPN", {"dialect": "detectron2", "align": "dcn"}),
}


def register_head(name: str, part: HeadPart) -> None:
    """Adds a head of the user's own to this process, under every neck. Raises ValueError for a bad or taken name."""
    if not name.isidentifier():
        raise ValueError(f"head name {name!r}; only letters, digits and '_'")
    if name in HEADS:
        raise ValueError(f"head {name!r} exists already")
    HEADS[name] = part


def load_part(path: str) -> type:
    """The class at `module:Class`; the only place where a table's text becomes code."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
