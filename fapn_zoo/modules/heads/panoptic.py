"""What heads with an output for things and one for stuff are told; see `fapn_zoo.postprocess.merge`."""

from __future__ import annotations

from collections.abc import Sequence

from fapn_zoo.modules.heads.outputs import MergeRule


def count_things(things: Sequence[int], num_classes: int) -> int:
    """How many classes are things: all where `things` are empty. ValueError for ids that are none of the classes."""
    if not {*things} <= {*range(num_classes)} or len({*things}) != len(things):
        raise ValueError(f"things={tuple(things)}; expected different ids of the {num_classes} classes, from 0 on")
    return len(things) or num_classes


def merge_rule(score: float, overlap: float, stuff_area: int) -> MergeRule:
    """Raises ValueError for a score or overlap outside 0..1, or an area below 0."""
    if not (0 <= score <= 1 and 0 <= overlap <= 1 and stuff_area >= 0):
        given = f"merge_score={score}, merge_overlap={overlap}, stuff_area={stuff_area}"
        raise ValueError(f"{given}; expected 0..1, 0..1, and pixels from 0 on")
    return MergeRule(score, overlap, stuff_area)
