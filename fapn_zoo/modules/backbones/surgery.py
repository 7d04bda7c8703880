"""What is changed in a timm network that has been built; weights fit before and after."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d, freeze_batch_norm_2d
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from timm.models.resnet import Bottleneck
from timm.models.swin_transformer import SwinTransformerBlock, SwinTransformerStage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.misc import FrozenBatchNorm2d

from fapn_zoo.modules.backbones.plain import patch_of


def end_after(body: nn.Module, name: str) -> None:
    """Removes what is behind the last map that a feature network gives. ValueError where it has no plain stages."""
    if swin_blocks(body) or patch_of(body):
        raise ValueError(f"stages: backbone {name!r} is a transformer, whose blocks are not left out")
    if isinstance(body, (EfficientNetFeatures, MobileNetV3Features)):  # timm shortens the others by itself
        last = max(body._stage_out_idx)
        body.blocks = body.blocks[:last]


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


# how timm must build a Swin whose windows neither shrink nor depend on the image
SWIN_OPTIONS = {"always_partition": True, "strict_img_size": False}
_MASKED = -100.0  # added to the logits of token pairs that only became neighbours by rolling


def split_windows(x: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Cut `(N, rows * h, columns * w, C)` into `(N * rows * columns, h * w, C)`, windows in reading order.

    The grid is passed and not divided out, because exporters cannot see that a padded size is divisible.
    """
    (rows, columns), (h, w) = grid, window
    x = x.reshape(x.shape[0], rows, h, columns, w, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, h * w, x.shape[-1])


def join_windows(windows: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Undo `split_windows`: `(N * rows * columns, h * w, C)` to `(N, rows * h, columns * w, C)`."""
    (rows, columns), (h, w) = grid, window
    x = windows.reshape(-1, rows, columns, h, w, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, rows * h, columns * w, windows.shape[-1])


def _bands(length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Band number of each row (or column) of a rolled map: 0, and the last window split at the shift into 1 and 2."""
    position = torch.arange(length, device=device)
    return (position >= length - window).long() + (position >= length - shift).long()


def shift_mask(grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """Additive mask `(rows * columns, h * w, h * w)` of a rolled map: 0 within a region, -100 between regions.

    Windows and shifts are in tokens, (vertical, horizontal); `like` gives device and dtype.
    """
    down, across = (_bands(n * w, w, s, like.device) for n, w, s in zip(grid, window, shift, strict=True))
    regions = split_windows((3 * down[:, None] + across)[None, :, :, None], grid, window).squeeze(-1)
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, _MASKED)


class OfficialSwinBlock(SwinTransformerBlock):
    """timm's Swin block with the window attention order of the segmentation Swin; parameters and names are timm's."""

    def _attn(self, x: Tensor) -> Tensor:
        """Attend within (shifted) windows of `x (N, H, W, C)`, the output of `norm1`; returns the same shape.

        The zeros of the padding take part as tokens (their q, k, v are the biases of `qkv`), because the weights were
        trained that way. The mask is made anew each time from comparisons of small integers: it costs little beside the
        attention, and nothing that depends on the input size is kept in the module (state dicts, export, compile).
        """
        _, height, width, _ = x.shape
        (h, w), shift = self.window_size, self.shift_size
        grid = ((height + h - 1) // h, (width + w - 1) // w)
        x = F.pad(x, (0, 0, 0, grid[1] * w - width, 0, grid[0] * h - height))
        mask = None
        if any(shift):
            x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
            mask = shift_mask(grid, (h, w), shift, x)
        x = join_windows(self.attn(split_windows(x, grid, (h, w)), mask=mask), grid, (h, w))
        if any(shift):
            x = torch.roll(x, shifts=shift, dims=(1, 2))
        return x[:, :height, :width]


def swin_blocks(body: nn.Module) -> list[SwinTransformerBlock]:
    """The blocks of a timm Swin (the first version of Swin, not SwinV2), none for other networks."""
    return [block for stage in body.modules() if isinstance(stage, SwinTransformerStage) for block in stage.blocks]


def use_official_order(body: nn.Module) -> None:
    """Make every Swin block inside `body` an `OfficialSwinBlock`, in place, weights untouched.

    Raises ValueError for a block built without `SWIN_OPTIONS`: its window and bias table could shrink, or the size of
    its mask be fixed.
    """
    for block in swin_blocks(body):
        if not (block.always_partition and block.dynamic_mask):
            raise ValueError(f"the Swin must be built with {SWIN_OPTIONS}")
        # the class carries the behaviour, so copying, pickling and sharing of the modules stay as timm has them
        block.__class__ = OfficialSwinBlock
