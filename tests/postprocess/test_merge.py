"""Merging of objects and stuff: against the rule in full, on truths, and what it costs."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from toys.merging import merged_full, random_case
from toys.metric_references import SCENE_CATEGORIES, PanopticReference, disturbed, read_png

from fapn_zoo.data.scenes import CLASSES, THINGS, generate_scene
from fapn_zoo.metrics import PanopticQuality
from fapn_zoo.modules.heads.outputs import MergeRule, PanopticFPNOutput
from fapn_zoo.postprocess import ClassMap, Frame, Panoptic, decode
from fapn_zoo.postprocess.answers import HardMasks, Packed, pasted
from fapn_zoo.postprocess.merge import merge, stuff_classes
from fapn_zoo.zoo.spec import DataSpec

pytestmark = pytest.mark.unit


def hard(masks: torch.Tensor) -> HardMasks:
    return HardMasks([Packed.of(mask) for mask in masks], tuple(masks.shape[1:]))


def shown(found: Panoptic) -> list[tuple[int, int, bool, int]]:
    return [(s.id, s.category_id, s.isthing, s.area) for s in found.segments]


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(
    "count, size, channels", [(40, (90, 120), 6), (1, (33, 70), 2), (0, (40, 50), 4), (25, (64, 64), 1)]
)
def test_equals_the_loop_over_full_masks(count, size, channels, overlap):
    masks, scores, semantic = random_case(count, size, channels, seed=count)
    classes, stuff = [i % 3 for i in range(count)], [-1, *range(3, channels + 2)]
    options = {"score_threshold": 0.45, "overlap_threshold": overlap, "stuff_area": 300}
    found = merge(masks, classes, scores, semantic, stuff, **options)
    ids, segments = merged_full(pasted(masks), classes, scores, semantic.labels, stuff, **options)
    assert torch.equal(found.ids, ids) and shown(found) == segments and found.ids.dtype == torch.int32
    for segment in found.segments:
        mine = found.ids == segment.id
        expected = semantic.scores[mine].mean().item() if not segment.isthing else found.scores[mine].mean().item()
        assert segment.score == pytest.approx(expected, abs=1e-5)
    assert (found.scores[found.ids == 0] == 0).all()


def test_thresholds_decide_at_their_value():
    """Half of a mask may be taken and the area may be reached, a score may be it; a hair beyond and it is out."""
    masks = torch.zeros(3, 10, 20, dtype=torch.bool)
    masks[0, :, :10], masks[1, :, 5:15], masks[2, :, 4:14] = True, True, True
    semantic = ClassMap(torch.ones(10, 20, dtype=torch.int64), torch.full((10, 20), 0.5))
    found = merge(hard(masks), [7, 8, 9], [0.9, 0.5, 0.8], semantic, [-1, 3], stuff_area=50)
    assert shown(found) == [(1, 7, True, 100), (2, 8, True, 50), (3, 3, False, 50)]  # of the 9 are 60 % taken
    found = merge(hard(masks), [7, 8, 9], [0.9, 0.49, 0.8], semantic, [-1, 3], stuff_area=101)
    assert shown(found) == [(1, 7, True, 100)] and not found.ids[:, 10:].any()


def test_stuff_below_things_gets_only_what_is_free():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, :4] = True
    labels = torch.zeros(8, 8, dtype=torch.int64)
    labels[:, :2] = 2  # the rest says "a thing", which nobody found
    found = merge(hard(masks), [0], [0.9], ClassMap(labels, torch.ones(8, 8)), [-1, 5, 6], stuff_area=8)
    assert shown(found) == [(1, 0, True, 32), (2, 6, False, 8)] and (found.ids[4:, 2:] == 0).all()


def as_parts(ids: np.ndarray, category: dict[int, int], things: tuple[int, ...], count: int) -> Panoptic:
    """Segments given as a model would give them: masks of things, and logits of stuff."""
    order = [i for i, c in category.items() if c in things]
    masks = hard(torch.from_numpy(np.stack([ids == i for i in order]))) if order else ()
    stuff = stuff_classes(DataSpec(labels=("",) * count, things=things), count - len(things) + 1)
    channels = {i: 0 if c in things else stuff.index(c) for i, c in category.items()}
    table = np.zeros(ids.max() + 1, np.int64)
    for i, channel in channels.items():
        table[i] = channel
    semantic = ClassMap(torch.from_numpy(table[ids]), torch.ones(ids.shape))
    if not order:
        masks = hard(torch.zeros(0, *ids.shape, dtype=torch.bool))
    return merge(masks, [category[i] for i in order], [0.9] * len(order), semantic, stuff, stuff_area=0)


def scored(found: Panoptic, to_category: list[int], metric, ids: np.ndarray, segments: list[dict]) -> None:
    mine = [{"id": s.id, "category_id": to_category[s.category_id]} for s in found.segments]
    metric.update(found.ids.numpy(), mine, ids, segments)


@pytest.mark.parametrize("wrong", [False, True])
def test_scenes_through_the_merge(wrong):
    """PQ of the truth is 100; of a disturbed one what the reference finds of the maps that were merged."""
    metric, reference = PanopticQuality(SCENE_CATEGORIES), PanopticReference(SCENE_CATEGORIES)
    to_category = [c["id"] for c in SCENE_CATEGORIES]
    for seed in range(12 if wrong else 50):
        scene = generate_scene(seed, (48, 64))
        true = [{"id": s["id"], "category_id": to_category[s["category_id"]]} for s in scene.segments]
        ids, listed = disturbed(scene.panoptic, true, seed) if wrong else (scene.panoptic, true)
        category = {s["id"]: to_category.index(s["category_id"]) for s in listed}
        found = as_parts(ids, category, tuple(THINGS), len(CLASSES))
        stuff = {c for c in category.values() if c not in THINGS}
        assert sum(not s.isthing for s in found.segments) == len(stuff)  # segments of one stuff become one
        scored(found, to_category, metric, scene.panoptic, true)
        mine = [{"id": s.id, "category_id": to_category[s.category_id]} for s in found.segments]
        reference.update(found.ids.numpy(), mine, scene.panoptic, true)
    result = metric.compute()
    for group, things in (("all", None), ("things", True), ("stuff", False)):
        assert result[group] == pytest.approx(reference.mean(things), abs=1e-9)
    assert 0.1 < result["all"]["pq"] < 0.95 if wrong else result["all"]["pq"] == result["stuff"]["pq"] == 1


@pytest.mark.parametrize("wrong", [False, True])
def test_coco_through_the_merge(wrong):
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "coco_panoptic_sample"
    folder = Path(os.environ.get("FAPN_ZOO_COCO_PANOPTIC", beside))
    if not folder.is_dir():
        pytest.skip(f"no COCO panoptic sample at {folder}: set FAPN_ZOO_COCO_PANOPTIC to its folder")
    table = json.loads((folder / "panoptic.json").read_text())
    to_category = [c["id"] for c in table["categories"]]
    things = tuple(i for i, c in enumerate(table["categories"]) if c["isthing"])
    metric, reference = PanopticQuality(table["categories"]), PanopticReference(table["categories"])
    for n, annotation in enumerate(table["annotations"]):
        raw, true = (
            read_png(folder / "panoptic" / annotation["file_name"]).astype(np.int64),
            annotation["segments_info"],
        )
        values = [0, *(s["id"] for s in true)]
        ids = np.searchsorted(np.sort(values), raw).astype(np.int32)
        small = {int(v): i for i, v in enumerate(np.sort(values))}
        true = [s | {"id": small[s["id"]]} for s in true]
        shifted, listed = disturbed(ids, true, n) if wrong else (ids, [s for s in true if not s["iscrowd"]])
        category = {s["id"]: to_category.index(s["category_id"]) for s in listed}
        found = as_parts(shifted, category, things, len(to_category))
        scored(found, to_category, metric, ids, true)
        mine = [{"id": s.id, "category_id": to_category[s.category_id]} for s in found.segments]
        reference.update(found.ids.numpy(), mine, ids, true)
    result = metric.compute()
    assert result["all"] == pytest.approx(reference.mean(), abs=1e-9)
    assert result["all"]["pq"] < 0.99 if wrong else result["all"]["pq"] == 1


def output(**rule: float) -> PanopticFPNOutput:
    """Two classes of things (1 and 3 of five) and three of stuff; one detection of either."""
    boxes = torch.tensor([[8.0, 8, 40, 40], [0, 0, 16, 16]])
    logits = torch.zeros(1, 4, 16, 32)
    logits[0, 2, :8], logits[0, 3, 8:] = 5, 5
    fields = (boxes,), (torch.tensor([0.9, 0.4]),), (torch.tensor([1, 0]),), (torch.full((2, 28, 28), 9.0),)
    return PanopticFPNOutput(*fields, logits, rule=MergeRule(**{"stuff_area": 0} | rule))


DATA = DataSpec(labels=tuple("abcde"), palette=((1, 2, 3),) * 5, things=(1, 3))
FRAME = Frame((60, 120), (30, 60))


def test_classes_are_those_of_the_data():
    found = decode(output(), "panoptic", FRAME, DATA)
    assert [(s.category_id, s.isthing) for s in found.segments] == [(3, True), (2, False), (4, False)]
    assert found.ids.shape == (30, 60) and (found.ids > 0).all() and (found.ids[5:19, 5:19] == 1).all()
    assert [s.category_id for s in decode(output(), "detection", FRAME, DATA, score_threshold=0).segments] == [3, 1]
    masks = decode(output(), "instance", FRAME, DATA, score_threshold=0.3)
    assert [s.category_id for s in masks.segments] == [3, 1] and masks.masks.shape == (2, 30, 60)
    with pytest.raises(ValueError, match="answers panoptic, instance, detection, not 'semantic'"):
        decode(output(), "semantic", FRAME, DATA)


def test_the_rule_of_the_head_is_a_default():
    low = decode(output(score_threshold=0.3), "panoptic", FRAME, DATA)
    assert [s.category_id for s in low.segments] == [3, 1, 2, 4]
    given = decode(
        output(score_threshold=0.3, stuff_area=4096), "panoptic", FRAME, DATA, score_threshold=0.95, stuff_area=1
    )
    assert [s.category_id for s in given.segments] == [2, 4]
    assert [s.category_id for s in decode(output(stuff_area=4096), "panoptic", FRAME, DATA).segments] == [
        3
    ]  # small image


@pytest.mark.parametrize("task", ["panoptic", "instance", "detection"])
@pytest.mark.parametrize("things, count", [((), 5), ((1,), 5), ((1, 2, 3), 5), ((1, 3), 6)])
def test_things_of_another_head_are_refused(task, things, count):
    data = DataSpec(labels=("x",) * count, things=things)
    with pytest.raises(ValueError, match="a head with 3 classes of stuff does not fit data with objects of"):
        decode(output(), task, FRAME, data)


def test_all_are_things_or_some_alone():
    assert stuff_classes(DataSpec(), 1) == (-1,) and stuff_classes(DataSpec(things=(0, 1)), 1) == (-1,)
    assert stuff_classes(DataSpec(things=(2, 0)), 2) == (-1, 1)
    every = output()._replace(semantic_logits=torch.zeros(1, 1, 16, 32))
    found = decode(every, "panoptic", FRAME, DataSpec(labels=("a", "b"), things=(0, 1)))
    assert shown(found)[0][1:3] == (1, True) and len(found.segments) == 1
    assert shown(found) == shown(decode(every, "panoptic", FRAME, DataSpec(labels=("a", "b"))))


def test_merging_is_fast(record_property):
    size, count = (600, 800), 100
    masks, scores, semantic = random_case(count, size, 54)
    classes, stuff = [i % 80 for i in range(count)], [-1, *range(80, 133)]
    full = pasted(masks)
    seconds = [np.inf, np.inf]
    for _ in range(2):
        start = time.perf_counter()
        found = merge(masks, classes, scores, semantic, stuff)
        between = time.perf_counter()
        ids, segments = merged_full(full, classes, scores, semantic.labels, stuff)
        seconds = [min(seconds[0], between - start), min(seconds[1], time.perf_counter() - between)]
    assert torch.equal(found.ids, ids) and shown(found) == segments
    record_property("row of merging", {"ours": f"{seconds[0]:.3f} s", "a loop over full masks": f"{seconds[1]:.3f} s"})
    assert 3 * seconds[0] < seconds[1]


def test_a_photo_takes_little_memory():
    """100 objects on 12 megapixels: two maps and no mask that is as large."""
    size, count = (3000, 4000), 100
    masks, scores, semantic = random_case(count, size, 54)
    classes, stuff = [i % 80 for i in range(count)], [-1, *range(80, 133)]
    tracemalloc.start()
    merge(masks, classes, scores, semantic, stuff)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * size[0] * size[1], f"{peak / 2**20:.0f} MiB"
