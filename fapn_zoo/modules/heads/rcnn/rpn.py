"""The first stage: where something may be (Ren et al., NeurIPS 2015; FACTS section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from fapn_zoo.modules.layers.boxes import all_finite, anchors, clip, decode, not_empty


class RegionProposals(nn.Module):
    """Scores anchors on every level of a pyramid and chooses among them.

    Args:
        channels: of the pyramid.
        sides: square root of the area of the anchors, one number per level; ratios: their heights over widths.
        before: how many anchors of each level are looked at, the best first.
        after: how many proposals an image has at most. nms: overlap above which the worse of a level's two goes.
    """

    def __init__(
        self,
        channels: int,
        sides: Sequence[float] = (32, 64, 128, 256, 512),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        *,
        before: int = 1000,
        after: int = 1000,
        nms: float = 0.7,
    ) -> None:
        super().__init__()
        self.sides, self.ratios = tuple(sides), tuple(ratios)
        self.before, self.after, self.nms = before, after, nms
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(self.ratios), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(self.ratios), 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Of every level logits (N, A, h, w) and deltas (N, 4A, h, w), those of one of the A anchors together.

        Raises ValueError where the pyramid has not one level for every side.
        """
        if len(pyramid) != len(self.sides):
            raise ValueError(f"{len(self.sides)} sides of anchors, but a pyramid of {len(pyramid)} levels")
        hidden = [F.relu(self.conv(features)) for features in pyramid]
        return [self.objectness(x) for x in hidden], [self.deltas(x) for x in hidden]

    def anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Of every level (h * w * A, 4), for maps (N, A, h, w) whose strides are 4, 8, 16, ..."""
        levels = enumerate(zip(maps, self.sides, strict=True))
        return [anchors(x.shape[-2:], 4 * 2**level, side, self.ratios, x) for level, (x, side) in levels]

    @torch.no_grad()
    def choose(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Of every image its proposals, boxes (M, 4) inside it and their logits (M,), the best first.

        `sizes` are (height, width) of the images. Where a map holds NaN or infinity for an image, all its numbers are
        NaN: nothing can be chosen, and no one shall take that for an empty image. On the meta device, where nothing can
        be chosen either, there are as many as there may be.
        """
        references = self.anchors(logits)
        # (N, A, h, w) and (N, 4A, h, w) -> in the order of the anchors
        scores = [x.permute(0, 2, 3, 1).flatten(1).float() for x in logits]
        shifts = [x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas]
        return [
            self._image([x[n] for x in scores], [x[n] for x in shifts], references, size)
            for n, size in enumerate(sizes)
        ]

    def _image(
        self, scores: list[Tensor], deltas: list[Tensor], references: list[Tensor], size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        if scores[0].is_meta:
            return scores[0].new_empty(self.after, 4), scores[0].new_empty(self.after)
        if not all_finite(*scores, *deltas):
            return scores[0].new_full((1, 4), torch.nan), scores[0].new_full((1,), torch.nan)
        boxes, logits, level_of = [], [], []
        for level, (score, delta, reference) in enumerate(zip(scores, deltas, references, strict=True)):
            best, rows = score.topk(min(self.before, len(score)))
            boxes.append(decode(delta[rows], reference[rows]))
            logits.append(best)
            level_of.append(torch.full_like(rows, level))
        found, logits, level_of = clip(torch.cat(boxes), size), torch.cat(logits), torch.cat(level_of)
        rows = torch.nonzero(not_empty(found))[:, 0]
        found, logits = found[rows], logits[rows]
        kept = batched_nms(found, logits, level_of[rows], self.nms)[: self.after]
        return found[kept], logits[kept]
