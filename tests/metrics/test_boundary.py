"""Boundary metrics against their definitions applied class by class, and against stored numbers of official code."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from toys.metric_references import band, confusion, f_scores, region_counts, scene_pair

from fapn_zoo.metrics import BoundaryBands, BoundaryFScore, BoundaryIoU
from fapn_zoo.metrics.accumulator import Tallies
from fapn_zoo.metrics.boundary import boundary_width
from fapn_zoo.metrics.semantic import scores

pytestmark = pytest.mark.unit

OFFICIAL = json.loads(Path(__file__).with_name("official.json").read_text())
METRICS = [BoundaryBands, BoundaryIoU, BoundaryFScore]


def noise(seed: int, shape: tuple[int, int], classes: int, void: float = 0.1, blocks: int = 3):
    """Random blocks of classes with void among them, and a prediction that is half right."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, tuple(n // blocks + 1 for n in shape))
    truth = np.repeat(np.repeat(coarse, blocks, 0), blocks, 1)[: shape[0], : shape[1]]
    pred = np.where(rng.random(shape) < 0.7, truth, rng.integers(0, classes, shape))
    truth[rng.random(shape) < void] = 65535
    return pred, truth


def cases():
    ids = [f"noise {i}" for i in range(6)]
    shapes = [(31, 47), (1, 40), (40, 1), (1, 1), (64, 64), (5, 200)]
    found = {n: (*noise(i, s, 5), 5, 65535) for i, (n, s) in enumerate(zip(ids, shapes, strict=True))}
    found["mostly void"] = (*noise(7, (40, 50), 4, 0.9), 4, 65535)
    found["no void"] = (*noise(8, (40, 50), 4, 0, 12), 4, 65535)
    found["300 classes"] = (*noise(9, (40, 50), 300), 300, 65535)
    found["255 classes"] = (*noise(9, (40, 50), 255), 255, 65535)
    found["one class"] = (np.zeros((20, 30), int), np.zeros((20, 30), int), 1, 65535)
    for seed in range(2):
        found[f"scene {seed}"] = (*scene_pair(seed), 11, 255)
    return found


CASES = cases()


