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

_MASKED = -100.0  # added to the logits of token pairs that only became neighbours by rolling


def split_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut ``(N, H, W, C)`` into ``(N * H/h * W/w, h * w, C)``; ``H, W`` must be multiples of ``window = (h, w)``."""
    (n, height, width, channels), (h, w) = x.shape, window
    x = x.reshape(n, height // h, h, width // w, w, channels)
    return x.transpose(2, 3).reshape(-1, h * w, channels)


def join_windows(windows: Tensor, window: tuple[int, int], height: int, width: int) -> Tensor:
    """Undo :func:`split_windows`: ``(N * H/h * W/w, h * w, C)`` to ``(N, H, W, C)``."""
    h, w = window
    x = windows.reshape(-1, height // h, width // w, h, w, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def _bands(length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Band number of each row (or column) of a rolled map: 0, and the last window split at the shift into 1 and 2."""
    position = torch.arange(length, device=device)
    return (position >= length - window).long() + (position >= length - shift).long()


def shift_mask(height: int, width: int, window: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """Additive mask ``(H/h * W/w, h * w, h * w)`` of a rolled map: 0 within a region, -100 between regions.

    Args:
        height, width: size of the padded map, multiples of the window.
        window, shift: window and roll in tokens, (vertical, horizontal).
        like: tensor that gives device and dtype of the mask.
    """
    rows = _bands(height, window[0], shift[0], like.device)
    columns = _bands(width, window[1], shift[1], like.device)
    regions = split_windows((3 * rows[:, None] + columns)[None, :, :, None], window).squeeze(-1)
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, _MASKED)


class OfficialSwinBlock(SwinTransformerBlock):
    """timm's Swin block with the window attention order of the segmentation Swin; parameters and names are timm's."""

    def _attn(self, x: Tensor) -> Tensor:
        """Attend within (shifted) windows of ``x (N, H, W, C)``, the output of ``norm1``; returns the same shape.

        The zeros of the padding take part as tokens (their q, k, v are the biases of ``qkv``), because the weights were
        trained that way. The mask is made anew each time from comparisons of small integers: it costs little beside the
        attention, and nothing that depends on the input size is kept in the module (state dicts, export, compile).
        """
        _, height, width, _ = x.shape
        window, shift = self.window_size, self.shift_size
        bottom, right = -height % window[0], -width % window[1]
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
        rolled = any(shift)
        if rolled:
            x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
        mask = shift_mask(height + bottom, width + right, window, shift, x) if rolled else None
        x = join_windows(self.attn(split_windows(x, window), mask=mask), window, height + bottom, width + right)
        if rolled:
            x = torch.roll(x, shifts=shift, dims=(1, 2))
        return x[:, :height, :width]


def use_official_order(body: nn.Module) -> None:
    """Make every Swin block inside ``body`` an :class:`OfficialSwinBlock`, in place, weights untouched.

    Raises:
        ValueError: ``body`` holds no Swin block, or one built without ``always_partition=True`` and
            ``strict_img_size=False`` (it would have shrunk its window and bias table, or fixed its mask size).
    """
    blocks = [block for stage in body.modules() if isinstance(stage, SwinTransformerStage) for block in stage.blocks]
    if not blocks:
        raise ValueError(f"{type(body).__name__} holds no timm Swin blocks")
    for block in blocks:
        if not (block.always_partition and block.dynamic_mask):
            raise ValueError("the Swin must be built with always_partition=True and strict_img_size=False")
        # the class carries the behaviour, so copying, pickling and sharing of the modules stay as timm has them
        block.__class__ = OfficialSwinBlock
