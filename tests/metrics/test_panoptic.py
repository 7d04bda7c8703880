"""PanopticQuality against a plain reading of its rules, stored numbers of panopticapi, and all it must refuse."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from toys.metric_references import SCENE_CATEGORIES, PanopticReference, disturbed, panoptic_pair, read_png

from fapn_zoo.data.reading import read_ids
from fapn_zoo.metrics import PanopticQuality

pytestmark = pytest.mark.unit

TABLE = [{"id": 1, "isthing": 1}, {"id": 7, "isthing": 0}, {"id": 200, "isthing": 1}]


def agree(metric: PanopticQuality, reference: PanopticReference) -> None:
    """Integers identical, floats to 1e-9."""
    found = metric.compute()
    for category, (tp, fp, fn, iou) in reference.counts.items():
        row = found["per_class"][category]
        assert (row["tp"], row["fp"], row["fn"]) == (tp, fp, fn), category
        assert row["iou"] == pytest.approx(iou, abs=1e-9)
    for name, things in (("all", None), ("things", True), ("stuff", False)):
        assert found[name] == pytest.approx(reference.mean(things), abs=1e-9)


def one(pred, pred_segments, gt, gt_segments) -> dict[int, tuple[int, int, int, float]]:
    """tp, fp, fn, iou by category for one image; segments as {id: category}, "crowd" ids in a third entry."""
    metric = PanopticQuality(TABLE)
    metric.update(np.array(pred), listed(pred_segments), np.array(gt), listed(gt_segments))
    rows = metric.compute()["per_class"].items()
    return {i: (r["tp"], r["fp"], r["fn"], r["iou"]) for i, r in rows if r["tp"] + r["fp"] + r["fn"]}


def listed(segments: dict) -> list[dict]:
    crowds = segments.get("crowd", ())
    return [{"id": i, "category_id": c, "iscrowd": int(i in crowds)} for i, c in segments.items() if i != "crowd"]


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_rules_on_generated_scenes(seed: int):
    metric, reference = PanopticQuality(SCENE_CATEGORIES), PanopticReference(SCENE_CATEGORIES)
    for i in range(6 * seed, 6 * seed + 6):
        metric.update(*panoptic_pair(i))
        reference.update(*panoptic_pair(i))
    assert min(metric.counts.sum(0)[:3]) > 0
    agree(metric, reference)


def test_equals_panopticapi():
    """Stored results of panopticapi (commit 7bb46555): `pq_compute_single_core` and `pq_average` on scenes 0 to 7.

    The maps of `panoptic_pair` were written as PNG with its `id2rgb`; per class: tp, fp, fn, sum of IoU.
    """
    official = json.loads(Path(__file__).with_name("official.json").read_text())["panopticapi"]
    metric = PanopticQuality(SCENE_CATEGORIES)
    for seed in range(8):
        metric.update(*panoptic_pair(seed))
    found = metric.compute()
    for category, counts in official["per_class"].items():
        row = found["per_class"][int(category)]
        assert [row["tp"], row["fp"], row["fn"]] == counts[:3]
        assert row["iou"] == pytest.approx(counts[3], abs=1e-9)
    for group in ("all", "things", "stuff"):
        assert found[group] == pytest.approx(official[group], abs=1e-9)


def test_equals_the_rules_on_coco():
    """Two images of COCO with crowds and void, disturbed in 20 ways; FAPN_ZOO_COCO_PANOPTIC names their folder."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "coco_panoptic_sample"
    folder = Path(os.environ.get("FAPN_ZOO_COCO_PANOPTIC", beside))
    if not folder.is_dir():
        pytest.skip(f"no COCO panoptic sample at {folder}: set FAPN_ZOO_COCO_PANOPTIC to its folder")
    table = json.loads((folder / "panoptic.json").read_text())
    metric, reference = PanopticQuality(table["categories"]), PanopticReference(table["categories"])
    for annotation in table["annotations"]:
        file, segments = folder / "panoptic" / annotation["file_name"], annotation["segments_info"]
        ids = read_ids(file)
        np.testing.assert_array_equal(ids, read_png(file))
        for seed in range(10):
            image = (*disturbed(ids, segments, seed), ids, segments)
            metric.update(*image)
            reference.update(*image)
    agree(metric, reference)


def test_a_perfect_prediction_scores_one():
    metric = PanopticQuality(SCENE_CATEGORIES)
    *_, ids, segments = panoptic_pair(0)
    metric.update(ids, segments, ids, [s | {"iscrowd": 0} for s in segments])
    assert {k: v for k, v in metric.compute()["all"].items() if k != "n"} == {"pq": 1, "sq": 1, "rq": 1}


