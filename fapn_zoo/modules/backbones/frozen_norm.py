"""Batch normalisation by constants, as one operation: torchvision and timm multiply and add one after the other.

A large map is read and written once instead of twice, and half precision stays half precision.
"""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d


def _normalised(module: nn.Module, x: Tensor) -> Tensor:
    statistics = module.running_mean, module.running_var
    return F.batch_norm(x, *statistics, module.weight, module.bias, training=False, eps=module.eps)


class OneStepFrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's frozen norm; buffers and names are torchvision's."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self, x)


class OneStepFrozenBatchNormAct(FrozenBatchNormAct2d):
    """timm's frozen norm with dropout and activation; buffers and names are timm's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_normalised(self, x)))


_OF = {FrozenBatchNorm2d: OneStepFrozenBatchNorm, FrozenBatchNormAct2d: OneStepFrozenBatchNormAct}


def use_one_step(body: nn.Module) -> None:
    """Make every frozen norm inside `body` one of the above, in place, buffers untouched."""
    for module in body.modules():
        if type(module) in _OF:
            # the class carries the behaviour, so copying, pickling and sharing of the modules stay as they are
            module.__class__ = _OF[type(module)]
