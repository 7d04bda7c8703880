"""The short way to the best class gives what the long way gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fapn_zoo import _best_class, postprocess
from fapn_zoo._best_class import best_resized
from fapn_zoo.heads._outputs import SemanticOutput
from fapn_zoo.postprocess import semantic, semantic_labels, semantic_scores

pytestmark = pytest.mark.unit

SIZES = [  # image_size, out_size of maps (9, 12) at stride 4
    ((36, 48), (36, 48)),
    ((33, 45), (33, 45)),
    ((33, 45), (51, 77)),
    ((33, 45), (20, 17)),
    ((33, 45), (33, 90)),
    ((33, 45), (7, 45)),
    ((36, 48), (72, 96)),
    ((1, 1), (5, 3)),
    ((36, 48), (1, 1)),
]


def clear(scores: torch.Tensor) -> torch.Tensor:
    """Where the best class is ahead by more than rounding."""
    first, second = scores.topk(2, dim=0).values
    return first - second > 1e-4


@pytest.mark.parametrize("image_size, out_size", SIZES)
@pytest.mark.parametrize("classes", [2, 19, 300])
def test_it_is_the_largest_of_the_resized_maps(image_size, out_size, classes):
    maps = torch.randn(classes, 9, 12, generator=torch.Generator().manual_seed(1)) * 3
    large = F.interpolate(maps[None].double(), scale_factor=4, mode="bilinear")[..., : image_size[0], : image_size[1]]
    scores = F.interpolate(large, out_size, mode="bilinear")[0]
    found = best_resized(maps, image_size, out_size, 4)
    assert found.dtype == torch.int64 and tuple(found.shape) == out_size
    sure = clear(scores)
    assert sure.float().mean() > 0.98 and torch.equal(found[sure], scores.argmax(0)[sure])


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_any_factor(factor):
    maps = torch.randn(5, 9, 12, generator=torch.Generator().manual_seed(2)).transpose(1, 2)  # not contiguous
    size = (12 * factor - 1 if factor > 1 else 12, 9 * factor)
    scores = F.interpolate(maps[None].double(), scale_factor=factor, mode="bilinear")[0, :, : size[0]]
    sure = clear(scores)
    assert torch.equal(best_resized(maps, size, size, factor)[sure], scores.argmax(0)[sure])
    out = (size[0] * 2 - 3, size[1] + 5)
    scores = F.interpolate(scores[None], out, mode="bilinear")[0]
    sure = clear(scores)
    assert torch.equal(best_resized(maps, size, out, factor)[sure], scores.argmax(0)[sure])


def test_the_first_of_equal_classes():
    maps = torch.zeros(4, 3, 5)
    for out in ((12, 20), (17, 9)):
        assert not best_resized(maps, (12, 20), out, 4).any()
    maps[2] = maps[3] = 1.5
    for out in ((12, 20), (17, 9)):
        assert (best_resized(maps, (12, 20), out, 4) == 2).all()
    assert not best_resized(maps[:1], (12, 20), (12, 20), 4).any()


@pytest.mark.parametrize("image_size, out_size", SIZES[:4])
def test_labels_are_one_whoever_asks(monkeypatch, image_size, out_size):
    logits = torch.randn(2, 6, 9, 12, generator=torch.Generator().manual_seed(3)) * 2
    output = SemanticOutput(logits)
    labels, shares = semantic_labels(output, image_size, out_size)
    assert torch.equal(labels, semantic(output, image_size, out_size))
    assert torch.equal(labels, semantic(SemanticOutput(logits, (logits,)), image_size, out_size))
    whole = semantic_scores(output, image_size, out_size).softmax(1)
    torch.testing.assert_close(shares, whole.gather(1, labels[:, None])[:, 0], atol=1e-6, rtol=0)
    half = SemanticOutput(logits.bfloat16())
    assert (semantic(half, image_size, out_size) == labels).float().mean() > 0.95

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the long way was asked for")

    with monkeypatch.context() as patch:
        patch.setattr(_best_class, "numba", None)
        patch.setattr(postprocess, "best_resized", never)
        slow = semantic_labels(output, image_size, out_size)
    assert torch.equal(slow[0], labels) and torch.allclose(slow[1], shares, atol=1e-6)


def test_weights_of_an_axis_add_up_to_one():
    for small, factor, middle, out in ((9, 4, 33, 51), (9, 4, 36, 7), (3, 4, 1, 5), (5, 1, 5, 11), (16, 8, 121, 1000)):
        starts, weights = _best_class._taps(small, factor, middle, out)
        assert np.allclose(weights.sum(0), 1, atol=1e-6) and weights.min() > -1e-6
        assert starts.min() >= 0 and (starts + 2 * (weights[2] > 0) <= small - 1).all()
