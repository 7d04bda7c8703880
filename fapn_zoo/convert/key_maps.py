"""Which official names a model's tensors have: rules by head, neck and backbone, which are in key_maps.json.

A rule is a pair of templates: an official one, such as `"res{stage}.{block}.weight"`, and ours with the same fields
elsewhere, `"layer{stage-1}.{block}.weight"`. A field stands for a word without dots. `{stage-1}` and `{stage+1}` are
neighbours of a whole number, `{2*step}` is its double, and such a field is a number on both sides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import zip_longest
from typing import NamedTuple

from fapn_zoo.zoo.parts import BACKBONES
from fapn_zoo.zoo.spec import ModelSpec

_TABLES = json.loads((files("fapn_zoo") / "convert" / "key_maps.json").read_text(encoding="utf-8"))
DROPPED: dict[str, str] = _TABLES["dropped"]
FIRST_VERSION: dict[str, str] = _TABLES["first_version"]
_FIELD = re.compile(r"\{(?:(?P<factor>\d+)\*)?(?P<name>[a-z_]+)(?P<shift>[+-]\d+)?\}")
Pairs = list[tuple[str, str]]


class Rule:
    """An official template and ours. Raises ValueError where one side has a field that the other lacks."""

    def __init__(self, official: str, ours: str) -> None:
        self.official = official
        self.fields = [(m["name"], int(m["factor"] or 1), int(m["shift"] or 0)) for m in _FIELD.finditer(ours)]
        if {name for name, *_ in self.fields} != {m["name"] for m in _FIELD.finditer(official)}:
            raise ValueError(f"templates {official!r} and {ours!r} have different fields")
        sides = [m for side in (official, ours) for m in _FIELD.finditer(side)]
        self.numbers = {m["name"] for m in sides if m["factor"] or m["shift"]}
        words = [r"(0|[1-9]\d*)" if name in self.numbers else r"(\w+)" for name, *_ in self.fields]
        between = [re.escape(text) for text in _FIELD.split(ours)[:: _FIELD.groups + 1]]
        self.pattern = re.compile("".join(map("".join, zip_longest(between, words, fillvalue=""))))

    def translate(self, key: str) -> str | None:
        """The official name of a key of ours; None where the rule does not speak of it."""
        if (match := self.pattern.fullmatch(key)) is None:
            return None
        found: dict[str, int | str] = {}
        for (name, factor, shift), text in zip(self.fields, match.groups(), strict=True):
            value, rest = divmod(int(text) - shift, factor) if name in self.numbers else (text, 0)
            if rest or found.setdefault(name, value) != value:
                return None

        def written(field: re.Match[str]) -> str:
            value, factor, shift = found[field["name"]], int(field["factor"] or 1), int(field["shift"] or 0)
            return str(factor * value + shift) if field["name"] in self.numbers else value

        return _FIELD.sub(written, self.official)


class KeyMap:
    """Rules, pairs of an official and of this package's template, that together name every tensor once."""

    def __init__(self, rules: Iterable[tuple[str, str]]) -> None:
        self.rules = [Rule(official, ours) for official, ours in rules]

    def translate(self, keys: Iterable[str]) -> dict[str, str]:
        """The official names of keys of ours, but for keys that no rule speaks of.

        Raises:
            ValueError: two rules speak of one key, or two keys get one name.
        """
        names: dict[str, str] = {}
        taken: dict[str, str] = {}
        for key in keys:
            found = [name for rule in self.rules if (name := rule.translate(key)) is not None]
            if len(found) > 1:
                raise ValueError(f"two rules name {key!r}: {found[0]!r} and {found[1]!r}")
            for name in found:
                if taken.setdefault(name, key) != key:
                    raise ValueError(f"{taken[name]!r} and {key!r} would both become {name!r}")
                names[key] = name
        return names


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


def names_in_transformers(scheme: str) -> KeyMap:
    """The authors' names of a model (`"eomt"`) by those that transformers gives its tensors."""
    return KeyMap(_pairs([f"{scheme} of transformers"]))


def backbone_pairs(backbone: str, prefix: str) -> Pairs:
    """The rules of a backbone (short or timm's name) whose official names begin with `prefix`."""
    architecture = BACKBONES.get(backbone, backbone).partition(".")[0]
    for family in _TABLES["backbones"]:
        if re.fullmatch(family["timm"], architecture):
            return [(prefix + there, family["ours"] + here) for there, here in _pairs(family["rules"])]
    raise ValueError(
        f"no official release has the backbone {backbone!r}; those that have: ResNets, Swins, dinov2_s/b/l"
    )


def _pairs(names: Sequence[str]) -> Pairs:
    return [(there, here) for name in names for there, here in _TABLES["rules"][name]]
