"""What is changed in a timm network that has been built; weights fit before and after."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d, freeze_batch_norm_2d
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.misc import FrozenBatchNorm2d


def move_stride_to_1x1(body: nn.Module, name: str) -> None:
    """Let the first convolution of each strided ResNet bottleneck take the stride.

    Raises ValueError where there are no strided bottlenecks, or anti-aliased ones.
    """
    blocks = [m for m in body.modules() if isinstance(m, Bottleneck) and m.conv2.stride != (1, 1)]
    if not blocks:
        raise ValueError(f"stride_in_1x1 needs a ResNet with bottleneck blocks such as resnet50, not {name!r}")
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def dilate_last_stage(body: nn.Module, dilations: Sequence[int], name: str) -> None:
    """Give each bottleneck of a ResNet's last stage a dilation of its own; ValueError where it has not as many."""
    blocks = [block for block in getattr(body, "layer4", ()) if isinstance(block, Bottleneck)]
    if len(blocks) != len(dilations):
        raise ValueError(
            f"multi_grid={tuple(dilations)} needs a ResNet with {len(dilations)} bottleneck blocks in its "
            f"last stage, and {name!r} has {len(blocks)}"
        )
    for block, dilation in zip(blocks, dilations, strict=True):
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)


def with_frozen_batch_norm(body: nn.Module, name: str) -> nn.Module:
    """Replace each BatchNorm, fused activation included, by its frozen counterpart.

    Raises ValueError where there is none, or one of a kind that cannot be replaced.
    """
    if not any(isinstance(module, _BatchNorm) for module in body.modules()):
        raise ValueError(f"norm='frozen_bn' needs a backbone with BatchNorm, and {name!r} has none")
    body = freeze_batch_norm_2d(body)
    use_one_step(body)
    left = {type(module).__name__ for module in body.modules() if isinstance(module, _BatchNorm)}
    if left:
        raise ValueError(f"norm='frozen_bn' cannot freeze {', '.join(sorted(left))} of backbone {name!r}")
    return body


def _normalised(module: nn.Module, x: Tensor) -> Tensor:
    """Batch normalisation by constants, as one operation: torchvision and timm multiply and add one after the other.

    A large map is read and written once instead of twice, and half precision stays half precision.
    """
    statistics = module.running_mean, module.running_var
    return F.batch_norm(x, *statistics, module.weight, module.bias, training=False, eps=module.eps)


class OneStepFrozenBatchNorm(FrozenBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self, x)


class OneStepFrozenBatchNormAct(FrozenBatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_normalised(self, x)))


_OF = {FrozenBatchNorm2d: OneStepFrozenBatchNorm, FrozenBatchNormAct2d: OneStepFrozenBatchNormAct}


def use_one_step(body: nn.Module) -> None:
    """Make every frozen norm of torchvision or timm inside `body` one of the above, in place, buffers untouched."""
    for module in body.modules():
        if type(module) in _OF:
            # the class carries the behaviour, so copying, pickling and sharing of the modules stay as they are
            module.__class__ = _OF[type(module)]
