"""EoMT (Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025): queries inside a plain ViT.

Learned queries join the tokens before the last blocks, whose attention then does what a decoder does elsewhere. In
training queries attend, block after block, to where their mask is; that is annealed away, so that nothing but the
ViT is left in the end. N images, Q queries, P prefix tokens, K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from fapn_zoo.modules.backbones.backbone import Backbone
from fapn_zoo.modules.heads.outputs import ClassRows, MaskFormerOutput, Targets
from fapn_zoo.modules.layers.random import drawn_bits, seeds_or_new, shifted

WHOLE = 2**24  # a share of 1; drawn numbers have 24 bits
POWER = 0.9  # of the annealing


class ScaleBlock(nn.Module):
    """Doubles a map (N, C, h, w): transposed 2x2 convolution, GELU, 3x3 convolution of each channel, LayerNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = LayerNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


class EoMTHead(nn.Module):
    """Class and mask per query, read from a ViT's own last blocks.

    Args:
        in_channels: C.
        feature_channels: C, too.
        num_classes: K without "no object".
        num_queries: Q.
        num_blocks: how many of the last blocks the queries go through.
        upscale: how often the map of tokens is doubled for the masks: 2 makes stride 4 of patches of 16 pixels.
        object_threshold: what the class probability of a segment must exceed in panoptic answers.

    Attributes:
        mask_share: (num_blocks,) int32, which share of the queries is masked in each block, in 2**-24ths. It follows
            from the step of a training (`anneal`) and travels with the weights; once it is 0, masks are left out.
    """

    classifier = {"class_embed": ClassRows(last=1)}

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        num_classes: int,
        *,
        num_queries: int = 200,
        num_blocks: int = 4,
        upscale: int = 2,
        object_threshold: float = 0.8,
    ) -> None:
        super().__init__()
        if num_queries < 1 or num_blocks < 1 or upscale < 0:
            given = f"num_queries={num_queries}, num_blocks={num_blocks}, upscale={upscale}"
            raise ValueError(f"{given}; expected at least 1, 1 and 0")
        self.num_queries, self.num_blocks, self.object_threshold = num_queries, num_blocks, object_threshold
        self.query = nn.Embedding(num_queries, in_channels)
        self.class_embed = nn.Linear(in_channels, num_classes + 1)
        hidden = (layer for _ in range(2) for layer in (nn.Linear(in_channels, in_channels), nn.GELU()))
        self.mask_embed = nn.Sequential(*hidden, nn.Linear(in_channels, in_channels))
        self.upscale = nn.Sequential(*(ScaleBlock(in_channels) for _ in range(upscale)))
        self.register_buffer("mask_share", torch.zeros(num_blocks, dtype=torch.int32))
        self.masked = False  # whether any share was above 0 when `anneal` or `train` was last called

    def join(self, backbone: Backbone) -> None:
        """Makes the backbone stop before its last blocks, which stay its own and are run here.

        Raises ValueError where it has too few, or the masks would lie at no whole stride.
        """
        blocks = len(backbone.body.model.blocks)
        if self.num_blocks > blocks:
            raise ValueError(f"head_num_blocks={self.num_blocks}, but backbone {backbone.name!r} has {blocks}")
        self.stride, rest = divmod(backbone.patch, 2 ** len(self.upscale))
        if rest or not self.stride:
            advice = f"head_upscale={len(self.upscale)} makes no whole stride of patches of {backbone.patch} pixels"
            raise ValueError(f"{advice}; give backbone_patch_size=16, to which timm resamples the first layer")
        backbone.body.late = self.num_blocks
        self.__dict__["vit"] = backbone.body  # not a part of this module: its weights are the backbone's

    def anneal(self, done: float) -> None:
        """Sets which share of the queries is masked when `done` (0..1) of a training is over.

        As in the official settings, the share of a block falls from 1 to 0 during a sixth of the training, as
        `(1 - part) ** 0.9`: of the first block after one sixth, of the last after four, of others evenly between.
        """
        starts = [1 + 3 * block / max(self.num_blocks - 1, 1) for block in range(self.num_blocks)]
        parts = [min(max(6 * done - start, 0.0), 1.0) for start in starts]
        shares = [round((1 - part) ** POWER * WHOLE) for part in parts]
        self.mask_share.copy_(torch.tensor(shares, dtype=torch.int32))
        self.masked = any(shares)

    def train(self, mode: bool = True) -> EoMTHead:
        """As `nn.Module.train`; notices shares that were loaded meanwhile."""
        self.masked = not self.mask_share.is_meta and bool(self.mask_share.any())
        return super().train(mode)

    def forward(
        self,
        pyramid: Sequence[Tensor],
        features: Sequence[Tensor],
        sizes: Tensor | None = None,
        targets: Targets | None = None,
    ) -> MaskFormerOutput:
        """Prefix tokens (N, P, C) and a map (N, C, h, w) -> class logits (N, Q, K + 1), masks (N, Q, 2^u h, 2^u w).

        While training, what is read before each of the last blocks stands in `aux`, and which queries are masked
        follows from the seeds of `targets`; otherwise from fixed ones.
        """
        (prefix, tokens), vit = features, self.vit.model
        size, count = tuple(tokens.shape[-2:]), tokens.shape[0]
        x = torch.cat([self.query.weight.expand(count, -1, -1), prefix, tokens.flatten(2).transpose(1, 2)], dim=1)
        layers: list[tuple[Tensor, Tensor]] = []
        masking = self.training or self.masked
        drawn = self._drawn(targets, count, x.device) if masking else None
        for i, block in enumerate(vit.blocks[-self.num_blocks :]):
            mask = None
            if masking:
                layers.append(self._read(vit.norm(x), size))
                everywhere = drawn[:, i] >= self.mask_share[i]
                mask = self._mask(layers[-1][1], everywhere, x.shape[1], size)
            x = self.vit.run(block, x, mask)
        last = self._read(vit.norm(x), size)
        patch = self.stride * 2 ** len(self.upscale)
        return MaskFormerOutput(
            *last,
            aux=tuple(layers) if self.training else (),
            stride=self.stride,
            object_threshold=self.object_threshold,
            extent=(size[0] * patch, size[1] * patch),
            sure=True,
        )

    def _drawn(self, targets: Targets | None, count: int, device: torch.device) -> Tensor:
        """Numbers (N, num_blocks, Q) below `WHOLE`."""
        if not self.training:
            seeds = torch.zeros(count, dtype=torch.int64, device=device)
        else:
            seeds = seeds_or_new(targets.seeds if targets is not None else None, count, device)
        bits = drawn_bits(seeds, self.num_blocks * self.num_queries)
        return shifted(bits, 40).unflatten(1, (self.num_blocks, self.num_queries))

    def _read(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Normalised tokens (N, T, C), queries first -> class logits and masks."""
        queries, tokens = x[:, : self.num_queries], x[:, x.shape[1] - size[0] * size[1] :]
        maps = self.upscale(tokens.transpose(1, 2).unflatten(2, size))
        return self.class_embed(queries), torch.einsum("nqc,nchw->nqhw", self.mask_embed(queries), maps)

    def _mask(self, masks: Tensor, everywhere: Tensor, count: int, size: tuple[int, int]) -> Tensor:
        """Where tokens attend to tokens (N, 1, T, T): queries that are not `everywhere` (N, Q) to their own mask."""
        inside = F.interpolate(masks.detach(), size=size, mode="bilinear", align_corners=False).flatten(2) > 0
        mask = torch.ones(len(masks), 1, count, count, dtype=torch.bool, device=masks.device)
        mask[:, 0, : self.num_queries, count - size[0] * size[1] :] = inside | everywhere[..., None]
        return mask
