"""The rule of Panoptic FPN's merging in full: a loop over masks as large as the image, and cases for it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fapn_zoo.postprocess.answers import ClassMap, SoftMasks

Found = list[tuple[int, int, bool, int]]  # id, class, is a thing, area


def merged_full(
    masks: Tensor, classes: list[int], scores: list[float], labels: Tensor, stuff: list[int], *,
    score_threshold: float = 0.5, overlap_threshold: float = 0.5, stuff_area: int = 4096,
) -> tuple[Tensor, Found]:  # fmt: skip
    """Segment by segment over masks (M, H, W) bool and a map (H, W) of channels: the ids (H, W) and what they are."""
    ids = torch.zeros(labels.shape, dtype=torch.int32)
    found: Found = []
    for m in torch.argsort(torch.tensor(scores), descending=True, stable=True).tolist():
        if scores[m] < score_threshold or not masks[m].any():
            continue
        taken = masks[m] & (ids > 0)
        if taken.sum().item() / masks[m].sum().item() > overlap_threshold:
            continue
        mine = masks[m] & (ids == 0)
        if mine.any():
            ids[mine] = len(found) + 1
            found.append((len(found) + 1, classes[m], True, int(mine.sum())))
    for channel in labels.unique().tolist():
        mine = (labels == channel) & (ids == 0)
        if channel and mine.sum() >= stuff_area and mine.any():
            ids[mine] = len(found) + 1
            found.append((len(found) + 1, stuff[channel], False, int(mine.sum())))
    return ids, found


def random_case(count: int, size: tuple[int, int], channels: int, seed: int = 0) -> tuple[SoftMasks, list, ClassMap]:
    """Blobs in boxes that overlap, scores of which some are equal, and a map of regions with their shares."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    cells = F.interpolate(torch.randn(count, 1, 5, 5, generator=generator) * 4 + 1, (28, 28), mode="bilinear")[:, 0]
    corners, sides = torch.rand(2, count, 2, generator=generator)
    scale = torch.tensor(size[::-1], dtype=torch.float32)
    low = corners * scale * 0.8
    boxes = torch.cat([low, torch.minimum(low + sides * scale * 0.4 + 1, scale)], dim=1)
    scores = np.round(rng.uniform(0.3, 1, count), 2).tolist()
    coarse = torch.randint(channels, (1, 1, 9, 12), generator=generator).float()
    labels = F.interpolate(coarse, size, mode="nearest")[0, 0].long()
    return SoftMasks(cells, boxes, size), scores, ClassMap(labels, torch.rand(size, generator=generator))
