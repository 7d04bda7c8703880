"""Raw outputs of a head -> maps at the size of the photo. Pure functions; all arithmetic is float32.

Words used here: the *network input* is the normalised image after padding, ``image_size`` its (H, W) before padding,
``out_size`` the (h, w) of the answer, usually that of the original photo. N images, K classes, Q queries.

The order of operations is that of the official MaskFormer and detectron2 code: enlarge by the stride to the padded
input, turn masks into class scores, crop the padding away, resize to ``out_size``. It is done for a band of rows at a
time (`fapn_zoo.postprocess.bands`), so no Q (or K) float maps of the size of the photo are ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput
from fapn_zoo.postprocess.bands import Source, bands, enlarged_rows
from fapn_zoo.postprocess.best_class import best_of_logits, best_of_masks, usable
from fapn_zoo.runtime.precision import autocast


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map, or one instance.

    Attributes:
        id: its value in the segment map (from 1), or 1 + its row in the stack of masks.
        category_id: class id.
        isthing: False for amorphous regions, of which there is at most one per class.
        score: confidence in 0..1.
        area: pixels.
    """

    id: int
    category_id: int
    isthing: bool
    score: float
    area: int


@dataclass(frozen=True, eq=False)
class Panoptic:
    """Attributes: ``ids`` (h, w) int32, 0 where nothing was found; ``scores`` (h, w) float32; ``segments``."""

    ids: Tensor
    scores: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True, eq=False)
class Instances:
    """Attributes: ``masks`` (M, h, w) bool, best score first, may overlap; ``segments``, one per mask; M may be 0."""

    masks: Tensor
    segments: tuple[Segment, ...]


def semantic_scores(
    output: SemanticOutput | MaskFormerOutput,
    image_size: tuple[int, int],
    out_size: tuple[int, int],
    *,
    stride: int = 4,
) -> Tensor:
    """Class scores per pixel.

    Args:
        output: of a per-pixel head (logits at ``stride``) or of a MaskFormer head (masks at ``stride``).
        image_size: (H, W) of the network input without its padding, in pixels.
        out_size: (h, w) of the result, in pixels.
        stride: of the head's maps against the network input.

    Returns:
        (N, K, h, w) float32. Per-pixel heads: logits. MaskFormer: sum over queries of class probability times mask
        probability, 0 or more and not normalised over classes. This is the one function here whose memory grows with
        K x h x w; `semantic` and `semantic_labels` need only a band of it.

    Raises:
        ValueError: if ``output`` is of another kind, or its maps do not cover ``image_size``.
    """
    images = []
    for n in range(_batch_size(output, image_size, out_size, stride)):
        parts = [scores for _, _, scores in _score_bands(output, n, image_size, out_size, stride)]
        images.append(torch.cat(parts, dim=1))
    return torch.stack(images)


def semantic(
    output: SemanticOutput | MaskFormerOutput,
    image_size: tuple[int, int],
    out_size: tuple[int, int],
    *,
    stride: int = 4,
) -> Tensor:
    """The best class per pixel: (N, h, w) int64. Arguments and errors as `semantic_scores`."""
    labels = []
    for n in range(_batch_size(output, image_size, out_size, stride)):
        labels.append(best_classes(score_source(output, n, image_size, stride), out_size))
    return torch.stack(labels)


def semantic_labels(
    output: SemanticOutput | MaskFormerOutput,
    image_size: tuple[int, int],
    out_size: tuple[int, int],
    *,
    stride: int = 4,
) -> tuple[Tensor, Tensor]:
    """The best class and its probability: (N, h, w) int64 and (N, h, w) float32 in 0..1.

    The probability is the softmax of a per-pixel head, or the class's share of all scores for MaskFormer (0 where all
    scores are 0). Arguments and errors as `semantic_scores`.
    """
    are_logits = isinstance(output, SemanticOutput)
    labels, shares = [], []
    for n in range(_batch_size(output, image_size, out_size, stride)):
        source = score_source(output, n, image_size, stride)
        if source.best is not None:
            parts = [source.best(out_size, shares=True)]
        else:
            parts = [choose(scores, are_logits) for _, _, scores in bands(source, out_size)]
        labels.append(torch.cat([part[0] for part in parts]))
        shares.append(torch.cat([part[1] for part in parts]))
    return torch.stack(labels), torch.stack(shares)


