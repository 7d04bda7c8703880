"""Objects through the random change of training and the cache: boxes as floats, masks as label maps are moved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import coco

from fapn_zoo.data import open_dataset
from fapn_zoo.data.cache import CachedDataset
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import BOXES, MASKS, Crop, Objects, Sample
from fapn_zoo.data.sources import JoinedDataset
from fapn_zoo.data.transforms import TrainTransform
from fapn_zoo.tasks.objects import object_targets

pytestmark = pytest.mark.unit


def sample(seed: int, count: int = 5, size: tuple[int, int] = (40, 56)) -> tuple[Sample, np.ndarray]:
    """Objects whose masks overlap, and these masks; each is also a label map."""
    rng = np.random.default_rng(seed)
    masks, crops = np.zeros((count, *size), bool), []
    for mask in masks:
        (y, x), (h, w) = rng.integers(0, 20, 2), rng.integers(3, 20, 2)
        pixels = rng.random((h, w)) < 0.8
        pixels[[0, -1]] = pixels[:, [0, -1]] = True
        mask[y : y + h, x : x + w] = pixels
        crops.append(Crop(pixels, int(y), int(x)))
    objects = Objects(None, np.arange(count), np.zeros(count, bool), tuple(crops))
    boxes = objects.boxes + rng.uniform(-0.4, 0.4, (count, 4))  # as annotated, between pixels
    objects = dataclasses.replace(objects, given_boxes=boxes, given_areas=rng.uniform(1, 99, count))
    return Sample(torch.from_numpy(rng.integers(0, 255, (3, *size), np.uint8)), "x", None, objects), masks


@pytest.mark.parametrize("seed", range(12))
def test_masks_go_where_label_maps_go_and_boxes_follow(seed: int):
    one, masks = sample(seed)
    change = TrainTransform((48, 40), (0.4, 2.5), needs=MASKS)
    found = change(one, seed)
    objects = found.objects
    assert found.size == (48, 40) and objects.classes is one.objects.classes and objects.given_areas is None
    as_labels = dataclasses.replace(change, needs=frozenset({"labels"}), ignore_index=0)
    for m, mask in enumerate(masks):
        moved = as_labels(dataclasses.replace(one, labels=mask.astype(np.uint8)), seed).labels > 0
        np.testing.assert_array_equal(objects.masks([m], found.size)[0], moved)
        x1, y1, x2, y2 = objects.boxes[m]
        assert 0 <= x1 <= x2 <= 40 and 0 <= y1 <= y2 <= 48
        if moved.any():
            rows, cols = np.flatnonzero(moved.any(1)), np.flatnonzero(moved.any(0))
            tight = [cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(objects.boxes[m], tight, atol=0.4 * 2.5 + 1.01)
        elif not moved.any() and mask.any():
            assert (x2 - x1) * (y2 - y1) < 6
    boxes_alone = dataclasses.replace(change, needs=BOXES)(one, seed).objects
    assert not boxes_alone.has_masks
    whole = ((boxes_alone.boxes > 0) & (boxes_alone.boxes < [40, 48, 40, 48])).all(1)
    np.testing.assert_allclose(boxes_alone.boxes[whole], objects.boxes[whole], atol=1e-9)


def test_boxes_are_scaled_shifted_mirrored_and_clipped():
    boxes = np.array([[2.25, 4.5, 10.75, 8], [-3, 0, 4, 4], [30, 30, 40, 60], [0, 0, 56, 40]])
    objects = Objects(None, np.zeros(4, np.int64), np.zeros(4, bool), given_boxes=boxes)
    one = Sample(torch.zeros(3, 40, 56, dtype=torch.uint8), "x", None, objects)
    plain = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "needs": BOXES}
    found = TrainTransform((80, 112), (2, 2), flip=0, **plain)(one, 0).objects.boxes
    np.testing.assert_allclose(found, (boxes * 2).clip(0, [112, 80, 112, 80]))
    mirrored = TrainTransform((80, 112), (2, 2), flip=1, **plain)(one, 0).objects.boxes
    np.testing.assert_allclose(mirrored, np.stack([112 - found[:, 2], found[:, 1], 112 - found[:, 0], found[:, 3]], 1))
    for seed in range(8):  # a small window: what is pushed out has an empty box
        found = TrainTransform((6, 6), (1, 1), flip=0.5, **plain)(one, seed).objects
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        assert (found.boxes[3] == [0, 0, 6, 6]).all() and ((sides > 0.01).all(1) | (found.boxes == 0).all(1)).all()
        targets = object_targets(
            Sample(torch.zeros(3, 6, 6), "x", None, found), LabelMap(("a",), things=(0,)), things_only=True, masks=False
        )
        assert len(targets.boxes[0]) == (sides > 0).all(1).sum() < 4


def test_a_sliver_at_the_border_is_nothing():
    boxes = np.array([[28 - 1e-12, 0, 40, 40], [0, 0, 28, 40]])
    objects = Objects(None, np.zeros(2, np.int64), np.zeros(2, bool), given_boxes=boxes)
    one = Sample(torch.zeros(3, 40, 56, dtype=torch.uint8), "x", None, objects)
    for seed in range(200):
        found = TrainTransform((40, 28), (1, 1), flip=0, needs=BOXES)(one, seed).objects.boxes
        sides = found[:, 2:] - found[:, :2]
        assert ((sides == 0).all(1) | (sides > 0.01).all(1)).all()


def same(a: Sample, b: Sample) -> None:
    assert a.name == b.name and torch.equal(a.image, b.image)
    one, other = a.objects, b.objects
    for name in ("classes", "crowd", "boxes", "areas"):
        x, y = getattr(one, name), getattr(other, name)
        assert x.dtype == y.dtype and np.array_equal(x, y)
    assert one.has_masks == other.has_masks and (one.ids is None) == (other.ids is None)
    if one.has_masks:
        rows = range(len(one.classes))
        assert np.array_equal(one.masks(rows, a.size), other.masks(rows, b.size))


@pytest.mark.parametrize("needs", [MASKS, BOXES])
@pytest.mark.parametrize("masks", [True, False])
def test_the_cache_gives_what_was_read(tmp_path: Path, needs: frozenset[str], masks: bool):
    content = coco.table(4, masks=masks)
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 2]
    content["annotations"][1] |= {"iscrowd": 1}
    data = open_dataset(coco.write(tmp_path, content), "train", needs)
    cached = CachedDataset(data, needs)
    for _ in range(2):
        for i in range(len(data)):
            same(cached.sample(i), data.sample(i).only(needs))
    joined = CachedDataset(JoinedDataset([data, data]), needs)
    same(joined.sample(5), data.sample(1).only(needs))


def test_masks_that_fill_the_cache_are_passed_through():
    class Many:
        name, labels, holds = "many", LabelMap(("a",), things=(0,)), MASKS

        def __len__(self) -> int:
            return 1

        def size(self, index: int) -> tuple[int, int]:
            return 8, 8

        def sample(self, index: int) -> Sample:
            crops = tuple(Crop(np.ones((8, 8), bool), 0, 0) for _ in range(40))
            return Sample(
                torch.ones(3, 8, 8, dtype=torch.uint8),
                "x",
                None,
                Objects(None, np.zeros(40, np.int64), np.zeros(40, bool), crops),
            )

    cached = CachedDataset(Many(), MASKS)
    for _ in range(2):
        same(cached.sample(0), Many().sample(0))
