"""Answers for whole batches of raw outputs, stacked, for the tests of decoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fapn_zoo.modules.heads.outputs import Output
from fapn_zoo.postprocess import ClassMap, Frame, Instances, Panoptic, decode, decoders
from fapn_zoo.zoo.spec import DataSpec

Size = tuple[int, int]


def _answers(task: str, output: Output, inside: Size, original: Size, things: tuple[int, ...] = (), **options: Any):
    frame, data = Frame(inside, original), DataSpec(things=things)
    return [decode(output.image(n), task, frame, data, **options) for n in range(len(output[0]))]


def scores(output: Output, inside: Size, original: Size) -> Tensor:
    """(N, K, h, w)."""
    frame = Frame(inside, original)
    return torch.stack([decoders.semantic_scores(output.image(n), frame) for n in range(len(output[0]))])


def labels(output: Output, inside: Size, original: Size) -> tuple[Tensor, Tensor]:
    """Classes and their probabilities, (N, h, w) each."""
    found: list[ClassMap] = _answers("semantic", output, inside, original)
    return torch.stack([one.labels for one in found]), torch.stack([one.scores for one in found])


def classes(output: Output, inside: Size, original: Size) -> Tensor:
    """(N, h, w), without probabilities."""
    found = _answers("semantic", output, inside, original, shares=False)
    assert all(one.scores is None for one in found)
    return torch.stack([one.labels for one in found])


def panoptic(output: Output, inside: Size, original: Size, **options: Any) -> list[Panoptic]:
    return _answers("panoptic", output, inside, original, **options)


def instances(output: Output, inside: Size, original: Size, **options: Any) -> list[Instances]:
    return _answers("instance", output, inside, original, **options)