def test_iou_of_one_half_is_no_match():
    truth = [[1, 1, 1, 0]]
    assert one([[5, 5, 5, 5]], {5: 1}, truth, {1: 1}) == {1: (1, 0, 0, 1.0)}  # void is not in the union
    assert one([[5, 5, 0, 0]], {5: 1}, truth, {1: 1}) == {1: (1, 0, 0, pytest.approx(2 / 3))}
    assert one([[5, 5, 0]], {5: 1}, [[1, 2, 2]], {1: 1, 2: 7}) == {1: (0, 1, 1, 0), 7: (0, 0, 1, 0)}
    assert one([[5, 5, 5]], {5: 7}, [[1, 1, 1]], {1: 1}) == {1: (0, 0, 1, 0), 7: (0, 1, 0, 0)}


def test_void_excuses_a_false_positive():
    truth = {1: 1}
    assert one([[5, 5, 5, 6]], {5: 7, 6: 1}, [[0, 0, 1, 1]], truth)[1] == (0, 1, 1, 0)
    assert 7 not in one([[5, 5, 5, 6]], {5: 7, 6: 1}, [[0, 0, 1, 1]], truth)  # 2 of 3 pixels are void
    assert one([[5, 5, 5, 5]], {5: 7}, [[0, 0, 1, 1]], truth)[7] == (0, 1, 0, 0)  # half is not enough


def test_crowds_are_not_missed_and_excuse_their_category():
    pred, truth = [[5, 5, 5, 6, 6, 0]], [[1, 1, 2, 2, 2, 0]]
    rows = one(pred, {5: 1, 6: 7}, truth, {1: 1, 2: 200, "crowd": (1,)})
    assert rows == {200: (0, 0, 1, 0), 7: (0, 1, 0, 0)}
    rows = one(pred, {5: 7, 6: 7}, truth, {1: 1, 2: 200, "crowd": (1,)})
    assert rows[7] == (0, 2, 0, 0)  # another category's crowd excuses nothing
    assert one([[5, 5, 5, 5]], {5: 1}, [[1, 1, 1, 1]], {1: 1, "crowd": (1,)}) == {}  # nor do crowds match


def test_of_several_crowds_the_last_listed_excuses():
    pred, truth = [[5, 5, 5, 6, 6, 6]], [[1, 1, 1, 2, 2, 2]]
    both = {1: 1, 2: 1, "crowd": (1, 2)}
    assert one(pred, {5: 1, 6: 1}, truth, both) == {1: (0, 1, 0, 0)}
    reference = PanopticReference(TABLE)
    reference.update(np.array(pred), listed({5: 1, 6: 1}), np.array(truth), listed(both))
    assert reference.counts[1] == [0, 1, 0, 0]


def test_classes_without_segments_are_outside_the_means():
    metric = PanopticQuality(TABLE)
    metric.update(np.array([[3, 0]]), [{"id": 3, "category_id": 1}], np.array([[9, 9]]), [{"id": 9, "category_id": 7}])
    found = metric.compute()
    assert found["all"] == {"pq": 0, "sq": 0, "rq": 0, "n": 2}
    assert found["per_class"][7] == {"pq": 0, "sq": 0, "rq": 0, "iou": 0, "tp": 0, "fp": 0, "fn": 1}
    assert math.isnan(found["per_class"][200]["pq"])
    empty = PanopticQuality(TABLE).compute()
    assert all(math.isnan(empty["things"][k]) for k in ("pq", "sq", "rq")) and empty["things"]["n"] == 0


def test_parts_add_up_to_the_whole_in_any_order():
    images = [panoptic_pair(seed) for seed in range(9)]
    whole, shuffled = PanopticQuality(SCENE_CATEGORIES), PanopticQuality(SCENE_CATEGORIES)
    parts = [PanopticQuality(SCENE_CATEGORIES) for _ in range(3)]
    for i, image in enumerate(images):
        whole.update(*image)
        parts[i % 3].update(*image)
    for part in parts[::-1]:
        shuffled.merge(PanopticQuality(SCENE_CATEGORIES).load(part.arrays()))
    assert torch.equal(whole.counts, shuffled.counts) and whole.counts.dtype == torch.int64
    assert repr(whole.compute()) == repr(shuffled.compute())
    with pytest.raises(ValueError, match="cannot merge {'categories'"):
        whole.merge(PanopticQuality(TABLE))
    with pytest.raises(ValueError, match=r"cannot load counts: expected int64 \(11, 4\), got int64 \(3, 4\)"):
        whole.load(PanopticQuality(TABLE).arrays())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, torch.int64])
