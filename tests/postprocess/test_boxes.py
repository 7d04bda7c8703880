"""Detections and cropped masks: scales, thresholds, pasting against torchvision's, and the memory that they take."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fapn_zoo.data.images import LoadedImage
from fapn_zoo.modules.heads.outputs import DetectionOutput, InstanceOutput
from fapn_zoo.postprocess import Frame, decode
from fapn_zoo.postprocess.answers import HardMasks, Packed, SoftMasks, pasted
from fapn_zoo.tasks import TASKS
from fapn_zoo.zoo.spec import DataSpec

pytestmark = pytest.mark.unit

FRAME = Frame((100, 200), (50, 100))
BOXES = torch.tensor([[20.0, 10, 60, 50], [0, 0, 200, 100], [190, 90, 200, 100], [30, 30, 30.0, 40]])
SCORES, CLASSES = torch.tensor([0.9, 0.7, 0.5, 0.4]), torch.tensor([1, 0, 2, 1])
LOGITS = torch.full((4, 28, 28), 9.0)


def hard(masks: torch.Tensor) -> HardMasks:
    return HardMasks([Packed.of(mask) for mask in masks], tuple(masks.shape[1:]))


def output(masks: bool = True) -> DetectionOutput | InstanceOutput:
    fields = (BOXES,), (SCORES,), (CLASSES,)
    return InstanceOutput(*fields, (LOGITS,)) if masks else DetectionOutput(*fields)


def random_masks(count: int, size: tuple[int, int], seed: int = 0, cells: int = 28) -> SoftMasks:
    generator = torch.Generator().manual_seed(seed)
    logits = F.interpolate(torch.randn(count, 1, 5, 5, generator=generator) * 4, (cells, cells), mode="bilinear")[:, 0]
    corners, sides = torch.rand(2, count, 2, generator=generator)
    scale = torch.tensor(size[::-1], dtype=torch.float32)
    low = corners * scale * 0.7
    boxes = torch.cat([low, torch.minimum(low + sides * scale * 0.4 + 1, scale)], dim=1)
    return SoftMasks(logits, boxes, size)


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_are_scaled_ranked_and_cut(masks):
    found = decode(output(masks), "detection", FRAME, DataSpec(), score_threshold=0.0)
    assert found.boxes.tolist() == [[10, 5, 30, 25], [0, 0, 100, 50], [95, 45, 100, 50]]  # the last is empty
    assert [(s.id, s.category_id, s.area, s.isthing) for s in found.segments] == [
        (1, 1, 400, True), (2, 0, 5000, True), (3, 2, 25, True)
    ]  # fmt: skip
    best = decode(output(masks), "detection", FRAME, DataSpec(), score_threshold=0.0, max_instances=1)
    assert len(best.boxes) == len(best.segments) == 1
    assert len(decode(output(masks), "detection", FRAME, DataSpec()).boxes) == 3  # 0.5 counts
    things = DataSpec(things=(1, 2), labels=("a", "b", "c"))
    assert [s.category_id for s in decode(output(masks), "detection", FRAME, things).segments] == [1, 2]
    with pytest.raises(ValueError, match="answers .*detection, not 'panoptic'"):
        decode(output(masks), "panoptic", FRAME, DataSpec())


def test_instances_keep_their_boxes():
    found = decode(output(), "instance", FRAME, DataSpec())
    assert found.boxes.tolist() == [[10, 5, 30, 25], [0, 0, 100, 50], [95, 45, 100, 50]]
    assert found.masks.shape == (3, 50, 100) and [s.area for s in found.segments] == [400, 4996, 25]
    # of the large box the corner pixels lie too near to two sides, where the masks end
    assert found.masks[0, 5:25, 10:30].all() and found.masks[0].sum() == 400


def test_nothing_found():
    empty = InstanceOutput((BOXES[:0],), (SCORES[:0],), (CLASSES[:0],), (LOGITS[:0],))
    assert decode(empty, "detection", FRAME, DataSpec()).boxes.shape == (0, 4)
    found = decode(empty, "instance", FRAME, DataSpec())
    assert found.masks.shape == (0, 50, 100) and found.boxes.shape == (0, 4) and found.segments == ()


@pytest.mark.parametrize(("size", "cells"), [((61, 83), 28), ((200, 150), 28), ((200, 150), 224)])
def test_pasted_masks_are_those_of_bilinear_sampling(size, cells):
    """By the rule in full: every pixel of the image samples the mask, which is 0 outside."""
    masks = random_masks(30, size, cells=cells)
    height, width = size
    for m, found in enumerate(pasted(masks)):
        x1, y1, x2, y2 = masks._boxes[m]
        y = (torch.arange(height, dtype=torch.float64) + 0.5 - y1) / (y2 - y1) * 2 - 1
        x = (torch.arange(width, dtype=torch.float64) + 0.5 - x1) / (x2 - x1) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        value = F.grid_sample(masks._cells[m].double()[None, None], grid, align_corners=False)[0, 0]
        unsure = (value - 0.5).abs() < 1e-5
        assert torch.equal(found | unsure, (value >= 0.5) | unsure)


def test_hard_masks_are_cut_and_come_back():
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[0, 3:9, 10:30] = True
    masks[2, 39, 59] = masks[2, 0, 0] = True
    found = hard(masks)
    assert torch.equal(pasted(found), masks) and len(found) == 3
    assert found.crop(0)[0].shape == (6, 20) and found.crop(0)[1] == (3, 10)
    assert found.crop(1)[0].numel() == 0


def test_many_objects_on_a_photo_take_little_memory():
    """300 objects on 12 megapixels; their full masks would take 3.6 GB."""
    size, count = (3000, 4000), 300
    masks = random_masks(count, size)
    found = InstanceOutput(
        (torch.tensor(masks._boxes),), (torch.linspace(1, 0.5, count),), (torch.arange(count) % 5,),
        (torch.logit(masks._cells),),
    )  # fmt: skip
    data = DataSpec(labels=tuple("abcde"), palette=((9, 9, 9),) * 5)
    image = LoadedImage(torch.zeros(3, *size, dtype=torch.uint8), "photo")
    tracemalloc.start()  # numpy's memory; torch's are a few numbers and one crop
    answer = decode(found, "instance", Frame(size, size), data, max_instances=count)
    result = TASKS["instance"].result(answer, image, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(result.segments) == count and peak < 300 * 2**20, f"{peak / 2**20:.0f} MiB"
    best = result.segments[0]
    crop, (y, x) = result.cropped.crop(0)
    assert best["area"] == int(crop.sum()) == int((result.segment_map == 1).sum())
    height, width = crop.shape
    assert np.array_equal(result.segment_map[y : y + height, x : x + width] == 1, crop.numpy())


def test_pasting_is_fast(record_property):
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    size, count = (1500, 2000), 20
    masks = random_masks(count, size)
    best, boxes = [], torch.tensor(masks._boxes)
    for paste in (lambda: pasted(masks), lambda: paste_masks_in_image(masks._cells[:, None], boxes, size)):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            paste()
            times.append(time.perf_counter() - start)
        best.append(min(times))
    record_property("row of pasting masks", {"ours": f"{best[0]:.4f} s", "torchvision": f"{best[1]:.4f} s"})
    assert best[0] < best[1]
