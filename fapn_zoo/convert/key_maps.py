"""Which official names a model's tensors have: rules by head, neck and backbone, which are in key_maps.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from fapn_zoo.convert.templates import KeyMap, Pairs
from fapn_zoo.zoo.backbones import BACKBONES
from fapn_zoo.zoo.spec import ModelSpec

_TABLES = json.loads((files("fapn_zoo") / "convert" / "key_maps.json").read_text(encoding="utf-8"))
DROPPED: dict[str, str] = _TABLES["dropped"]
FIRST_VERSION: dict[str, str] = _TABLES["first_version"]


class OfficialNames(NamedTuple):
    """`keys`: official name <-> ours; `aliases`: second official name -> first one."""

    keys: KeyMap
    aliases: KeyMap


def official_names(spec: ModelSpec) -> OfficialNames:
    """The names of a model's tensors in official checkpoints.

    Raises:
        ValueError: no release has such a head, neck or backbone.
    """
    heads, necks = _TABLES["heads"], {(row["dialect"], row["neck"]): row for row in _TABLES["necks"]}
    head = heads.get(spec.head, {"dialect": None})
    dialect = head["dialect"]
    if spec.args.get("neck_dialect", dialect) != dialect or (dialect, spec.neck) not in necks:
        known = ", ".join(f"{h}_{n}" for h, row in heads.items() for d, n in necks if d == row["dialect"])
        raise ValueError(f"no official release has the head and neck of {spec.name!r}; those that have: {known}")
    neck = necks[dialect, spec.neck]
    backbone = backbone_pairs(spec.backbone or "", _TABLES["backbone_prefixes"][dialect])
    keys = KeyMap(backbone + _pairs(neck["rules"]) + _pairs(head["rules"]))
    return OfficialNames(keys, KeyMap(_pairs(neck["aliases"])))


def backbone_pairs(backbone: str, prefix: str) -> Pairs:
    """The rules of a backbone (short or timm's name) whose official names begin with `prefix`."""
    architecture = BACKBONES.get(backbone, backbone).partition(".")[0]
    for family in _TABLES["backbones"]:
        if re.fullmatch(family["timm"], architecture):
            return [(prefix + there, family["ours"] + here) for there, here in _pairs(family["rules"])]
    raise ValueError(f"no official release has the backbone {backbone!r}; those that have are ResNets and Swins")


def _pairs(names: Sequence[str]) -> Pairs:
    return [(there, here) for name in names for there, here in _TABLES["rules"][name]]
