"""MaskFormer's heads (Cheng et al., NeurIPS 2021): a transformer decoder whose queries become masks.

What it computes is described in FACTS section 2. N images, Q queries, C channels, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import ClassRows, MaskFormerOutput, SemanticOutput
from fapn_zoo.modules.layers.conv import ConvNormAct, Maps
from fapn_zoo.modules.layers.position import sine_position


class DecoderLayer(nn.Module):
    """One post-norm DETR decoder layer: self-attention, cross-attention, feed-forward."""

    def __init__(self, channels: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, keys: Tensor) -> Tensor:
        """x, queries (N, Q, C); memory and keys (= memory + position) (N, h * w, C) -> (N, Q, C)."""
        q = x + queries
        x = self.norm1(x + self.dropout(self.self_attn(q, q, x, need_weights=False)[0]))
        x = self.norm2(x + self.dropout(self.cross_attn(x + queries, keys, memory, need_weights=False)[0]))
        update = self.linear2(self.dropout(self.linear1(x).relu()))
        return self.norm3(x + self.dropout(update))


class QueryDecoder(nn.Module):
    """`num_queries` learned queries of `channels` channels that read a map of `in_channels` through decoder layers."""

    def __init__(self, channels: int, in_channels: int, num_queries: int, layers: int, *of_layer: Any) -> None:
        super().__init__()
        self.input_proj = ConvNormAct(in_channels, channels, 1)
        self.query_embed = nn.Embedding(num_queries, channels)
        self.layers = nn.ModuleList(DecoderLayer(channels, *of_layer) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, feature: Tensor) -> list[Tensor]:
        """(N, in_channels, h, w) -> the normalised queries (N, Q, C) after every layer, first layer first."""
        memory = self.input_proj(feature)
        height, width = memory.shape[-2:]
        position = sine_position(height, width, memory.shape[1], device=memory.device, dtype=memory.dtype)
        keys = (memory + position).flatten(2).transpose(1, 2)
        memory = memory.flatten(2).transpose(1, 2)
        queries = self.query_embed.weight.expand(memory.shape[0], -1, -1)  # not len(): exporters would fix it
        x = torch.zeros_like(queries)
        states = []
        for layer in self.layers:
            x = layer(x, queries, memory, keys)
            states.append(self.norm(x))
        return states


class QueryMaskHead(nn.Module):
    """What both heads below share: learned queries whose embeddings, times the mask features, are masks.

    Args:
        in_channels: channels of the neck's outputs.
        feature_channels: of the coarsest map of the backbone, which the queries read.
        class_scores: how many scores each query gets beside its mask; 0 leaves the classifier out.
        num_queries: Q.
        mask_channels: channels of mask features and mask embeddings.
        channels, layers, heads, feedforward, dropout: of the decoder.

    Attributes:
        deep_supervision: whether the outputs of earlier layers are returned; None (default) means while training.
    """

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        class_scores: int,
        num_queries: int,
        /,
        mask_channels: int = 256,
        channels: int = 256,
        layers: int = 6,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.mask_features = ConvNormAct(in_channels, mask_channels, 3)
        self.decoder = QueryDecoder(channels, feature_channels, num_queries, layers, heads, feedforward, dropout)
        if class_scores:
            self.class_embed = nn.Linear(channels, class_scores)
        hidden = (layer for _ in range(2) for layer in (nn.Linear(channels, channels), nn.ReLU(inplace=True)))
        self.mask_embed = nn.Sequential(*hidden, nn.Linear(channels, mask_channels))
        self.deep_supervision: bool | None = None

    def queries_and_masks(self, pyramid: Maps, features: Maps) -> list[tuple[Tensor, Tensor]]:
        """Queries (N, Q, C) and masks (N, Q, h, w) of every decoder layer asked for, the last layer last.

        Masks are read from `pyramid[0]` (N, in_channels, h, w), queries from `features[-1]`, the raw backbone map.
        """
        mask_features = self.mask_features(pyramid[0])
        states = self.decoder(features[-1])
        deep = self.training if self.deep_supervision is None else self.deep_supervision
        return [
            (state, torch.einsum("nqc,nchw->nqhw", self.mask_embed(state), mask_features))
            for state in (states if deep else states[-1:])
        ]


class MaskFormerHead(QueryMaskHead):
    """Class and mask per query: K classes without "no object".

    Args: as `QueryMaskHead`, and
        input_proj: False hands that map to the queries as it is, which an encoder has projected already; ValueError
            where it has not `channels` channels.
        object_threshold: what the class probability of a segment must exceed in panoptic answers.
    """

    classifier = {"class_embed": ClassRows(last=1)}

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        num_classes: int,
        *,
        num_queries: int = 100,
        input_proj: bool = True,
        object_threshold: float = 0.8,
        **decoder: Any,
    ) -> None:
        super().__init__(in_channels, feature_channels, num_classes + 1, num_queries, **decoder)
        self.num_queries, self.object_threshold = num_queries, object_threshold
        if not input_proj:
            channels = self.decoder.query_embed.embedding_dim
            if feature_channels != channels:
                raise ValueError(f"input_proj=False: the coarsest map has {feature_channels} channels, not {channels}")
            self.decoder.input_proj = nn.Identity()

    def forward(self, pyramid: Maps, features: Maps, *_: object) -> MaskFormerOutput:
        """See `QueryMaskHead.queries_and_masks`; class logits are (N, Q, K + 1)."""
        layers = [(self.class_embed(state), masks) for state, masks in self.queries_and_masks(pyramid, features)]
        return MaskFormerOutput(*layers[-1], aux=tuple(layers[:-1]), object_threshold=self.object_threshold)


class PerPixelPlusHead(QueryMaskHead):
    """MaskFormer's baseline "PerPixelBaseline+": one query per class, whose mask is the map of that class's logits.

    Trained with cross-entropy over pixels on every decoder layer (FACTS section 2). Arguments as `QueryMaskHead`.
    """

    classifier = {"decoder.query_embed": ClassRows()}

    def __init__(self, in_channels: int, feature_channels: int, num_classes: int, **decoder: Any) -> None:
        super().__init__(in_channels, feature_channels, 0, num_classes, **decoder)

    def forward(self, pyramid: Maps, features: Maps, *_: object) -> SemanticOutput:
        """See `QueryMaskHead.queries_and_masks`; logits are (N, K, h, w)."""
        *aux, logits = (masks for _, masks in self.queries_and_masks(pyramid, features))
        return SemanticOutput(logits, tuple(aux))
