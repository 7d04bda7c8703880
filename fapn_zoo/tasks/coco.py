"""Results in COCO's forms: run lengths, json of detections and instances, and PNG files of panoptic segments."""

from __future__ import annotations

from fapn_zoo.data.mask_encoding import RunLengths
from fapn_zoo.postprocess.cropped import Masks


def run_lengths(masks: Masks) -> list[RunLengths]:
    """Of every mask its run lengths; none is made as large as the image."""
    found = []
    for m in range(len(masks)):
        crop, (y, x) = masks.crop(m)
        found.append(RunLengths.of(crop.numpy(), y, x, masks.size))
    return found
