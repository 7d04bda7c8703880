"""The raw outputs of heads. N images, K classes, Q queries; maps are at the head's stride."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SemanticOutput(NamedTuple):
    """Per-pixel scores before softmax: ``logits`` (N, K, h, w); ``aux`` holds those of earlier decoder layers."""

    logits: Tensor
    aux: tuple[Tensor, ...] = ()


class MaskFormerOutput(NamedTuple):
    """A set of Q masks per image.

    Attributes:
        class_logits: (N, Q, K + 1); the last class is "no object".
        mask_logits: (N, Q, h, w), before the sigmoid.
        aux: the same pair for every earlier decoder layer, first layer first; empty unless training asks for it.
    """

    class_logits: Tensor
    mask_logits: Tensor
    aux: tuple[tuple[Tensor, Tensor], ...] = ()
