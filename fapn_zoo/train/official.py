"""The official trainings as settings, by `official/MODEL` or `official/MODEL.3x`; the numbers are in official.json."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from fapn_zoo.zoo.registry import get_spec, list_models

PREFIX = "official/"
TRAININGS = json.loads((files("fapn_zoo") / "train" / "official.json").read_text(encoding="utf-8"))["trainings"]


def trainings(model: str) -> dict[str, dict[str, Any]]:
    """Schedule -> the settings of the official training of a model of the zoo; nothing where none is known."""
    spec = get_spec(model)[0]
    for row in TRAININGS:
        known = spec.head in row["heads"] and (not row["backbones"] or spec.backbone in row["backbones"])
        if known and spec.name.endswith(row["ending"]):
            return row["schedules"]
    return {}


def official_settings(name: str) -> dict[str, Any]:
    """The settings of `official/MODEL`, or `official/MODEL.SCHEDULE`; without one, that of the model's first weights.

    ValueError for a model that has no official training, or not that one; it lists those that it has.
    """
    model, _, schedule = name.removeprefix(PREFIX).partition(".")
    found = trainings(model)
    if not found:
        known = ", ".join(known for known in list_models() if trainings(known))
        raise ValueError(f"no official training of {model!r} is known; there are {known}")
    if schedule and schedule not in found:
        raise ValueError(f"{model!r} has no official training {schedule!r}; it has {', '.join(found)}")
    first = next(iter(get_spec(model)[0].weights), "")
    schedule = schedule or (first if first in found else next(iter(found)))
    common = {"model": model, "pretrained_backbone": True, "amp": "no", "out": f"runs/{model}.{schedule}"}
    return common | found[schedule]
