"""Several sizes, windows and batches in `evaluate`: exact on pictures with a known answer, equal to `predict` else."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from toys import ramps
from toys.evaluation import Noise, class_maps

from fapn_zoo.evaluate import evaluate, render
from fapn_zoo.evaluate.measure import ahead, in_blocks, plan_batches
from fapn_zoo.metrics import ConfusionMatrix
from fapn_zoo.predict import predict
from fapn_zoo.predict.views import Views

pytestmark = pytest.mark.unit
SIZE = (53, 89)


@pytest.mark.parametrize("shift", [(0, 0), (-3, 5)])
@pytest.mark.parametrize(
    "options",
    [
        {"scales": (0.5, 1, 1.75), "flip": True},
        {"scales": "official", "flip": True, "batch_size": 3},
        {"window": 40, "stride": 27},
        {"window": (48, 64), "scales": (1, 1.5), "flip": True, "batch_size": 2},
        {"flip": True, "boundary": True},
    ],
)
def test_the_shifted_truth_is_found_exactly(shift, options):
    model = ramps.Grid(SIZE, shift, stride=1 if "window" in options else 4)
    report = evaluate(model, ramps.Pictures([SIZE] * 4, shift), progress=False, **options)
    assert report["miou"] == report["pixel_acc"] == 1.0 and len(report["classes"]) == 16
    moved = evaluate(model, ramps.Pictures([SIZE] * 4, (shift[0] + 1, shift[1])), progress=False, **options)
    assert moved["miou"] < 0.97  # one pixel would be seen
    if "boundary" in options:
        assert set(report["boundary"].values()) == {1.0} and moved["boundary"]["band_3"] < moved["boundary"]["band_12"]


@pytest.mark.parametrize("options", [{"scales": (0.8, 1.3), "flip": True}, {"scales": (64,)}, {"flip": True}])
def test_views_are_those_of_predict(model: torch.nn.Module, options: dict):
    data, matrix = Noise(), ConfusionMatrix(3)
    for i in range(len(data)):
        sample = data.sample(i)
        matrix.update(predict(model, sample.image, **options, amp="no").labels, sample.labels)
    assert len(set(matrix.counts.sum(0).tolist())) > 1
    for batch_size in (1, 2):
        report = evaluate(model, data, batch_size=batch_size, progress=False, **options)
        assert [row["iou"] for row in report["classes"]] == matrix.compute()["iou"]


def test_the_report_says_how_images_were_shown(model: torch.nn.Module):
    report = evaluate(model, Noise(1), progress=False, scales=(0.9, 48), flip=True, window=(33, 40), amp="bf16")
    assert report["scales"] == [0.9, 48] and report["flip"] is True
    assert report["window"] == [33, 40] and report["stride"] == [22, 26]
    assert "scales 0.9, 48; mirrored; windows 33 x 40 every 22 x 26; bf16" in render(report)
    plain = evaluate(model, Noise(1), progress=False)
    assert plain["scales"] == plain["window"] == [] and "mirrored" not in render(plain)


def test_images_of_equal_padded_size_share_a_batch_wherever_they_are():
    data = Noise(10)  # sizes of 40x56, 33x47, 40x56, 56x40
    model = ramps.Grid(SIZE)
    batches = plan_batches(data, 10, 3, model.data, Views())
    assert batches == [(0, 2, 4), (1, 5, 9), (3, 7), (6, 8)]
    padded = ramps.Grid(SIZE, size_divisor=32).data
    assert plan_batches(data, 10, 3, padded, Views()) == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9,)]
    assert plan_batches(data, 3, 1, padded, Views()) == [(0,), (1,), (2,)]
    assert plan_batches(data, 3, 4, padded, Views(window=(40, 40), stride=(40, 40))) == [(0,), (1,), (2,)]
    assert not data.asked
    several = plan_batches(data, 10, 3, padded, Views((1.0, 1.2)))  # 48x67, 40x56 and 67x48
    assert several == [(0, 2, 4), (1, 5, 9), (3, 7), (6, 8)]


def test_batches_reach_the_network(model: torch.nn.Module):
    seen = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    try:
        evaluate(model, Noise(5), batch_size=4, progress=False)
    finally:
        hook.remove()
    assert [shape[0] for shape in seen] == [3, 1, 1] and seen[0][2:] == (40, 56)


def test_images_are_read_in_blocks_while_the_caller_waits():
    """All of a block at once, none of the next before it is asked for; an error comes out."""
    made = []
    together = threading.Barrier(3, timeout=10)

    def make(item: int) -> int:
        together.wait()
        made.append(item)
        return item

    stream = in_blocks(make, range(9), threads=3)
    assert next(stream) == 0 and sorted(made) == [0, 1, 2]
    assert [next(stream), next(stream)] == [1, 2] and len(made) == 3
    assert list(stream) == [3, 4, 5, 6, 7, 8]
    with pytest.raises(ZeroDivisionError):
        list(in_blocks(lambda item: 1 // item, [1, 0], threads=2))


def test_images_are_read_ahead_in_order_and_errors_come_in_their_place():
    made = []

    def make(i: int) -> int:
        if i == 5:
            raise ValueError("five")
        made.append(i)
        return i * i

    stream = ahead(make, range(9), threads=2)
    assert [next(stream) for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(ValueError, match="five"):
        next(stream)
    assert max(made) <= 8
    short = ahead(make, itertools.count(10), threads=1)
    assert next(short) == 100
    short.close()
    assert max(made) <= 13  # nothing is read without end


def test_mean_of_views_is_of_logits_not_of_labels(model: torch.nn.Module):
    """Flipping twice is the same picture: views of a symmetric picture agree with the plain answer."""
    image = Noise().sample(0).image.permute(1, 2, 0).numpy()
    both = torch.from_numpy(predict(model, image, flip=True).labels).long()
    mirrored = torch.from_numpy(predict(model, image[:, ::-1].copy(), flip=True).labels).long().flip(-1)
    assert torch.equal(both, mirrored) and not torch.equal(both, class_maps(model, [image])[0])
