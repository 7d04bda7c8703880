"""Masks of queries -> panoptic maps and instances, a band of rows at a time; all arithmetic is float32.

Masks are enlarged as logits to the padded input, cropped and resized to the original size, then squashed, in the order
of the official MaskFormer code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fapn_zoo.modules.heads.outputs import MaskFormerOutput
from fapn_zoo.postprocess.answers import Frame, HardMasks, Instances, Packed, Panoptic, Segment
from fapn_zoo.postprocess.semantic import Source, bands, check_cover, class_probabilities, mask_rows
from fapn_zoo.zoo.spec import DataSpec


def panoptic(
    output: MaskFormerOutput,
    frame: Frame,
    data: DataSpec,
    *,
    object_threshold: float | None = None,
    overlap_threshold: float = 0.8,
) -> Panoptic:
    """The panoptic map of one image, as in the MaskFormer paper (Cheng et al., NeurIPS 2021, section 3.4).

    Queries whose best class is a real one with probability above `object_threshold` (None: the model's own) compete
    for every pixel by class probability times mask probability. A query that wins less than `overlap_threshold` of the
    area of its own mask (mask probability of at least 0.5) is dropped. Stuff queries of one class become one segment,
    whose score is the mean of theirs, weighted by area. Where `output.sure`, as in Mask2Former and EoMT, a segment ends
    where its mask has a probability below 0.5. `data.things` are the classes whose objects are counted.
    """
    check_cover(output.mask_logits, output.stride, frame.inside)
    object_threshold = output.object_threshold if object_threshold is None else object_threshold
    best, classes = class_probabilities(output, drop_no_object=False).max(dim=-1)
    num_classes = output.class_logits.shape[-1] - 1
    kept = torch.nonzero((classes != num_classes) & (best > object_threshold))[:, 0]
    masks, scores = output.mask_logits[0, kept], best[kept]
    winner = torch.zeros(frame.original, dtype=torch.int64, device=masks.device)
    shares = torch.zeros(frame.original, dtype=torch.float32, device=masks.device)
    sure = torch.ones_like(winner, dtype=torch.bool) if output.sure else None
    own_area = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    if len(masks):
        for first, last, band in _mask_bands(output, masks, frame):
            own_area += (band >= 0.5).sum(dim=(1, 2))
            shares[first:last], winner[first:last] = (band * scores[:, None, None]).max(dim=0)
            if sure is not None:
                sure[first:last] = band.gather(0, winner[None, first:last])[0] >= 0.5
    queries = list(zip(classes[kept].tolist(), scores.tolist(), own_area.tolist(), strict=True))
    return _assemble(winner, shares, queries, data.things, overlap_threshold, sure)


def instances(
    output: MaskFormerOutput, frame: Frame, data: DataSpec, *, score_threshold: float = 0.5, max_instances: int = 100
) -> Instances:
    """Scored object masks of one image, which may overlap.

    The `max_instances` best (query, class) pairs are chosen before any mask is enlarged. A mask is where its
    probability exceeds 0.5; its score is the class probability times the mean mask probability inside the mask, the
    rule of Mask2Former (MaskFormer's paper reports no instances). Masks with a lower score than `score_threshold`,
    and empty masks, are left out. Only `data.things` are considered; empty means all classes.
    """
    check_cover(output.mask_logits, output.stride, frame.inside)
    probabilities = class_probabilities(output)
    if data.things:
        other = torch.ones(probabilities.shape[1], dtype=torch.bool, device=probabilities.device)
        other[list(data.things)] = False
        probabilities = probabilities.masked_fill(other, 0.0)
    scores, pairs = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    # A score can only fall below its class probability, so hopeless pairs never get a full-size mask.
    hopeful = (scores > 0) & (scores >= score_threshold)
    scores, pairs = scores[hopeful], pairs[hopeful]
    queries = pairs // probabilities.shape[1]
    classes = pairs % probabilities.shape[1]
    chosen = queries.tolist()
    found = {query: _hard_mask(output, query, frame) for query in dict.fromkeys(chosen)}
    scores = scores * scores.new_tensor([found[query].mean for query in chosen])
    areas = torch.tensor([found[query].area for query in chosen], device=scores.device)
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[(scores[order] >= score_threshold) & (areas[order] > 0)]
    rows = zip(classes[order].tolist(), scores[order].tolist(), areas[order].tolist(), strict=True)
    segments = tuple(Segment(i, category, True, score, area) for i, (category, score, area) in enumerate(rows, 1))
    masks = HardMasks([found[query].packed for query in queries[order].tolist()], frame.original)
    return Instances(masks, segments)


def _mask_bands(
    output: MaskFormerOutput, masks: Tensor, frame: Frame, within: tuple[int, int] | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields (first, last, probabilities (Q, rows, w)) of some masks, which are resized as logits, then squashed."""
    rows = mask_rows(output, masks, frame.inside[1])
    source = Source(rows, max(len(masks), 1), frame.inside, masks.device)
    for first, last, logits in bands(source, frame.original, within=within):
        yield first, last, logits.sigmoid()


def _assemble(
    winner: Tensor,
    shares: Tensor,
    queries: list[tuple[int, float, int]],
    things: Sequence[int],
    least_overlap: float,
    sure: Tensor | None = None,
) -> Panoptic:
    """The panoptic map of one image from the winner of every pixel, and class, score and own area of every query.

    Segment ids count from 1 in query order. Pixels that are not `sure` count for what a query wins, and are nobody's.
    """
    new_id = torch.zeros(max(len(queries), 1), dtype=torch.int32)
    won = torch.bincount(winner.flatten(), minlength=len(queries)).tolist()
    kept = won if sure is None else torch.bincount(winner[sure], minlength=len(queries)).tolist()
    found: list[dict] = []
    stuff: dict[int, dict] = {}
    for query, (category, score, own_area) in enumerate(queries):
        area = won[query]
        if not area or not own_area or area / own_area < least_overlap or not (area := kept[query]):
            continue
        isthing = category in things
        segment = {"id": len(found) + 1, "category_id": category, "isthing": isthing, "score": 0.0, "area": 0}
        segment = segment if isthing else stuff.setdefault(category, segment)
        if not segment["area"]:
            found.append(segment)
        segment["score"] = (segment["score"] * segment["area"] + score * area) / (segment["area"] + area)
        segment["area"] += area
        new_id[query] = segment["id"]
    ids = new_id.to(winner.device)[winner]
    ids = ids if sure is None else ids * sure
    return Panoptic(ids, shares * (ids > 0), tuple(Segment(**segment) for segment in found))


def rows_of(mask: Tensor, frame: Frame, stride: float) -> tuple[int, int]:
    """The first and last rows of the answer that places (h, w) bool can reach, enlarged; (0, 0) where none is set."""
    rows = torch.nonzero(mask.any(dim=1))[:, 0].tolist()
    if not rows:
        return 0, 0
    # a row reaches no further than the middles of its neighbours; resizing looks one row further
    scale = stride * frame.original[0] / frame.inside[0]
    top, bottom = int((rows[0] - 1) * scale) - 2, int((rows[-1] + 2) * scale) + 3
    top, bottom = max(top, 0), min(bottom, frame.original[0])
    return top, max(bottom, top)


class _HardMask(NamedTuple):
    """Where a probability exceeds 0.5: the pixels, how many they are, and the mean of it in there (0 for none)."""

    packed: Packed
    area: int
    mean: float


def _hard_mask(output: MaskFormerOutput, query: int, frame: Frame) -> _HardMask:
    """Of one image's query. Only the rows are made in which it can be."""
    mask = output.mask_logits[0, query]
    top, bottom = rows_of(mask > 0, frame, output.covers[0] / len(mask))
    exact = torch.float32 if mask.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    inside, parts = torch.zeros((), dtype=exact, device=mask.device), []
    for _, _, (band,) in _mask_bands(output, mask[None], frame, (top, bottom)):
        parts.append(band > 0.5)
        inside += (band * parts[-1]).sum(dtype=exact)
    pixels = torch.cat(parts) if parts else mask[:0] > 0
    area = int(pixels.count_nonzero())
    return _HardMask(Packed.of(pixels, top), area, float(inside) / max(area, 1))
