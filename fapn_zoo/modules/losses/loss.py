"""What training asks of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from fapn_zoo.modules.heads.outputs import Output, Targets

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
Totals = dict[str, Tensor]  # scalars by name


class Loss(nn.Module, ABC):
    """A sum over pixels or objects, divided by named counts.

    Training adds up the counts of all micro-batches and processes and passes them as `totals`, so no gradient depends
    on how a batch is spread.
    """

    @classmethod
    @abstractmethod
    def of(cls, model: nn.Module, **options: Any) -> Self:
        """The loss for a model's classes (`model.num_classes`, `model.data`).

        `options` are settings of training such as `class_weights`, only those that were given. Raises ValueError
        for one that the loss does not have.
        """

    @abstractmethod
    def count(self, targets: Targets) -> Totals:
        """What one batch adds to the totals: float64 scalars, the same keys for every batch."""

    @abstractmethod
    def forward(self, output: Output, targets: Targets, totals: Totals | None = None) -> Totals:
        """`"loss"` and its terms, the same keys on every process; `totals` replace `count`."""


def counted(**counts: float) -> Totals:
    """Counts in the form of `Loss.count`."""
    return {name: torch.tensor(float(count), dtype=torch.float64) for name, count in counts.items()}


def refuse(options: Mapping[str, Any], balances: str) -> None:
    """ValueError where any are given: a loss that balances something else than pixels has no use for them."""
    if given := [name for name, value in options.items() if value]:
        raise ValueError(f"{given[0]} is for per-pixel heads; this loss balances {balances}, not pixels")


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """The focal loss of every logit (Lin et al., ICCV 2017); `target`, of the same shape, may be between 0 and 1."""
    return sigmoid_focal_loss(logits, target, FOCAL_ALPHA, FOCAL_GAMMA)
