"""Class names, colours and things of the public data sets our weights were trained on.

Each set is one JSON file in `fapn_zoo/zoo/label_sets/`; its `source` says where every fact comes from and what it was
checked against. The files hold names and colours only, never images or annotations.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from importlib.resources import files

from fapn_zoo.zoo.spec import ModelSpec

_FOLDER = files("fapn_zoo") / "zoo" / "label_sets"


@cache
def list_label_sets() -> tuple[str, ...]:
    """Names that `label_set` accepts, sorted."""
    return tuple(sorted(f.name.removesuffix(".json") for f in _FOLDER.iterdir() if f.name.endswith(".json")))


@cache
def _read(name: str) -> dict:
    raw = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    lists = {key: tuple(raw.get(key, ())) for key in ("names", "things", "source", "category_ids")}
    return raw | lists | {"palette": tuple(map(tuple, raw["palette"]))}


def label_set(name: str) -> dict:
    """The classes of one data set, read once and kept.

    Args:
        name: One of `list_label_sets()`, e.g. `ade20k` or `cityscapes`.

    Returns:
        A new dict of unchangeable values: `names` (K unique strings, index = class id), `palette` (K RGB triples,
        0..255), `things` (increasing class ids; empty where the data set does not say), `category_ids` (COCO's id of
        every class; empty where the data set has none, or they are the class ids plus 1), `ignore_index` (the value of
        unlabelled pixels in the data set's label maps, never a class id; 65 for `mapillary_vistas`, 65535 for
        `ade20k_full`, else 255), `source` (sentences) and `licence_note`.

    Raises:
        ValueError: No set has this name.
    """
    # Checked against the list before a path is built from it, so a name can never reach another file.
    if name not in list_label_sets():
        raise ValueError(f"unknown label set {name!r}; known: {', '.join(list_label_sets())}")
    return dict(_read(name))


def with_labels(spec: ModelSpec) -> ModelSpec:
    """The model with names and colours from its label set, where it has none of its own."""
    if spec.label_set is None or spec.data.labels:
        return spec
    table = label_set(spec.label_set)
    facts = {key: table[key] for key in ("palette", "things", "ignore_index", "category_ids")}
    return dataclasses.replace(spec, data=dataclasses.replace(spec.data, labels=table["names"], **facts))
