"""Window attention of the segmentation Swin: pad first, then roll, and never shrink a window.

timm's Swin was written for classification, at sizes that windows divide. At other sizes it rolls the unpadded map and
pads afterwards, so tokens meet other neighbours than in the segmentation Swin, with which the published weights for
dense prediction were trained. The weights fit both; only the order differs. This module supplies it, timm the rest.
Reference: Liu et al., "Swin Transformer", ICCV 2021, as applied to semantic segmentation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock, SwinTransformerStage
from torch import Tensor, nn

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