def test_any_integers_will_do(dtype: type):
    truth = np.repeat([[1, 1, 2, 0]], 3, 0)
    pred = np.repeat([[4, 4, 250 if dtype == np.uint8 else 3000, 0]], 3, 0)
    segments = [{"id": 4, "category_id": 1}, {"id": int(pred.max()), "category_id": 7}]
    maps = [torch.from_numpy(m) if dtype is torch.int64 else m.astype(dtype) for m in (pred, truth)]
    for gt in (maps[1], truth):
        metric = PanopticQuality(TABLE)
        metric.update(maps[0], segments, gt, [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 7}])
        assert metric.counts[:, 0].tolist() == [1, 1, 0]
    assert not metric.counts[:, 1:3].any()


def test_thousands_of_segments():
    """More pairs of ids than the first table holds, and ids that use all 24 bits."""
    rng = np.random.default_rng(0)
    gt = rng.integers(1, 2**24, (60, 80))
    gt = np.repeat(np.repeat(gt, 2, 0), 2, 1)
    pred = np.where(rng.random(gt.shape) < 0.2, 2**24 - 1, gt)
    segments = [[{"id": i, "category_id": i % 2 * 6 + 1} for i in np.unique(m).tolist()] for m in (pred, gt)]
    metric, reference = PanopticQuality(TABLE), PanopticReference(TABLE)
    for side in (metric, reference):
        side.update(pred, segments[0], gt, segments[1])
    for category, row in metric.compute()["per_class"].items():
        assert [row["tp"], row["fp"], row["fn"]] == reference.counts[category][:3]
        assert row["iou"] == pytest.approx(reference.counts[category][3], rel=1e-12)
    assert metric.counts[:, 0].sum() > 3000


GOOD = {"pred_map": [[5, 5]], "pred_segments": [(5, 1)], "gt_map": [[9, 0]], "gt_segments": [(9, 1)]}
BAD = {
    "size": ({"gt_map": [[9], [0]]}, "img: the prediction is 2x1 pixels, the truth 1x2"),
    "dimensions": ({"gt_map": [9, 0]}, r"img: the truth must be a map \(H, W\) of integer ids, got int64 \(2,\)"),
    "floats": ({"pred_map": [[5.0, 5.0]]}, r"img: the prediction must be a map \(H, W\) of integer ids, got float64"),
    "negative": ({"pred_map": [[-1, 5]]}, r"img: segment ids must lie in 0\.\.4294967295, got -1\.\.9"),
    "too large": ({"gt_map": [[2**32, 9]]}, r"img: segment ids must lie in 0\.\.4294967295, got 5\.\.4294967296"),
    "unlisted": ({"pred_map": [[5, 6]]}, "img: the prediction has pixels of segment 6, which it does not list"),
    "unlisted truth": ({"gt_segments": []}, "img: the truth has pixels of segment 9, which it does not list"),
    "empty": ({"pred_segments": [(5, 1), (6, 1)]}, "img: the prediction lists segment 6, of which it has no pixel"),
    "empty truth": ({"gt_segments": [(i, 1) for i in range(2, 12)]}, "lists segment 2, 3, 4, 5, 6 and 4 more, of"),
    "twice": ({"gt_segments": [(9, 1), (9, 7)]}, "img: the truth lists segment 9 more than once"),
    "void": ({"gt_segments": [(9, 1), (0, 7)]}, "img: the truth lists a segment of id 0, which is void"),
    "category": ({"pred_segments": [(5, 2)]}, "segment 5 is of category 2, which is none of the 3 categories"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_not_counted(name: str):
    change, message = BAD[name]
    image = GOOD | change
    for key in ("pred_segments", "gt_segments"):
        image[key] = [{"id": i, "category_id": c} for i, c in image[key]]
    for key in ("pred_map", "gt_map"):
        image[key] = np.array(image[key])
    metric = PanopticQuality(TABLE)
    with pytest.raises(ValueError, match=message):
        metric.update(**image, image="img")
    assert not metric.counts.any()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "must not be empty"),
        ([{"id": 1}], "need an id and isthing, got {'id': 1}"),
        (TABLE + TABLE[:1], r"listed twice: \[1\]"),
        ({1: {"isthing": 1}}, "need an id and isthing"),
    ],
)
def test_bad_categories(table: list, message: str):
    with pytest.raises(ValueError, match=message):
        PanopticQuality(table)
