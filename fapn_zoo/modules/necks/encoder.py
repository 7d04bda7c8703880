"""What may stand between a backbone and its neck: MaskFormer's transformer encoder of the coarsest map.

The released panoptic models with ResNets have six layers of it (MaskFormer, appendix on panoptic segmentation).
N images, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fapn_zoo.modules.layers.conv import ConvNormAct
from fapn_zoo.modules.layers.position import sine_position


class EncoderLayer(nn.TransformerEncoderLayer):
    """One post-norm DETR encoder layer: PyTorch's, but that positions are added to queries and keys alone."""

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x (N, h * w, C), position (h * w, C), which is added to queries and keys -> (N, h * w, C)."""
        q = x + position
        x = self.norm1(x + self.dropout(self.self_attn(q, q, x, need_weights=False)[0]))
        update = self.linear2(self.dropout(self.linear1(x).relu()))
        return self.norm2(x + self.dropout(update))


class CoarseEncoder(nn.Module):
    """Backbone maps, fine to coarse -> the same, but for the coarsest: projected, then encoded.

    Neck and head read what it makes in place of the backbone's map. Positions are those of `sine_position`, also over
    padding.

    Args:
        in_channels: channels per level.
        channels: C of the encoded map, a multiple of 4 and of `heads`.
        layers, heads, feedforward, dropout: of the encoder.

    Attributes:
        out_channels: channels per level, C for the coarsest.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        channels: int = 256,
        layers: int = 6,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = tuple(in_channels), (*in_channels[:-1], channels)
        self.input_proj = ConvNormAct(in_channels[-1], channels, 1)
        self.layers = nn.ModuleList(
            EncoderLayer(channels, heads, feedforward, dropout, batch_first=True) for _ in range(layers)
        )
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(N, in_channels[i], h_i, w_i) -> (N, out_channels[i], h_i, w_i)."""
        x = self.input_proj(features[-1])
        channels, height, width = x.shape[1:]
        position = sine_position(height, width, channels, device=x.device, dtype=x.dtype).flatten(1).t()
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, position)
        return [*features[:-1], tokens.transpose(1, 2).unflatten(2, (height, width))]