def best_class(scores: Tensor) -> Tensor:
    """(K, h, w) scores of one image -> best class (h, w) int64."""
    return scores.max(dim=0).indices  # argmax(0) of torch takes three times as long on a CPU


def best_classes(source: Source, out_size: tuple[int, int]) -> Tensor:
    """Scores of one image -> best class (h, w) int64 at out_size; what `semantic_labels` chooses."""
    if source.best is not None:
        return source.best(out_size)[0]
    return torch.cat([best_class(scores) for _, _, scores in bands(source, out_size)])


def choose(scores: Tensor, are_logits: bool) -> tuple[Tensor, Tensor]:
    """(K, h, w) scores of one image -> best class (h, w) int64 and its probability (h, w) float32."""
    best, labels = scores.max(dim=0)
    if are_logits:
        return labels, torch.exp(best - scores.logsumexp(dim=0))
    return labels, best / scores.sum(dim=0).clamp_min(torch.finfo(scores.dtype).tiny)


def panoptic(
    output: MaskFormerOutput,
    image_size: tuple[int, int],
    out_size: tuple[int, int],
    *,
    things: Sequence[int] = (),
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    stride: int = 4,
) -> list[Panoptic]:
    """Panoptic maps as in the MaskFormer paper (Cheng et al., NeurIPS 2021, section 3.4).

    Queries whose best class is a real one with probability above ``object_threshold`` compete for every pixel by
    class probability times mask probability. A query that wins less than ``overlap_threshold`` of the area of its own
    mask (mask probability of at least 0.5) is dropped. Stuff queries of one class become one segment, whose score is
    the mean of theirs, weighted by area.

    Args:
        output, image_size, out_size, stride: as in `semantic_scores`.
        things: ids of the classes whose objects are counted; the others are stuff.

    Returns:
        One `Panoptic` per image, on the device of ``output``.

    Raises:
        ValueError: if ``output`` is not a `MaskFormerOutput`.
    """
    _require_masks(output, "panoptic")
    results = []
    for n in range(_batch_size(output, image_size, out_size, stride)):
        best, classes = _class_probabilities(output, n, drop_no_object=False).max(dim=-1)
        num_classes = output.class_logits.shape[-1] - 1
        kept = torch.nonzero((classes != num_classes) & (best > object_threshold))[:, 0]
        winner, shares, own_area = _compete(output.mask_logits[n, kept], best[kept], image_size, out_size, stride)
        results.append(
            _assemble(winner, shares, own_area, classes[kept].tolist(), best[kept].tolist(), things, overlap_threshold)
        )
    return results


def instances(
    output: MaskFormerOutput,
    image_size: tuple[int, int],
    out_size: tuple[int, int],
    *,
    things: Sequence[int] = (),
    score_threshold: float = 0.5,
    max_instances: int = 100,
    stride: int = 4,
) -> list[Instances]:
    """Scored object masks, which may overlap.

    The ``max_instances`` best (query, class) pairs are chosen before any mask is enlarged. A mask is where its
    probability exceeds 0.5; its score is the class probability times the mean mask probability inside the mask, the
    rule of Mask2Former (MaskFormer's paper reports no instances).

    Args:
        output, image_size, out_size, stride: as in `semantic_scores`.
        things: the only classes considered; empty means all.
        score_threshold: masks with a lower score, and empty masks, are left out.

    Returns:
        One `Instances` per image, on the device of ``output``.

    Raises:
        ValueError: if ``output`` is not a `MaskFormerOutput`.
    """
    _require_masks(output, "instance")
    results = []
    for n in range(_batch_size(output, image_size, out_size, stride)):
        probabilities = _class_probabilities(output, n)
        if things:
            other = torch.ones(probabilities.shape[1], dtype=torch.bool, device=probabilities.device)
            other[list(things)] = False
            probabilities = probabilities.masked_fill(other, 0.0)
        scores, pairs = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
        # A score can only fall below its class probability, so hopeless pairs never get a full-size mask.
        hopeful = (scores > 0) & (scores >= score_threshold)
        scores, pairs = scores[hopeful], pairs[hopeful]
        queries = pairs // probabilities.shape[1]
        classes = pairs % probabilities.shape[1]
        masks, mean_inside = _binary_masks(output.mask_logits[n, queries], image_size, out_size, stride)
        results.append(_rank(masks, scores * mean_inside, classes, score_threshold))
    return results


