"""Detections of two-stage heads -> answers in pixels of the original image (FACTS section 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from fapn_zoo.modules.heads.outputs import DetectionOutput, InstanceOutput
from fapn_zoo.modules.layers.boxes import not_empty
from fapn_zoo.postprocess.answers import Detections, Frame, Instances, Segment, SoftMasks
from fapn_zoo.zoo.spec import DataSpec

MOST = 100  # of an image


def detections(
    output: DetectionOutput | InstanceOutput,
    frame: Frame,
    data: DataSpec,
    *,
    score_threshold: float = 0.5,
    max_instances: int = MOST,
) -> Detections:
    """The boxes of one image with at least this score, the best first.

    Only `data.things` are considered; empty means all classes. Boxes that end up without area are left out.
    """
    boxes, rows = boxes_of(output, frame, data, score_threshold, max_instances)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(dim=1).round().long().tolist()
    return Detections(boxes.cpu(), _segments(output, rows, areas))


def boxed_instances(
    output: InstanceOutput, frame: Frame, data: DataSpec, *, score_threshold: float = 0.5, max_instances: int = MOST
) -> Instances:
    """`detections` with their masks, which stay cells of boxes until pixels are asked for."""
    boxes, rows = boxes_of(output, frame, data, score_threshold, max_instances)
    masks = SoftMasks(output.mask_logits[0][rows], boxes, frame.original)
    areas = [int(masks.crop(m)[0].count_nonzero()) for m in range(len(masks))]
    return Instances(masks, _segments(output, rows, areas), boxes.cpu())


def boxes_of(
    output: DetectionOutput | InstanceOutput, frame: Frame, data: DataSpec, score_threshold: float, most: int = MOST
) -> tuple[Tensor, Tensor]:
    """Of what `detections` keeps boxes (M, 4) float32 inside the original image, and their rows in the output."""
    found, scores, classes = output.boxes[0], output.scores[0], output.classes[0]
    (height, width), (full_height, full_width) = frame.inside, frame.original
    scale = found.new_tensor([full_width / width, full_height / height] * 2)
    boxes = clip_boxes_to_image(found.float() * scale, frame.original)
    wanted = (scores >= score_threshold) & not_empty(boxes)
    if data.things:
        wanted &= torch.isin(classes, torch.tensor(data.things, device=classes.device))
    rows = torch.nonzero(wanted)[:most, 0]
    return boxes[rows], rows


def _segments(output: DetectionOutput | InstanceOutput, rows: Tensor, areas: list[int]) -> tuple[Segment, ...]:
    found = zip(output.classes[0][rows].tolist(), output.scores[0][rows].tolist(), areas, strict=True)
    return tuple(Segment(i, category, True, score, area) for i, (category, score, area) in enumerate(found, 1))
