"""Names: listing them, parsing them, and answering an unknown one with its neighbours. Imports no torch."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from fapn_zoo.zoo.parts import BACKBONES, HEADS, NECKS, stands_on
from fapn_zoo.zoo.spec import ModelSpec, WeightsSpec

_registered: dict[str, ModelSpec] = {}


@cache
def _shipped() -> dict[str, ModelSpec]:
    """The models of models.json, which says itself how it is to be read."""
    table = json.loads((files("fapn_zoo") / "zoo" / "models.json").read_text(encoding="utf-8"))
    families = [(family["common"], family["models"]) for family in table["families"]]
    rows = {name: _joined(common, row) for common, models in families for name, row in models.items()}
    return {name: _model(name, row, table["terms"]) for name, row in rows.items()}


def _joined(common: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A row with what it has in common with its family; of two dictionaries the entries are joined."""
    nested = {key: common[key] | row[key] for key in common.keys() & row.keys() if isinstance(row[key], dict)}
    return common | row | nested


def _model(name: str, row: dict[str, Any], terms: dict[str, dict[str, str]]) -> ModelSpec:
    weights = {}
    for tag, values in row.pop("weights", {}).items():
        known = terms[values.pop("terms")] if "terms" in values else {}
        weights[tag] = WeightsSpec(**({"source": "official"} | known | values))
    return dataclasses.replace(ModelSpec.from_config({"name": name} | row), weights=weights)


def _all() -> dict[str, ModelSpec]:
    """All models by name: architectures first, whatever heads have been registered meanwhile."""
    pairs = [(head, neck) for head in HEADS for neck in NECKS if stands_on(head, neck)]
    return {f"{h}_{n}": _architecture(f"{h}_{n}", h, n) for h, n in pairs} | _shipped() | _registered


def _architecture(name: str, head: str, neck: str, backbone: str | None = None) -> ModelSpec:
    return ModelSpec(name, head, neck, backbone, task=HEADS[head].tasks[0])


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which resnet18 comes before resnet101."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def list_models(pattern: str | Sequence[str] = "*", *, pretrained: bool = False, task: str | None = None) -> list[str]:
    """Names of the zoo's models in natural order.

    Args:
        pattern: shell wildcards (`"maskformer_*ade20k"`), or several of them.
        pretrained: only models with weights; then each name carries its tag where it has several.
        task: only models whose default task is this one; ValueError where no head answers it.

    Architectures such as `maskformer_fapn` are listed once, without the backbones that may be appended to them.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    known = dict.fromkeys(answered for part in HEADS.values() for answered in part.tasks)
    if task is not None and task not in known:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(known)}")
    names = []
    for name, spec in _all().items():
        if not any(fnmatch.fnmatchcase(name, p) for p in patterns):
            continue
        if (pretrained and not spec.weights) or (task is not None and spec.task != task):
            continue
        names += [f"{name}.{tag}" for tag in spec.weights] if pretrained and len(spec.weights) > 1 else [name]
    return sorted(names, key=natural_key)


def register_model(spec: ModelSpec, *, overwrite: bool = False) -> ModelSpec:
    """Adds a model of the user's own to this process. Raises ValueError for a bad or taken name or unknown parts."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", spec.name):
        raise ValueError(f"model name {spec.name!r}; only letters, digits and '_' (a dot separates a weights tag)")
    if spec.head not in HEADS:
        raise ValueError(f"head {spec.head!r} of {spec.name!r}; expected one of {', '.join(HEADS)}")
    if spec.neck not in NECKS:
        raise ValueError(f"neck {spec.neck!r} of {spec.name!r}; expected one of {', '.join(NECKS)}")
    if not stands_on(spec.head, spec.neck):
        raise ValueError(f"neck {spec.neck!r} of {spec.name!r}; a {spec.head} head does not stand on it")
    if spec.task not in HEADS[spec.head].tasks:
        tasks = ", ".join(HEADS[spec.head].tasks)
        raise ValueError(f"task {spec.task!r} of {spec.name!r}; a {spec.head} head answers {tasks}")
    if spec.name in _all() and not overwrite:
        raise ValueError(f"model {spec.name!r} exists already; overwrite=True replaces it")
    _registered[spec.name] = spec
    return spec


def get_spec(name: str) -> tuple[ModelSpec, str | None]:
    """`name` or `name.tag` -> the model and its tag (None: the default one).

    A name that begins with a head and a neck (`perpixel_fapn_convnextv2_tiny`) and goes on with a backbone, short
    or timm's, is an architecture of that backbone. Raises ValueError with the nearest names otherwise.
    """
    stem, _, tag = name.partition(".")
    specs = _all()
    if stem in specs:
        spec = specs[stem]
        if tag and tag not in spec.weights:
            known = ", ".join(spec.weights) or "none"
            raise ValueError(f"model {stem!r} has no weights {tag!r}; its weights: {known}")
        return spec, tag or None
    parsed = _parse_architecture(stem)
    if parsed is None or tag:
        near = nearest(stem, list(specs))
        raise ValueError(f"unknown model {name!r}{near}; fapn_zoo.list_models() lists all")
    return parsed, None


def resolve(name: str, weights: bool = False) -> tuple[ModelSpec, WeightsSpec | None]:
    """What `create_model` needs of a name: the model with the labels of its set, and its weights where it has some.

    Raises ValueError as `get_spec`, and where `weights` are needed and there are none.
    """
    spec, tag = get_spec(name)
    if weights and not spec.weights:
        raise ValueError(
            f"model {spec.name!r} has no released weights yet; list_models(pretrained=True) lists those that have, "
            "pretrained_backbone=True starts from ImageNet weights"
        )
    released = spec.weights[tag or next(iter(spec.weights))] if spec.weights else None
    from fapn_zoo.zoo.labels import with_labels  # not above: reading files is not needed to list names

    return with_labels(spec), released


def nearest(name: str, known: Sequence[str], count: int = 3) -> str:
    """`"; nearest: a, b"` for an error message, or nothing when no known name is similar."""
    import difflib  # not above: only errors need it

    matches = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return f"; nearest: {', '.join(matches)}" if matches else ""


def _parse_architecture(name: str) -> ModelSpec | None:
    for head in HEADS:
        for neck in sorted(NECKS, key=len, reverse=True):
            prefix = f"{head}_{neck}_"
            backbone = name.removeprefix(prefix)
            if name.startswith(prefix) and stands_on(head, neck) and _is_backbone(backbone):
                return _architecture(name, head, neck, backbone)
    return None


def _is_backbone(name: str) -> bool:
    if name in BACKBONES:
        return True
    import timm  # only an unusual name costs this import, and building it needs timm anyhow

    return timm.is_model(name)
