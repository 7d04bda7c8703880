"""ConfusionMatrix against a plain numpy loop, and against everything it must refuse."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex
from toys.metric_references import confusion, scene_pair

from fapn_zoo.metrics.semantic import ConfusionMatrix

pytestmark = pytest.mark.unit


def reference(pred: np.ndarray, target: np.ndarray, num_classes: int, ignore: int) -> dict:
    """The definitions, class by class, with masks."""
    valid = target != ignore
    iou, acc, freq = [], [], []
    for k in range(num_classes):
        p, t = (pred == k) & valid, (target == k) & valid
        union = (p | t).sum()
        iou.append((p & t).sum() / union if union and k != ignore else math.nan)
        acc.append((p & t).sum() / t.sum() if t.sum() else math.nan)
        freq.append(t.sum() / valid.sum())
    hits = ((pred == target) & valid).sum()
    return {
        "miou": np.nanmean(iou),
        "pixel_acc": hits / valid.sum(),
        "mean_acc": np.nanmean(acc),
        "fwiou": np.nansum(np.array(iou) * freq),
        "iou": iou,
        "acc": acc,
    }


def case(dtype: type, num_classes: int = 7, ignore: int = 255, absent: tuple[int, ...] = (3,), seed: int = 0):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, num_classes, (3, 40, 30))
    pred = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, num_classes, target.shape))
    for k in absent:
        target[target == k] = ignore
        pred[pred == k] = (k + 1) % num_classes
    target[:, :5] = ignore
    return pred.astype(np.int64), target.astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "num_classes", "ignore"),
    [
        (np.uint8, 7, 255),
        (np.int32, 7, 255),
        (np.int64, 7, -1),
        (np.uint8, 7, 0),
        (np.int64, 7, 0),
        (np.int32, 300, 65535),
    ],
)
def test_equals_the_definitions(dtype: type, num_classes: int, ignore: int):
    pred, target = case(dtype, num_classes, ignore)
    matrix = ConfusionMatrix(num_classes, ignore)
    for p, t in zip(pred, target, strict=True):
        matrix.update(p, t)
    found, expected = matrix.compute(), reference(pred, target, num_classes, ignore)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
    assert matrix.counts.dtype == torch.int64
    assert matrix.counts.sum() == (target != ignore).sum()


def test_bytes_and_wide_integers_count_alike():
    pred, target = case(np.uint8)
    narrow, wide = ConfusionMatrix(7), ConfusionMatrix(7)
    narrow.update(torch.from_numpy(pred.astype(np.uint8)), torch.from_numpy(target))
    wide.update(pred, target.astype(np.int64))
    assert torch.equal(narrow.counts, wide.counts)


def test_absent_classes_leave_the_mean_and_invented_ones_do_not():
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([0, 0, 2]), np.array([0, 0, 0]))
    scores = matrix.compute()
    assert math.isnan(scores["iou"][1]) and math.isnan(scores["iou"][3])
    assert scores["iou"][2] == 0
    assert scores["miou"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["mean_acc"] == pytest.approx(2 / 3)  # class 2 has no truth, hence no accuracy


def test_nothing_counted_is_nan():
    matrix = ConfusionMatrix(2)
    matrix.update(np.zeros((2, 2), np.int64), np.full((2, 2), 255))
    assert all(math.isnan(matrix.compute()[n]) for n in ("miou", "pixel_acc", "mean_acc", "fwiou"))


def test_update_leaves_its_arguments_alone():
    pred, target = (torch.from_numpy(a) for a in case(np.int64))
    before = pred.clone(), target.clone()
    ConfusionMatrix(7).update(pred, target)
    assert torch.equal(pred, before[0]) and torch.equal(target, before[1])


def test_merge_arrays_and_load():
    pred, target = case(np.uint8)
    whole, first, second = (ConfusionMatrix(7) for _ in range(3))
    whole.update(pred, target)
    first.update(pred[:1], target[:1])
    second.update(pred[1:], target[1:])
    arrays = first.arrays()
    before = arrays["counts"].copy()
    restored = ConfusionMatrix(7).load(arrays)
    assert torch.equal(restored.merge(second).counts, whole.counts)
    first.merge(second)
    np.testing.assert_array_equal(arrays["counts"], before)  # shared with neither accumulator
    for other in (ConfusionMatrix(6), ConfusionMatrix(7, ignore_index=0)):
        with pytest.raises(ValueError, match="cannot merge"):
            whole.merge(other)
    for wrong, message in (
        (np.zeros((6, 7), np.int64), r"counts: expected int64 \(7, 7\), got int64 \(6, 7\)"),
        (np.zeros((7, 7)), r"counts: expected int64 \(7, 7\), got float64 \(7, 7\)"),
    ):
        with pytest.raises(ValueError, match=f"cannot load {message}"):
            whole.load({"counts": wrong})
    with pytest.raises(ValueError, match="cannot load arrays none: expected counts"):
        whole.load({})


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_bad_truth_is_named_and_not_counted(dtype: type):
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=r"0\.\.2 or be the ignore index 255, got \[3, 77\]"):
        matrix.update(np.zeros(4, np.int64), np.array([0, 77, 3, 255], dtype))
    assert matrix.counts.sum() == 0


def test_other_bad_input():
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=r"\(2, 2\), target \(2, 3\)"):
        matrix.update(np.zeros((2, 2), np.int64), np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match=r"0\.\.2, got 0\.\.3"):
        matrix.update(np.array([0, 3]), np.array([0, 0]))
    with pytest.raises(ValueError, match="-1"):
        matrix.update(np.array([-1]), np.array([0]))
    with pytest.raises(ValueError, match="-5"):
        matrix.update(np.array([0]), np.array([-5]))
    with pytest.raises(ValueError, match="float32"):
        matrix.update(np.zeros(2, np.float32), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ConfusionMatrix(0)
    matrix.update(np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64))  # an empty picture is no error


def metric_cases():
    """Predictions and truths (N, H, W) of ever other kinds: noise of many classes, absent ones, scenes."""
    pairs = [scene_pair(seed) for seed in range(3)]
    return {
        "noise": (*case(np.uint8), 7),
        "many classes": (*case(np.uint8, 150, absent=(3, 140), seed=4), 150),
        "scenes": (np.stack([p for p, _ in pairs]), np.stack([t for _, t in pairs]), 19),
    }


@pytest.mark.parametrize("name", metric_cases())
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_equals_numpy_and_torchmetrics(name: str, dtype: type):
    pred, target, classes = metric_cases()[name]
    matrix = ConfusionMatrix(classes)
    peers = [
        cls(num_classes=classes, ignore_index=255)
        for cls in (MulticlassConfusionMatrix, partial(MulticlassJaccardIndex, average="none"))
    ]
    for p, t in zip(pred, target, strict=True):
        matrix.update(p.astype(dtype), t.astype(dtype))
        for peer in peers:
            peer.update(torch.from_numpy(p.astype(np.int64)), torch.from_numpy(t.astype(np.int64)))
    np.testing.assert_array_equal(matrix.counts, confusion(pred, target, classes))
    np.testing.assert_array_equal(matrix.counts, peers[0].compute())
    scores = matrix.compute()
    seen = ~np.isnan(scores["iou"])
    # torchmetrics divides in single precision, hence from its matrix in double
    counts = peers[0].confmat.double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    np.testing.assert_allclose(np.array(scores["iou"])[seen], (counts.diagonal() / union)[seen], rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.nan_to_num(scores["iou"]), peers[1].compute(), rtol=0, atol=1e-6)


def test_equals_cityscapesscripts():
    """Stored numbers of cityscapesscripts 2.3.0: `evalPixelLevelSemanticLabeling.evaluateImgLists` on PNG files.

    The files held `scene_pair(0)` to `scene_pair(2)` with the scenes' classes replaced by the label ids 23, 11, 17, 7,
    8, 21, 20, 13, 26, 24, 25 of Cityscapes, and void by 0; "counts" are the rows and columns of these ids.
    """
    official = json.loads(Path(__file__).with_name("official.json").read_text())["cityscapesscripts"]
    matrix = ConfusionMatrix(19)
    for seed in range(3):
        matrix.update(*scene_pair(seed))
    np.testing.assert_array_equal(matrix.counts[:11, :11], official["counts"])
    scores = matrix.compute()
    np.testing.assert_allclose(scores["iou"][:11], official["iou"], rtol=0, atol=1e-9)
    assert scores["miou"] == pytest.approx(official["average"], abs=1e-9)
    assert all(math.isnan(iou) for iou in scores["iou"][11:])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8])
def test_every_pixel_of_a_short_vector_counts(size: int):
    matrix = ConfusionMatrix(9)
    ids = np.arange(size)
    matrix.update(ids, ids)
    assert matrix.counts.diagonal().tolist() == [1] * size + [0] * (9 - size)


@pytest.mark.parametrize("ignore", [-1, 2**40])
def test_an_ignored_id_may_be_any_number(ignore: int):
    matrix = ConfusionMatrix(3, ignore)
    matrix.update(np.array([0, 1, 2, 1]), np.array([0, ignore, 2, 2]))
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    with pytest.raises(ValueError, match=rf"be the ignore index {ignore}, got \[3\]"):
        matrix.update(np.array([0, 1]), np.array([ignore, 3]))
    with pytest.raises(ValueError, match=r"0\.\.2, got 0\.\.3"):
        matrix.update(np.array([0, 3]), np.array([ignore, 0]))
