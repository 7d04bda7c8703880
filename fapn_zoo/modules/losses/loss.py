"""What training asks of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import Output, Targets

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


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
    def count(self, targets: Targets) -> dict[str, Tensor]:
        """What one batch adds to the totals: float64 scalars, the same keys for every batch."""

    @abstractmethod
    def forward(self, output: Output, targets: Targets, totals: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """`"loss"` and its terms, scalars, the same keys on every process; `totals` replace `count`."""


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """The focal loss of every logit (Lin et al., ICCV 2017); `target`, of the same shape, may be between 0 and 1."""
    p = logits.sigmoid()
    p_true = p * target + (1 - p) * (1 - target)
    alpha = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return alpha * (1 - p_true) ** FOCAL_GAMMA * entropy
