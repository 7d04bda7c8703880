"""AveragePrecision against pycocotools, in any order and on any number of processes, and all it must refuse."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from toys.detection_references import NUM_CLASSES, CocoReference, boxes_of, detection_pair, feed

from fapn_zoo.metrics import AveragePrecision
from fapn_zoo.metrics.detection import BOUNDARIES, SCORES

pytestmark = pytest.mark.unit

SEEDS = range(20)
KINDS = ("masks", "boxes")
SCORED = (*KINDS, BOUNDARIES)


@pytest.fixture(scope="module")
def metric() -> AveragePrecision:
    return feed(AveragePrecision(NUM_CLASSES), SEEDS)


@pytest.mark.parametrize("kind", SCORED)
def test_equals_pycocotools(kind: str, metric: AveragePrecision):
    pytest.importorskip("pycocotools", reason="pycocotools is the witness")
    if kind == BOUNDARIES:
        pytest.importorskip("faster_coco_eval", reason="needs the extra coco")
    evaluator = feed(CocoReference(NUM_CLASSES), SEEDS).evaluate(kind)
    found = metric.compute([kind])[kind]
    assert [found[name] for name in SCORES] == pytest.approx(evaluator.stats.tolist(), abs=1e-9)
    assert all(0 < found[name] < 1 for name in SCORES)  # every size is there, and nothing is perfect
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    for k, row in enumerate(found["per_class"]):
        for area, names in enumerate((("ap", "ar100"), ("aps", "ars"), ("apm", "arm"), ("apl", "arl"))):
            for name, table in zip(names, (precision[:, :, k, area, 2], recall[:, k, area, 2]), strict=True):
                expected = table[table > -1].mean() if (table > -1).any() else math.nan
                assert row[name] == pytest.approx(expected, abs=1e-9, nan_ok=True), (k, name)
        expected = precision[0, :, k, 0, 2].mean()
        assert row["ap50"] == pytest.approx(expected if expected > -1 else math.nan, abs=1e-9, nan_ok=True)
    assert sum(row["truth"] for row in found["per_class"]) == sum(
        int((~detection_pair(seed)[1]["crowd"]).sum()) for seed in SEEDS
    )


@pytest.mark.parametrize("kind", KINDS)
def test_equals_pycocotools_with_more_detections_than_are_read(kind: str):
    """130 and more detections of one class in each image; most scores are equal."""
    pytest.importorskip("pycocotools", reason="pycocotools is the witness")
    ours, theirs = AveragePrecision(NUM_CLASSES), CocoReference(NUM_CLASSES)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        predictions, targets = detection_pair(seed, (48, 64), 1)
        rows = rng.integers(0, len(predictions["scores"]), 300)
        many = {name: values[rows] for name, values in predictions.items()}
        many["classes"] = np.where(rng.random(300) < 0.6, targets["classes"][0], many["classes"])
        many["scores"] = rng.integers(1, 5, 300).astype(np.float32) / 4
        assert np.bincount(many["classes"]).max() > 130
        for one in (ours, theirs):
            one.update(many, targets, seed)
    found = ours.compute()[kind]
    expected = [value if value > -1 else math.nan for value in theirs.evaluate(kind).stats.tolist()]
    assert [found[name] for name in SCORES] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_neither_order_nor_sharding_changes_a_digit(metric: AveragePrecision):
    expected = repr(metric.compute())
    shards = [feed(AveragePrecision(NUM_CLASSES), [*SEEDS][start::3][::-1]) for start in (2, 0, 1)]
    whole = AveragePrecision(NUM_CLASSES)
    for shard in shards:
        whole.merge(shard)
    assert repr(whole.compute()) == expected
    assert repr(AveragePrecision(NUM_CLASSES).load(whole.arrays()).compute()) == expected
    assert repr(feed(AveragePrecision(NUM_CLASSES, "boxes"), SEEDS).compute()["boxes"]) in expected


@pytest.mark.parametrize("kinds", [KINDS, *KINDS])
def test_arrays_hold_all_to_the_last_bit(kinds: str | tuple[str, ...], tmp_path: Path):
    """Ids that are numbers and names, images without objects, and none at all, through a file."""
    metric = AveragePrecision(NUM_CLASSES, kinds)
    for images in ((), (5, 17, 9), (2, "3", "Straße \udce9\0", -7, 2**70)):
        for place, image in enumerate(images):
            metric.update(*detection_pair(image if place < 3 and isinstance(image, int) else place + 20), image)
        arrays = metric.arrays()
        np.savez(tmp_path / "arrays.npz", **arrays)
        with np.load(tmp_path / "arrays.npz", allow_pickle=False) as stored:
            again = AveragePrecision(NUM_CLASSES, kinds).load(stored)
        assert again.images == metric.images and repr([*again.images]) == repr([*metric.images])
        assert all(array.tobytes() == arrays[name].tobytes() for name, array in again.arrays().items())


def test_arrays_that_do_not_fit_are_named():
    metric = AveragePrecision(NUM_CLASSES)
    metric.update(*detection_pair(1), 1)
    arrays, before = metric.arrays(), repr(metric.images)
    for message, other in (
        ("arrays images, more: expected images", arrays | {"more": np.zeros(1)}),
        ("images: expected uint8 .*, got int64", {"images": arrays["images"].astype(int)}),
        (r"{'num_classes': 11, 'kinds': \['boxes'\]} into", AveragePrecision(NUM_CLASSES, "boxes").arrays()),
        ("{'num_classes': 3, .* into {'num_classes': 11", AveragePrecision(3).arrays()),
    ):
        with pytest.raises(ValueError, match=f"cannot load {message}"):
            metric.load(other)
    with pytest.raises(ValueError):  # a text that is cut
        metric.load({"images": arrays["images"][:-3]})
    assert repr(metric.images) == before


def test_names_of_images_are_as_good_as_numbers(metric: AveragePrecision):
    named = AveragePrecision(NUM_CLASSES)
    for seed in SEEDS:
        named.update(*detection_pair(seed), f"{seed:04d}")
    assert repr(named.compute()) == repr(metric.compute())


def test_a_perfect_prediction_scores_one():
    metric = AveragePrecision(NUM_CLASSES)
    for seed in range(4):
        targets = detection_pair(seed)[1]
        shown = {name: torch.from_numpy(targets[name]) for name in ("masks", "boxes", "classes")}
        metric.update({**shown, "scores": torch.rand(len(shown["classes"]), dtype=torch.bfloat16)}, targets, seed)
    for found in metric.compute().values():
        assert all(found[name] == 1 for name in SCORES if not name.startswith("ar1") or name == "ar100")
        assert found["ar1"] < 1  # one car for a street of cars


def test_boxes_and_areas_default_to_those_of_the_masks():
    predictions, targets = detection_pair(1)
    given, derived = AveragePrecision(NUM_CLASSES), AveragePrecision(NUM_CLASSES)
    areas = targets["masks"].sum((1, 2))
    given.update({**predictions, "boxes": boxes_of(predictions["masks"])}, {**targets, "areas": areas}, 1)
    bare = [{k: v for k, v in side.items() if k not in ("boxes", "areas")} for side in (predictions, targets)]
    derived.update(*bare, 1)
    assert given.images == derived.images
    boxes = AveragePrecision(NUM_CLASSES, "boxes")
    bare = [{k: v for k, v in side.items() if k not in ("masks", "areas")} for side in (predictions, targets)]
    boxes.update(*bare, 1)
    sides = targets["boxes"][:, 2:] - targets["boxes"][:, :2]
    assert boxes.images[1]["truth"]["areas"] == sides.prod(1).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_are_those_of_coco(seed: int):
    coco_mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is the witness")

    masks = np.random.default_rng(seed).random((40, 9, 7)) < np.linspace(0, 1, 40)[:, None, None]
    masks[:, :, : seed * 2] = False
    metric = AveragePrecision(1, "masks")
    side = {"masks": masks, "classes": np.zeros(40, int), "scores": np.zeros(40)}
    metric.update(side, side, 0)
    expected = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    for part in metric.images[0]["truth"], metric.images[0]["found"]:
        assert part["masks"] == [rle["counts"].decode() for rle in expected]
        assert part["areas"] == masks.sum((1, 2)).tolist()


def test_nothing_there_nothing_scored():
    metric = AveragePrecision(3)
    assert all(math.isnan(found["ap"]) for found in metric.compute().values())
    nothing = {"masks": np.zeros((0, 8, 8), bool), "classes": [], "boxes": []}
    square = {"masks": np.ones((1, 8, 8), bool), "classes": [1]}
    metric.update({**nothing, "scores": []}, nothing, 0)
    metric.update({**square, "scores": [0.5]}, nothing, 1)
    found = metric.compute()["masks"]
    assert math.isnan(found["ap"]) and found["per_class"][1]["truth"] == 0  # a class that is only predicted
    metric.update({**nothing, "scores": []}, square, 2)
    found = metric.compute()["masks"]
    assert found["ap"] == found["ar100"] == found["aps"] == 0 and math.isnan(found["apm"])
    assert math.isnan(found["per_class"][0]["ap"]) and found["per_class"][1]["ap"] == 0


def test_crowds_are_neither_missed_nor_wrong_inside():
    crowd = {"masks": np.ones((1, 8, 8), bool), "classes": [0], "crowd": [True]}
    one = {"masks": np.pad(np.ones((1, 4, 4), bool), ((0, 0), (0, 4), (0, 4))), "classes": [0]}
    metric = AveragePrecision(1)
    metric.update({**one, "scores": [0.9]}, crowd, 0)
    assert math.isnan(metric.compute()["masks"]["ap"])
    metric.update({**one, "scores": [0.5]}, one, 1)
    assert metric.compute()["masks"]["ap"] == pytest.approx(1)  # the better detection, inside the crowd, is not counted


def test_what_is_refused(metric: AveragePrecision):
    predictions, targets = detection_pair(0)
    count, before = len(predictions["scores"]), repr(metric.images)
    nan = np.full(count, np.nan)

    def refused(message: str, image: int | str = "x", side: str = "found", **changes):
        pair = [{**predictions, **(changes if side == "found" else {})}]
        pair.append({**targets, **(changes if side == "truth" else {})})
        with pytest.raises(ValueError, match=message):
            metric.update(*pair, image)

    refused("image 3: it has been added before", 3)
    refused(r"image x: classes of the prediction must lie in 0..10, got 11..11", classes=np.full(count, 11))
    refused("classes of the prediction must be integers", classes=nan)
    refused(
        rf"scores of the prediction must be numbers \({count},\), got float32 \({count - 1},\)",
        scores=predictions["scores"][1:],
    )
    refused("scores of the prediction must be finite, got nan", scores=nan)
    refused("boxes of the truth must be numbers", side="truth", boxes=targets["boxes"][:, :3])
    refused("x1 <= x2 and y1 <= y2, got", boxes=predictions["boxes"][:, [2, 1, 0, 3]])
    refused(
        rf"masks of the prediction must be bool \({count}, H, W\), got uint8", masks=predictions["masks"].view(np.uint8)
    )
    refused("the predicted masks are 100x160 pixels, the true ones 224x160", masks=predictions["masks"][..., :100])
    refused("image x: the prediction has no masks", masks=None)
    refused("crowd of the truth must be numbers", side="truth", crowd=[0])
    for name, message in (("scores", "no scores"), ("classes", "no classes")):
        with pytest.raises(ValueError, match=f"image x: the prediction has {message}"):
            metric.update({k: v for k, v in predictions.items() if k != name}, targets, "x")
    with pytest.raises(ValueError, match="image 0, 1, 2, 3, 4 has been added before"):
        metric.merge(metric)
    with pytest.raises(ValueError, match=r"cannot merge {'num_classes': 3} into {'num_classes': 11}"):
        metric.merge(AveragePrecision(3))
    assert repr(metric.images) == before
    for arguments, message in (
        ((0,), "at least 1, got 0"),
        ((3, ("mask",)), "kinds must be of masks, boxes, got mask"),
        ((3, ()), "got none"),
        ((3, ("boxes", "boxes")), "got boxes, boxes"),
    ):
        with pytest.raises(ValueError, match=message):
            AveragePrecision(*arguments)
