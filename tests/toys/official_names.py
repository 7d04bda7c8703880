"""The way back: a model's tensors under official names, with all that official files hold beside them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fapn_zoo.convert.key_maps import Rule, official_names
from fapn_zoo.convert.names import State, model_shapes, report
from fapn_zoo.zoo.spec import ModelSpec


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
DERIVED: list[tuple[Rule, Callable[[Tensor], Tensor]]] = [
    (Rule("criterion.empty_weight", "sem_seg_head.predictor.class_embed.bias"), empty_weight),
    (Rule(f"{_POSITIONS}index", f"{_POSITIONS}bias_table"), relative_position_index),
]


def to_official(state: State, spec: ModelSpec) -> dict[str, Tensor]:
    """The way back, with all that official files hold: second names (of the same tensor) and derived buffers.

    Raises:
        ValueError: as `to_zoo`.
    """
    names = official_names(spec)
    renamed = names.keys.translate(state)
    unknown = [key for key in state if key not in renamed]
    shapes = model_shapes(spec)
    report(spec, unknown, [key for key in shapes if key not in state], state, shapes, lambda key: key)
    official = {renamed[key]: tensor for key, tensor in state.items()}
    second = names.aliases.translate(official)
    made = {
        name: make(tensor)
        for rule, make in DERIVED
        for key, tensor in official.items()
        if (name := rule.translate(key)) is not None
    }
    return official | {alias: official[key] for key, alias in second.items()} | made
