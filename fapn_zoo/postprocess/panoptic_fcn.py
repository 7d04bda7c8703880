"""Positions and kernels of Panoptic FCN -> instances and panoptic maps (Li et al., CVPR 2021, section 3.4; FACTS 4).

Of one image: T classes of things, S of stuff, E numbers of a kernel, M objects. All arithmetic is float32.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fapn_zoo.modules.heads.outputs import PanopticFCNOutput
from fapn_zoo.postprocess.answers import ClassMap, Frame, HardMasks, Instances, Packed, Panoptic, Segment
from fapn_zoo.postprocess.masks import rows_of
from fapn_zoo.postprocess.merge import merge, stuff_classes
from fapn_zoo.postprocess.semantic import Source, bands, check_cover, enlarged_rows
from fapn_zoo.zoo.spec import DataSpec

SMOOTHED = (3, 3, 3, 5, 5)  # pixels of a level that a centre's score is averaged over
PER_LEVEL, MOST = 50, 100  # objects of a level before kernels are joined, and of an image
ALIKE = 0.9  # cosine of kernels that are taken for those of one object
INSIDE = 0.4  # probability from which on a pixel is of an object's mask
LEAST_SCORE = 0.05


class Objects(NamedTuple):
    """M objects of one image, the best first."""

    masks: Tensor  # (M, H, W) probabilities at the output's stride
    scores: Tensor  # (M,)
    classes: Tensor  # (M,) int64, places among the things


def instances(
    output: PanopticFCNOutput,
    frame: Frame,
    data: DataSpec,
    *,
    score_threshold: float = 0.2,
    max_instances: int = MOST,
    thing_threshold: float = 0.2,
) -> Instances:
    """The objects of one image with at least this score, the best first; their masks may overlap.

    A score is that of the centre, which must exceed `thing_threshold`, times the mean probability inside the mask.
    Masks without a pixel at the size of the answer are left out.
    """
    check_cover(output.features, output.stride, frame.inside)
    found = objects(output, thing_threshold)
    things, packed, segments = _things(output, data), [], []
    for mask, score, thing in zip(*found, strict=True):
        if score < score_threshold or len(packed) == max_instances:
            break
        pixels, area = _pixels(mask, frame, output.stride)
        if area:
            packed.append(pixels)
            segments.append(Segment(len(packed), things[int(thing)], True, float(score), area))
    return Instances(HardMasks(packed, frame.original), tuple(segments))


def panoptic(
    output: PanopticFCNOutput,
    frame: Frame,
    data: DataSpec,
    *,
    thing_threshold: float = 0.2,
    stuff_threshold: float = 0.1,
    **thresholds: float | None,
) -> Panoptic:
    """`merge` of the objects and the map of stuff, with the head's thresholds (`MergeRule`) where none are given.

    Centres of objects must exceed `thing_threshold`, the mean score of a region of stuff `stuff_threshold`.
    """
    check_cover(output.features, output.stride, frame.inside)
    rule = output.rule.but(thresholds)
    found = objects(output, thing_threshold)
    count = int((found.scores >= rule["score_threshold"]).sum())
    masks = HardMasks([_pixels(m, frame, output.stride)[0] for m in found.masks[:count]], frame.original)
    things, stuff = _things(output, data), stuff_classes(data, output.regions[0].shape[1])
    classes = [things[place] for place in found.classes[:count].tolist()]
    semantic = stuff_map(output, frame, stuff_threshold)
    return merge(masks, classes, found.scores[:count].tolist(), semantic, stuff, **rule)


def objects(output: PanopticFCNOutput, threshold: float) -> Objects:
    """The objects whose centres exceed the threshold: kernels that are alike are one, and masks score their objects."""
    levels = zip(output.centres, output.thing_kernels, SMOOTHED, strict=True)
    scores, classes, kernels = map(torch.cat, zip(*(_peaks(*level, threshold) for level in levels), strict=True))
    order = scores.argsort(descending=True, stable=True)
    kernels, scores, classes = joined(kernels[order], scores[order], classes[order])
    features = output.features[0].float()
    masks = (kernels @ features.flatten(1)).view(-1, *features.shape[1:]).sigmoid_()
    inside = masks > INSIDE
    scores = scores * (masks * inside).sum(dim=(1, 2)) / (inside.sum(dim=(1, 2)) + 1e-6)
    order = scores.argsort(descending=True, stable=True)[:MOST]
    order = order[scores[order] >= LEAST_SCORE]
    return Objects(masks[order], scores[order], classes[order])


def _peaks(centres: Tensor, kernels: Tensor, smoothed: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, classes and kernels (P, E) of one level's local maxima, at most `PER_LEVEL`."""
    found = centres.float().sigmoid()
    found = (found + F.avg_pool2d(found, smoothed, stride=1, padding=smoothed // 2)) / 2
    found = found.where(found == F.max_pool2d(found, 3, stride=1, padding=1), 0)
    pixels = found.shape[2] * found.shape[3]
    scores, places = found.flatten().topk(min(pixels, PER_LEVEL))
    kept = scores > threshold
    scores, places = scores[kept], places[kept]
    return scores, places // pixels, kernels[0].float().flatten(1).T[places % pixels]


def joined(kernels: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kernels (P, E), best first, of which those alike and of one class become their mean, with the best one's score.

    A kernel belongs to the first one that it is alike. Where that one belongs to another itself, it is left out.
    """
    if not len(kernels):
        return kernels, scores, classes
    unit = F.normalize(kernels, dim=1, eps=1e-8)
    alike = (unit @ unit.T >= ALIKE) & (classes[:, None] == classes[None])
    alike.fill_diagonal_(True)  # also of a kernel of zeros
    first = alike.int().argmax(dim=0)  # of equal ones the first
    kept = torch.nonzero(first == torch.arange(len(first), device=first.device))[:, 0]
    members = (first[None] == kept[:, None]).to(kernels.dtype)
    return members @ kernels / members.sum(dim=1, keepdim=True), scores[kept], classes[kept]


def stuff_map(output: PanopticFCNOutput, frame: Frame, threshold: float) -> ClassMap:
    """Of every pixel of the answer the channel 0..S of stuff that is most probable, and its probability.

    Channel 0, any thing, with a probability of 0 where nothing was found.
    """
    channels, logits = stuff_masks(output, threshold)
    masks, device = logits.sigmoid_(), logits.device
    labels = torch.zeros(frame.original, dtype=torch.int64, device=device)
    shares = torch.zeros(frame.original, dtype=torch.float32, device=device)
    if len(channels):
        rows = partial(enlarged_rows, masks, frame.inside[1], output.stride)
        for first, last, band in bands(Source(rows, len(masks), frame.inside, device), frame.original):
            shares[first:last], best = band.max(dim=0)
            labels[first:last] = channels[best].where(shares[first:last] > 0, 0)
    return ClassMap(labels, shares)


def stuff_masks(output: PanopticFCNOutput, threshold: float) -> tuple[Tensor, Tensor]:
    """The channels of stuff that were found (C,), and logits (C, H, W) of their masks.

    A level finds a channel where it is the best one in some places whose mean score exceeds the threshold. Its kernel
    there is the mean over the level, with zero in other places; those of all levels that find it are averaged.
    """
    kernels, levels = 0, 0
    for regions, maps in zip(output.regions, output.stuff_kernels, strict=True):
        scores, best = regions[0].float().sigmoid().flatten(1).max(dim=0)
        places = F.one_hot(best, regions.shape[1]).float().T  # (S + 1, h * w)
        counts = places.sum(dim=1)
        found = (places @ scores / counts.clamp(min=1) > threshold).float()
        kernels = kernels + found[:, None] * (places @ maps[0].float().flatten(1).T) / len(best)
        levels = levels + found
    channels = torch.nonzero(levels)[:, 0]
    kernels, features = kernels[channels] / levels[channels, None], output.features[0].float()
    logits = (kernels @ features.flatten(1)).view(-1, *features.shape[1:])
    return channels, logits + output.stuff_base.float()


def _pixels(mask: Tensor, frame: Frame, stride: int) -> tuple[Packed, int]:
    """The pixels of the answer in a mask (H, W), and how many they are. Only the rows are made in which it can be."""
    top, bottom = rows_of(mask > INSIDE, frame, stride)
    rows = partial(enlarged_rows, mask[None], frame.inside[1], stride)
    source = Source(rows, 1, frame.inside, mask.device)
    parts = [band[0] > INSIDE for _, _, band in bands(source, frame.original, within=(top, bottom))]
    pixels = torch.cat(parts) if parts else mask[:0] > INSIDE
    return Packed.of(pixels, top), int(pixels.count_nonzero())


def _things(output: PanopticFCNOutput, data: DataSpec) -> list[int]:
    """The class of every channel of centres."""
    stuff_classes(data, output.regions[0].shape[1])  # says if it cannot be done
    return sorted(data.things) or list(range(output.centres[0].shape[1]))