# Class scores, band by band -----------------------------------------------------------------------------------------


def _score_bands(
    output: SemanticOutput | MaskFormerOutput,
    n: int,
    image_size: tuple[int, int],
    out_size: tuple[int, int],
    stride: int,
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields (first row, last row, scores (K, rows, w)) of image ``n`` from top to bottom."""
    yield from bands(score_source(output, n, image_size, stride), out_size)


def score_source(output: SemanticOutput | MaskFormerOutput, n: int, image_size: tuple[int, int], stride: int) -> Source:
    """The class scores of image ``n`` at image_size, a band at a time. Arguments and errors as `semantic_scores`."""
    _batch_size(output, image_size, image_size, stride)
    width = image_size[1]
    if isinstance(output, SemanticOutput):
        maps = output.logits[n]
        best = partial(best_of_logits, maps, image_size, stride) if usable(maps) else None
        return Source(lambda a, b: enlarged_rows(maps, a, b, width, stride), len(maps), image_size, maps.device, best)
    maps, weights = output.mask_logits[n], _class_probabilities(output, n)

    def rows(first: int, last: int) -> Tensor:
        masks = enlarged_rows(maps, first, last, width, stride).sigmoid_()
        with autocast(maps.device, "no"):
            return torch.einsum("qk,qhw->khw", weights, masks)

    best = partial(best_of_masks, maps, weights, image_size, stride) if usable(maps) else None
    return Source(rows, sum(weights.shape), image_size, maps.device, best)


def _class_probabilities(output: MaskFormerOutput, n: int, drop_no_object: bool = True) -> Tensor:
    """(Q, K) probabilities of image ``n``; the softmax includes "no object", which is the last column if kept."""
    probabilities = output.class_logits[n].float().softmax(dim=-1)
    return probabilities[:, :-1] if drop_no_object else probabilities


# Masks --------------------------------------------------------------------------------------------------------------


def _mask_bands(
    masks: Tensor, image_size: tuple[int, int], out_size: tuple[int, int], stride: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields (first, last, mask probabilities (Q, rows, w)): masks are resized as logits, then squashed."""

    def rows(first: int, last: int) -> Tensor:
        return enlarged_rows(masks, first, last, image_size[1], stride)

    source = Source(rows, max(len(masks), 1), image_size, masks.device)
    for first, last, logits in bands(source, out_size):
        yield first, last, logits.sigmoid()


def _compete(
    masks: Tensor, scores: Tensor, image_size: tuple[int, int], out_size: tuple[int, int], stride: int
) -> tuple[Tensor, Tensor, list[int]]:
    """Which of the Q masks wins each pixel (h, w) int64, with what score (h, w), and each mask's own area."""
    winner = torch.zeros(out_size, dtype=torch.int64, device=masks.device)
    shares = torch.zeros(out_size, dtype=torch.float32, device=masks.device)
    own_area = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    if len(masks):
        for first, last, band in _mask_bands(masks, image_size, out_size, stride):
            own_area += (band >= 0.5).sum(dim=(1, 2))
            shares[first:last], winner[first:last] = (band * scores[:, None, None]).max(dim=0)
    return winner, shares, own_area.tolist()


def _assemble(
    winner: Tensor,
    shares: Tensor,
    own_area: list[int],
    classes: list[int],
    scores: list[float],
    things: Sequence[int],
    overlap_threshold: float,
) -> Panoptic:
    """The panoptic map of one image from the winner of every pixel; segment ids count from 1 in query order."""
    new_id = torch.zeros(max(len(classes), 1), dtype=torch.int32)
    won = torch.bincount(winner.flatten(), minlength=len(classes)).tolist()
    found: list[dict] = []
    stuff: dict[int, dict] = {}
    for query, (category, score) in enumerate(zip(classes, scores, strict=True)):
        area = won[query]
        if not area or not own_area[query] or area / own_area[query] < overlap_threshold:
            continue
        isthing = category in things
        segment = None if isthing else stuff.get(category)
        if segment is None:
            segment = {"id": len(found) + 1, "category_id": category, "isthing": isthing, "score": 0.0, "area": 0}
            found.append(segment)
            if not isthing:
                stuff[category] = segment
        segment["score"] = (segment["score"] * segment["area"] + score * area) / (segment["area"] + area)
        segment["area"] += area
        new_id[query] = segment["id"]
    ids = new_id.to(winner.device)[winner]
    return Panoptic(ids, shares * (ids > 0), tuple(Segment(**segment) for segment in found))


def _binary_masks(
    masks: Tensor, image_size: tuple[int, int], out_size: tuple[int, int], stride: int
) -> tuple[Tensor, Tensor]:
    """Masks (M, h, w) bool and the mean probability inside each (M,), 0 for an empty one."""
    binary = torch.zeros(len(masks), *out_size, dtype=torch.bool, device=masks.device)
    exact = torch.float32 if masks.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    inside = torch.zeros(len(masks), dtype=exact, device=masks.device)
    if len(masks):
        for first, last, band in _mask_bands(masks, image_size, out_size, stride):
            chosen = band > 0.5
            binary[:, first:last] = chosen
            inside += (band * chosen).sum(dim=(1, 2), dtype=exact)
    area = binary.sum(dim=(1, 2))
    return binary, (inside / area.clamp_min(1)).float()


def _rank(masks: Tensor, scores: Tensor, classes: Tensor, score_threshold: float) -> Instances:
    """Drops weak and empty masks and puts the best first."""
    areas = masks.sum(dim=(1, 2))
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[(scores[order] >= score_threshold) & (areas[order] > 0)]
    rows = zip(classes[order].tolist(), scores[order].tolist(), areas[order].tolist(), strict=True)
    segments = tuple(Segment(i, category, True, score, area) for i, (category, score, area) in enumerate(rows, 1))
    return Instances(masks[order], segments)


# Checks -------------------------------------------------------------------------------------------------------------


def _batch_size(output: object, image_size: tuple[int, int], out_size: tuple[int, int], stride: int) -> int:
    """N, once the output is of a known kind and covers the image."""
    if isinstance(output, SemanticOutput):
        maps = output.logits
    elif isinstance(output, MaskFormerOutput):
        maps = output.mask_logits
    else:
        raise ValueError(
            f"cannot read an output of type {type(output).__name__}; expected SemanticOutput or MaskFormerOutput"
        )
    covered = (maps.shape[-2] * stride, maps.shape[-1] * stride)
    if min(*image_size, *out_size) < 1:
        raise ValueError(f"image_size {tuple(image_size)} and out_size {tuple(out_size)} must be positive")
    if covered[0] < image_size[0] or covered[1] < image_size[1]:
        raise ValueError(
            f"maps of {tuple(maps.shape[-2:])} at stride {stride} cover {covered} pixels, "
            f"less than image_size {tuple(image_size)}"
        )
    return maps.shape[0]


def _require_masks(output: object, task: str) -> None:
    if not isinstance(output, MaskFormerOutput):
        raise ValueError(
            f"task {task!r} needs a MaskFormerOutput, not {type(output).__name__}; "
            "per-pixel heads answer 'semantic' only"
        )
