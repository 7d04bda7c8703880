"""What is changed in a timm network that has been built; weights fit before and after."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import freeze_batch_norm_2d
from timm.models.resnet import Bottleneck
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fapn_zoo.modules.backbones.frozen_norm import use_one_step


def checkpoint_stages(body: nn.Module, enable: bool) -> None:
    """Switch checkpointing inside the stages where timm has it there, else at the borders of the stages."""
    inner = [module for module in body.modules() if module is not body and hasattr(module, "grad_checkpointing")]
    if not inner:
        body.set_grad_checkpointing(enable)
    for module in inner:
        module.grad_checkpointing = enable


def move_stride_to_1x1(body: nn.Module, name: str) -> None:
    """Let the first convolution of each strided ResNet bottleneck take the stride; weights fit either way.

    Raises:
        ValueError: the network has no strided bottlenecks, or anti-aliased ones.
    """
    blocks = [m for m in body.modules() if isinstance(m, Bottleneck) and m.conv2.stride != (1, 1)]
    if not blocks:
        raise ValueError(f"stride_in_1x1 needs a ResNet with bottleneck blocks such as resnet50, not {name!r}")
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def dilate_last_stage(body: nn.Module, dilations: Sequence[int], name: str) -> None:
    """Give each bottleneck of a ResNet's last stage a dilation of its own; weights fit either way.

    Raises:
        ValueError: the last stage is not made of as many bottlenecks.
    """
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

    Raises:
        ValueError: there is none, or one of a kind that cannot be replaced.
    """
    if not any(isinstance(module, _BatchNorm) for module in body.modules()):
        raise ValueError(f"norm='frozen_bn' needs a backbone with BatchNorm, and {name!r} has none")
    body = freeze_batch_norm_2d(body)
    use_one_step(body)
    left = {type(module).__name__ for module in body.modules() if isinstance(module, _BatchNorm)}
    if left:
        raise ValueError(f"norm='frozen_bn' cannot freeze {', '.join(sorted(left))} of backbone {name!r}")
    return body