@pytest.mark.parametrize("void_borders", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_bands_equal_a_dilation_for_each_class(name: str, void_borders: bool):
    pred, truth, classes, ignore = CASES[name]
    for widths in ((3, 5, 8, 12), (1,), (2, 3, 60)):
        metric = BoundaryBands(classes, widths, ignore, void_borders)
        metric.update(pred, truth)
        for width in widths:
            inside = np.where(band(truth, classes, width, ignore, void_borders), truth, ignore)
            np.testing.assert_array_equal(metric.confusion(width), confusion(pred, inside, classes, ignore))
        np.testing.assert_array_equal(metric.counts.sum(0), confusion(pred, truth, classes, ignore))


def test_bands_of_a_straight_edge():
    truth = np.zeros((10, 20), np.uint8)
    truth[:, 12:] = 1
    pred = np.zeros_like(truth)
    metric = BoundaryBands(2, (1, 3, 30))
    metric.update(pred, truth)
    assert [metric.confusion(w)[:, 0].tolist() for w in (1, 3, 30)] == [[10, 10], [30, 30], [120, 80]]
    assert repr(metric.compute()[3]) == repr(scores(torch.tensor([[30, 0], [30, 0]]), 255))
    assert metric.compute()[1]["miou"] == 0.25


def test_classes_meet_across_a_strip_of_void():
    truth = np.array([[0, 0, 0, 255, 255, 1, 1, 1]])
    bands, with_void = BoundaryBands(2, (1, 2, 3)), BoundaryBands(2, (1, 2, 3), void_borders=True)
    for metric in (bands, with_void):
        metric.update(np.zeros((1, 8), np.uint8), truth)
    assert [int(bands.confusion(w).sum()) for w in (1, 2, 3)] == [0, 0, 2]
    assert [int(with_void.confusion(w).sum()) for w in (1, 2, 3)] == [2, 4, 6]


@pytest.mark.parametrize("name", CASES)
def test_boundary_iou_equals_the_definition(name: str):
    pred, truth, classes, ignore = CASES[name]
    metric = BoundaryIoU(classes, ignore)
    metric.update(pred, truth)
    expected = region_counts(pred, truth, classes, ignore)
    np.testing.assert_array_equal(metric.counts, expected)
    hit, true, found = expected.astype(float)
    with np.errstate(invalid="ignore"):
        iou = hit / (true + found - hit)
    result = metric.compute()
    np.testing.assert_allclose(result["iou"], iou, rtol=0, atol=1e-9)
    assert result["boundary_iou"] == pytest.approx(np.nanmean(iou), abs=1e-9)
    assert (result["truth"], result["predicted"]) == (true.tolist(), found.tolist())


@pytest.mark.parametrize("key", OFFICIAL["boundary-iou-api"])
def test_boundary_iou_equals_the_authors_code(key: str):
    """Stored pixels of `mask_to_boundary` of boundary-iou-api (commit 37d25586, opencv 5.0.0) for each class.

    The key is seed and size of `scene_pair`; the rows are the pixels in both regions, in the truth's and in the
    prediction's, of which pixels with void truth were taken away first.
    """
    seed, size = key.split()
    pred, truth = scene_pair(int(seed), tuple(map(int, size.split("x"))))
    metric = BoundaryIoU(11)
    metric.update(pred, truth)
    assert metric.counts.tolist() == OFFICIAL["boundary-iou-api"][key]


def test_width_of_the_region_is_the_published_share_of_the_diagonal():
    assert [boundary_width(*size) for size in ((512, 1024), (480, 640), (1024, 2048), (10, 10))] == [23, 16, 46, 1]


@pytest.mark.parametrize("name", CASES)
def test_f_score_equals_the_definition(name: str):
    pred, truth, classes, ignore = CASES[name]
    tolerances = (0.01, 0.06, 1, 3, 9.5)
    metric = BoundaryFScore(classes, tolerances, ignore)
    metric.update(pred, truth)
    result = metric.compute()
    for tolerance in tolerances:
        expected = f_scores(pred, truth, classes, tolerance, ignore)
        np.testing.assert_allclose(result["classes"][tolerance], expected, rtol=0, atol=1e-9)
        mean = np.nanmean(expected) if not np.isnan(expected).all() else math.nan
        assert result["f"][tolerance] == pytest.approx(mean, abs=1e-9, nan_ok=True)
        assert result["f_all"][tolerance] == pytest.approx(np.nan_to_num(expected, nan=1).mean(), abs=1e-9)


@pytest.mark.parametrize("key", OFFICIAL["GSCNN"])
def test_f_score_equals_gated_scnn(key: str):
    """Stored results of `db_eval_boundary` of nv-tlabs/GSCNN (commit edd16c5d, scikit-image 0.26) on scenes 0 to 2.

    They are averaged as its `evaluate` does: per class over the images, then over the classes.
    """
    metric = BoundaryFScore(11, [float(key)])
    for seed in range(3):
        metric.update(*scene_pair(seed))
    found, official = metric.compute(), OFFICIAL["GSCNN"][key]
    assert found["f_all"][float(key)] == pytest.approx(official["mean"], abs=1e-9)
    means = [
        (f * n if n else 0) / 3 + (3 - n) / 3
        for f, n in zip(found["classes"][float(key)], found["images"], strict=True)
    ]
    np.testing.assert_allclose(means, official["per_class"], rtol=0, atol=1e-9)


def means(result: dict) -> list[float]:
    """The means of whatever boundary metric made the result."""
    if "boundary_iou" in result:
        return [result["boundary_iou"]]
    return [*result["f"].values()] if "f" in result else [band["miou"] for band in result.values()]


def voids(size: tuple[int, int] = (60, 90)) -> dict[str, np.ndarray]:
    """Shapes of ignored pixels: through objects, along borders, as islands, everywhere, nowhere."""
    rng = np.random.default_rng(3)
    rows, columns = np.indices(size)
    return {
        "strip": abs(columns - 40) < 3,
        "one pixel wide": columns == 45,
        "border": (rows < 4) | (columns > 80),
        "frame": (rows < 2) | (rows > 57) | (columns < 2) | (columns > 87),
        "islands": np.kron(rng.random((10, 15)) < 0.2, np.ones((6, 6))) > 0,
        "noise": rng.random(size) < 0.3,
        "all but a corner": (rows > 5) | (columns > 5),
        "everywhere": rows >= 0,
        "nowhere": rows < 0,
    }


VOIDS = voids()


@pytest.mark.parametrize("metric", [*METRICS, functools.partial(BoundaryBands, void_borders=True)])
@pytest.mark.parametrize("name", VOIDS)
def test_perfect_outside_void_is_one_whatever_void_and_its_prediction_are(name: str, metric: Callable):
    """Discs and noise of 6 classes, one of them absent; void has the usual id, a class's, and a far one."""
    rng = np.random.default_rng(4)
    rows, columns = np.indices(VOIDS[name].shape)
    discs = 1 + ((rows - 30) ** 2 + (columns - 40) ** 2 < 500) + 2 * (abs(rows - 20) + abs(columns - 60) < 15)
    for labels in (discs, rng.integers(0, 5, discs.shape), np.full_like(discs, 2)):
        for ignore in (255, 0, 65535):
            truth = np.where(VOIDS[name], ignore, np.maximum(labels, 1))
            inside = [np.maximum(labels, 1), rng.integers(0, 6, truth.shape), np.full_like(truth, 5)]
            results = []
            for guess in inside:
                found = metric(6, ignore_index=ignore)
                found.update(np.where(VOIDS[name], guess, truth), truth)
                results.append(found.compute())
            assert all(math.isnan(mean) or mean == pytest.approx(1, abs=1e-9) for mean in means(results[0]))
            assert {repr(result) for result in results} == {repr(results[0])}
            if name == "everywhere":
                assert all(math.isnan(mean) for mean in means(results[0]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", [name for name in VOIDS if name not in ("everywhere", "nowhere")])
def test_what_is_predicted_in_void_changes_no_score_of_a_bad_prediction(name: str, metric: type):
    rng = np.random.default_rng(5)
    truth = np.where(VOIDS[name], 255, np.kron(rng.integers(0, 6, (10, 15)), np.ones((6, 6), int)))
    pred = np.roll(truth, 2, 1) % 6
    results = []
    for guess in (pred, (pred + 1) % 6, rng.integers(0, 6, truth.shape)):
        found = metric(6)
        found.update(np.where(VOIDS[name], guess, pred), truth)
        results.append(repr(found.compute()))
    assert len(set(results)) == 1 and not any(mean >= 1 for mean in means(found.compute()))


def test_a_class_across_a_strip_of_void_is_found_whole():
    """The truth's region lies along the strip; so does that of the prediction, which has no strip."""
    truth = np.zeros((40, 60), np.uint8)
    truth[10:30, 10:50] = 1
    pred = truth.copy()
    truth[:, 28:32] = 255
    found = BoundaryIoU(2, dilation_ratio=0.04)
    found.update(pred, truth)
    assert found.compute()["iou"] == [1, 1] and found.counts[0].tolist() == found.counts[1].tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_parts_add_up_to_the_whole_in_any_order(metric: type):
    pairs = [scene_pair(seed, (60 + seed, 80)) for seed in range(5)]
    whole, shuffled, batched = metric(11), metric(11), metric(11)
    parts = [metric(11) for _ in pairs]
    for (pred, truth), part in zip(pairs, parts, strict=True):
        whole.update(pred, truth)
        part.update(torch.from_numpy(pred.astype(np.int64)), truth.astype(np.int32))
    for part in parts[::-1]:
        shuffled.merge(metric(11).load(part.arrays()))
    assert torch.equal(whole.counts, shuffled.counts) and whole.counts.dtype == torch.int64
    assert repr(whole.compute()) == repr(shuffled.compute())
    batched.update(np.stack([pairs[0][0]] * 2), np.stack([pairs[0][1]] * 2))
    assert torch.equal(batched.counts, parts[0].merge(parts[0]).counts)
    with pytest.raises(ValueError, match="cannot merge {'num_classes': 12} into {'num_classes': 11}"):
        whole.merge(metric(12))
    with pytest.raises(ValueError, match=r"cannot merge {'ignore_index': 0} into {'ignore_index': 255}"):
        whole.merge(metric(11, ignore_index=0))
    with pytest.raises(ValueError, match=r"cannot load counts: expected int64 \(.*11\), got int64 \(.*12\)"):
        whole.load(metric(12).arrays())
    with pytest.raises(ValueError, match="cannot merge"):
        whole.merge(next(other for other in METRICS if other is not metric)(11))


def test_tallies_counted_together_are_one():
    def tallies(*seeds: int) -> Tallies:
        made = Tallies(bands=BoundaryBands(11), f=BoundaryFScore(11))
        for seed in seeds:
            for metric in made.values():
                metric.update(*scene_pair(seed))
        return made

    whole = tallies(0, 1)
    arrays = whole.arrays()
    assert {name: array.dtype for name, array in arrays.items()} == {"bands.counts": np.int64, "f.counts": np.int64}
    for found in (tallies(0).merge(tallies(1)), tallies(2).load(arrays)):
        assert all(torch.equal(found[name].counts, whole[name].counts) for name in whole)
    with pytest.raises(ValueError, match="cannot merge bands into bands, f"):
        whole.merge(Tallies(bands=BoundaryBands(11)))
    with pytest.raises(ValueError, match=r"cannot load arrays bands\.counts: expected bands\.counts, f\.counts"):
        whole.load(Tallies(bands=BoundaryBands(11)).arrays())


@pytest.mark.parametrize("metric", METRICS)
def test_update_leaves_its_arguments_alone(metric: type):
    pred, truth = (a.copy() for a in scene_pair(0))
    before = pred.copy(), truth.copy()
    metric(11).update(pred, truth)
    np.testing.assert_array_equal((pred, truth), before)


@pytest.mark.parametrize("metric", METRICS)
def test_an_ignored_class_is_not_scored(metric: type):
    pred, truth = scene_pair(0)
    ignoring = metric(11, ignore_index=3)
    ignoring.update(pred, np.where(truth == 255, 3, truth))
    result = ignoring.compute()
    rows = {
        BoundaryBands: lambda: [row["iou"] for row in result.values()],
        BoundaryIoU: lambda: [result["iou"]],
        BoundaryFScore: lambda: result["classes"].values(),
    }[metric]()
    assert all(math.isnan(row[3]) and not math.isnan(row[0]) for row in rows)


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_counted_is_nan(metric: type):
    empty = metric(3)
    empty.update(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8))
    empty.update(np.zeros((4, 5), np.uint8), np.full((4, 5), 255))
    assert all(math.isnan(mean) for mean in means(empty.compute()))


@pytest.mark.parametrize("metric", METRICS)
def test_bad_maps_are_named_and_not_counted(metric: type):
    one = metric(3)
    zeros = np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match=r"\(4, 5\), target \(5, 4\)"):
        one.update(zeros, zeros.T)
    with pytest.raises(ValueError, match=r"0\.\.2, got 0\.\.3"):
        one.update(np.array([[0, 3]]), np.array([[0, 0]]))
    with pytest.raises(ValueError, match=r"0\.\.2, got -1\.\.0"):
        one.update(np.array([[0, -1]]), np.array([[0, 0]]))
    with pytest.raises(ValueError, match=r"be the ignore index 255, got \[-5, 77\]"):
        one.update(np.zeros((1, 3), np.uint8), np.array([[77, 0, -5]]))
    with pytest.raises(ValueError, match="float32"):
        one.update(zeros.astype(np.float32), zeros)
    with pytest.raises(ValueError, match=r"\(H, W\) or \(N, H, W\), got \(20,\)"):
        one.update(zeros.ravel(), zeros.ravel())
    assert not one.counts.any()
    with pytest.raises(ValueError, match=r"num_classes must lie in 1\.\.65535, got 0"):
        metric(0)


@pytest.mark.parametrize("widths", [(), (0, 1), (3, 3), (5, 3), (1.5,)])
def test_bad_widths(widths: tuple):
    with pytest.raises(ValueError, match="widths must be ascending integers"):
        BoundaryBands(3, widths)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="width must be one of 3, 5, 8, 12, got 4"):
        BoundaryBands(3).confusion(4)
    for tolerances in ((), (0, 1), (3, 2)):
        with pytest.raises(ValueError, match="tolerances must be ascending"):
            BoundaryFScore(3, tolerances)
    with pytest.raises(ValueError, match="dilation_ratio must be positive, got 0"):
        BoundaryIoU(3, dilation_ratio=0)
