"""The first stage: where something may be (Ren et al., NeurIPS 2015; FACTS section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from fapn_zoo.modules.heads.outputs import Compared
from fapn_zoo.modules.heads.rcnn.sampling import draw, kinds_of_anchors
from fapn_zoo.modules.layers.boxes import all_finite, anchors, decode, encode, not_empty
from fapn_zoo.modules.layers.conv import Maps
from fapn_zoo.modules.layers.random import drawn_bits


class RegionProposals(nn.Module):
    """Scores anchors on every level of a pyramid and chooses among them.

    Args:
        channels: of the pyramid.
        sides: square root of the area of the anchors, one number per level; ratios: their heights over widths.
        before: how many anchors of each level are looked at, the best first.
        after: how many proposals an image has at most. nms: overlap above which the worse of a level's two goes.
        train_before, train_after: the same two while training.
        samples: anchors of an image that are trained on.
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
        train_before: int = 2000,
        train_after: int = 1000,
        samples: int = 256,
    ) -> None:
        super().__init__()
        self.sides, self.ratios = tuple(sides), tuple(ratios)
        self.before, self.after, self.nms = before, after, nms
        self.train_before, self.train_after, self.samples = train_before, train_after, samples
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(self.ratios), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(self.ratios), 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Maps) -> tuple[list[Tensor], list[Tensor]]:
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
        limits, references = (self.before, self.after), self.anchors(logits)
        by_image = zip(*_by_anchor(logits, deltas), sizes, strict=True)
        return [self._image(*image, references, limits)[:2] for image in by_image]

    def learn(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        sizes: Sequence[Sequence[int]],
        truth: Sequence[Tensor],
        seeds: Tensor,
    ) -> tuple[list[tuple[Tensor, Tensor]], Compared, Compared]:
        """What the stage and the next one are trained by, for true boxes (M, 4) and a seed of every image.

        Returns:
            Of every image the proposals, without gradient, (P, 4), and the numbers of the anchors they were made of,
            (P,); logits (S,) of drawn anchors beside 1.0 for objects and 0.0 for background; deltas (O, 4) of those
            that are objects beside the true ones.

        Raises ValueError where a map is not finite.
        """
        references = self.anchors(logits)
        scores, shifts = _by_anchor(logits, deltas)
        proposals = []
        with torch.no_grad():
            for image in zip(scores, shifts, sizes, strict=True):
                boxes, best, rows = self._image(*image, references, (self.train_before, self.train_after))
                if best.isnan().any():
                    raise ValueError("the outputs of the region proposals are not finite")
                proposals.append((boxes, rows))
        joined = torch.cat(references)
        chosen = [self._drawn(joined, boxes, seed) for boxes, seed in zip(truth, seeds, strict=True)]
        classes, moves = Compared((), ()), Compared((), ())
        for score, shift, (ours, others, wanted) in zip(scores, shifts, chosen, strict=True):
            found = torch.cat(score)[torch.cat([ours, others])]
            is_object = (torch.arange(len(found), device=found.device) < len(ours)).float()
            classes, moves = classes.and_of(found, is_object), moves.and_of(torch.cat(shift)[ours], wanted)
        return proposals, classes, moves

    def _drawn(self, anchors: Tensor, truth: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of anchors that are trained on, of objects and of background, and the deltas of the former."""
        positive, negative, objects = kinds_of_anchors(anchors, truth)
        bits = drawn_bits(seed[None], len(anchors))[0]
        ours, others = draw(positive, negative, bits, self.samples, 0.5)
        return ours, others, encode(truth[objects[ours]], anchors[ours])

    def _image(
        self,
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        size: Sequence[int],
        references: Sequence[Tensor],
        limits: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, logits and numbers of the anchors of one image's proposals; see `choose`."""
        before, after = limits
        if scores[0].is_meta:
            found = scores[0].new_empty(after, 5)
            return found[:, :4], found[:, 4], found.new_empty(after, dtype=torch.int64)
        if not all_finite(*scores, *deltas):
            broken = scores[0].new_full((1, 5), torch.nan)
            return broken[:, :4], broken[:, 4], broken.new_zeros(1, dtype=torch.int64)
        boxes, logits, level_of, numbers, first = [], [], [], [], 0
        for level, (score, delta, reference) in enumerate(zip(scores, deltas, references, strict=True)):
            best, rows = score.topk(min(before, len(score)))
            boxes.append(decode(delta[rows], reference[rows]))
            logits.append(best)
            level_of.append(torch.full_like(rows, level))
            numbers.append(rows + first)
            first += len(score)
        found, logits, level_of, numbers = (
            clip_boxes_to_image(torch.cat(boxes), size), torch.cat(logits), torch.cat(level_of), torch.cat(numbers)
        )  # fmt: skip
        rows = torch.nonzero(not_empty(found))[:, 0]
        kept = rows[batched_nms(found[rows], logits[rows], level_of[rows], self.nms)[:after]]
        return found[kept], logits[kept], numbers[kept]


def _by_anchor(logits: Sequence[Tensor], deltas: Sequence[Tensor]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Of every image and level logits (h * w * A,) float32 and deltas (h * w * A, 4), in the order of the anchors."""
    scores = [x.permute(0, 2, 3, 1).flatten(1).float() for x in logits]
    shifts = [x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas]
    images = range(len(scores[0]))
    return [[x[n] for x in scores] for n in images], [[x[n] for x in shifts] for n in images]
