"""Objects and a map of stuff -> one panoptic map, by the rule of Panoptic FPN (Kirillov et al., CVPR 2019, section 3).

FACTS sections 3 and 4. M objects; C channels of the semantic map, of which the first are all things together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fapn_zoo.modules.heads.outputs import InstanceOutput, PanopticFPNOutput, SemanticOutput
from fapn_zoo.postprocess.answers import ClassMap, Frame, Masks, Panoptic, Segment, SoftMasks
from fapn_zoo.postprocess.boxes import boxes_of
from fapn_zoo.postprocess.semantic import class_map, logits_source
from fapn_zoo.zoo.spec import DataSpec

BAND_PIXELS = 2**17  # that are looked at together, so that they stay in a core's cache


def merge(
    masks: Masks,
    classes: Sequence[int],
    scores: Sequence[float],
    semantic: ClassMap,
    stuff: Sequence[int],
    *,
    score_threshold: float = 0.5,
    overlap_threshold: float = 0.5,
    stuff_area: int = 4096,
) -> Panoptic:
    """The panoptic map of M objects and a semantic map of the same size; ids count objects, the best first, then stuff.

    Objects with at least `score_threshold` take their pixels in the order of their scores. Of a mask that has more than
    `overlap_threshold` of its pixels taken already nothing is used, of another what is free. A class of stuff gets what
    is free of its pixels, where that is at least `stuff_area` of them.

    Args:
        masks: M of them; they are asked for one by one.
        classes, scores: of the objects, in any order.
        semantic: channel 0..C-1 of every pixel, and its share; see `ClassMap`.
        stuff: the class of every channel, (C,); of channel 0 it is not read, since that is no stuff.

    Returns:
        On the CPU. The score of stuff is the mean of its pixels' shares.
    """
    ids = np.zeros(masks.size, np.int32)
    segments: list[Segment] = []
    for m in np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist():
        if scores[m] < score_threshold:
            break
        crop, (y, x) = masks.crop(m)
        mask = crop.numpy()
        part = ids[y : y + mask.shape[0], x : x + mask.shape[1]]
        free = mask & (part == 0)
        own, area = int(np.count_nonzero(mask)), int(np.count_nonzero(free))
        if area and own - area <= overlap_threshold * own:
            segments.append(Segment(len(segments) + 1, classes[m], True, scores[m], area))
            np.copyto(part, len(segments), where=free)
    sure = _add_stuff(ids, segments, semantic, stuff, stuff_area)
    return Panoptic(torch.from_numpy(ids), torch.from_numpy(sure), tuple(segments))


def _add_stuff(
    ids: np.ndarray, segments: list[Segment], semantic: ClassMap, stuff: Sequence[int], least: int
) -> np.ndarray:
    """Puts stuff where `ids` are 0, and its segments behind those of objects. Returns the scores of all pixels."""
    labels, shares = semantic.labels.cpu().numpy(), semantic.scores.cpu().numpy()
    score = np.array([0, *(segment.score for segment in segments)], np.float32)
    areas, sums = np.zeros(len(stuff), np.int64), np.zeros(len(stuff))
    for rows in _bands(ids.shape):
        free = ids[rows] == 0
        found = labels[rows][free]
        areas += np.bincount(found, minlength=len(stuff))
        sums += np.bincount(found, shares[rows][free], minlength=len(stuff))
    new_id = np.zeros(len(stuff), np.int32)
    for channel, area in enumerate(areas.tolist()):
        if channel and area >= max(least, 1):
            segments.append(Segment(len(segments) + 1, stuff[channel], False, float(sums[channel]) / area, area))
            new_id[channel] = len(segments)
    sure = np.empty(ids.shape, np.float32)
    for rows in _bands(ids.shape):
        part = ids[rows]
        free, mine = part == 0, new_id[labels[rows]]
        sure[rows] = np.where(free, shares[rows] * (mine > 0), score[part])
        np.copyto(part, mine, where=free)
    return sure


def _bands(size: tuple[int, int]) -> list[slice]:
    height, width = size
    step = max(BAND_PIXELS // max(width, 1), 1)
    return [slice(first, first + step) for first in range(0, height, step)]


def stuff_classes(data: DataSpec, channels: int) -> tuple[int, ...]:
    """The class of every semantic channel: of channel 0, all things together, -1, then stuff by increasing ids.

    ValueError where a head with so many channels has been made for other things than those of `data`.
    """
    count = len(data.labels) or len(data.things) + channels - 1
    stuff = tuple(i for i in range(count) if i not in data.things) if data.things else ()
    if len(stuff) != channels - 1:
        counted = f"{len(data.things)} of {count} classes" if data.things else "all classes"
        raise ValueError(f"a head with {channels - 1} classes of stuff does not fit data with objects of {counted}")
    return (-1, *stuff)


def panoptic_of_parts(output: PanopticFPNOutput, frame: Frame, data: DataSpec, **thresholds: float | None) -> Panoptic:
    """`merge` of the detections and the semantic map of one image, with the head's thresholds where none are given."""
    logits = SemanticOutput(output.semantic_logits, stride=output.stride)
    stuff = stuff_classes(data, logits.logits.shape[1])
    rule = output.rule.but(thresholds)
    found = things_of(output, data)
    boxes, rows = boxes_of(found, frame, data, rule["score_threshold"])
    masks = SoftMasks(found.mask_logits[0][rows], boxes, frame.original)
    classes, scores = found.classes[0][rows].tolist(), found.scores[0][rows].tolist()
    return merge(masks, classes, scores, class_map(logits_source(logits, frame.inside), frame.original), stuff, **rule)


def of_things(decoder: Callable[..., Any]) -> Callable[..., Any]:
    """The decoder of detections as one of Panoptic FPN's."""
    return lambda output, frame, data, **options: decoder(things_of(output, data), frame, data, **options)


def things_of(output: PanopticFPNOutput, data: DataSpec) -> InstanceOutput:
    """The detections of one image, their classes those of `data`, of which box class j is the j-th thing."""
    stuff_classes(data, output.semantic_logits.shape[1])  # says if it cannot be done
    classes = output.classes[0]
    if data.things:
        classes = torch.tensor(sorted(data.things), device=classes.device)[classes]
    return InstanceOutput(output.boxes, output.scores, (classes,), output.mask_logits)
