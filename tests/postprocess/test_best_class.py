"""The short way to the best class gives what the long way gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toys.decoding import classes, labels, scores

from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput
from fapn_zoo.postprocess import best_class, semantic
from fapn_zoo.postprocess.best_class import best_of_logits, best_of_masks

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


def best(maps: torch.Tensor, image_size: tuple[int, int], out_size: tuple[int, int], factor: int = 4) -> torch.Tensor:
    labels, shares = best_of_logits(maps, image_size, factor, out_size)
    assert shares is None
    return labels


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
    found = best(maps, image_size, out_size)
    assert found.dtype == torch.int64 and tuple(found.shape) == out_size
    sure = clear(scores)
    assert sure.float().mean() > 0.98 and torch.equal(found[sure], scores.argmax(0)[sure])


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_any_factor(factor):
    maps = torch.randn(5, 9, 12, generator=torch.Generator().manual_seed(2)).transpose(1, 2)  # not contiguous
    size = (12 * factor - 1 if factor > 1 else 12, 9 * factor)
    scores = F.interpolate(maps[None].double(), scale_factor=factor, mode="bilinear")[0, :, : size[0]]
    sure = clear(scores)
    assert torch.equal(best(maps, size, size, factor)[sure], scores.argmax(0)[sure])
    out = (size[0] * 2 - 3, size[1] + 5)
    scores = F.interpolate(scores[None], out, mode="bilinear")[0]
    sure = clear(scores)
    assert torch.equal(best(maps, size, out, factor)[sure], scores.argmax(0)[sure])


def test_the_first_of_equal_classes():
    maps = torch.zeros(4, 3, 5)
    for out in ((12, 20), (17, 9)):
        assert not best(maps, (12, 20), out).any()
    maps[2] = maps[3] = 1.5
    for out in ((12, 20), (17, 9)):
        assert (best(maps, (12, 20), out) == 2).all()
    assert not best(maps[:1], (12, 20), (12, 20)).any()


def random_output(kind: str) -> SemanticOutput | MaskFormerOutput:
    generator = torch.Generator().manual_seed(3)
    if kind == "logits":
        return SemanticOutput(torch.randn(2, 6, 9, 12, generator=generator) * 2)
    classes = torch.randn(2, 5, 7, generator=generator) * 2
    return MaskFormerOutput(classes, torch.randn(2, 5, 9, 12, generator=generator) * 4)


@pytest.mark.parametrize("image_size, out_size", SIZES)
@pytest.mark.parametrize("kind", ["logits", "masks"])
@pytest.mark.parametrize("tile", [1, 700, best_class.TILE_FLOATS])
def test_labels_are_one_whoever_asks(monkeypatch, kind, image_size, out_size, tile):
    monkeypatch.setattr(best_class, "TILE_FLOATS", tile)
    output = random_output(kind)
    best, shares = labels(output, image_size, out_size)
    assert torch.equal(best, classes(output, image_size, out_size))
    found = scores(output, image_size, out_size)
    whole = found.softmax(1) if kind == "logits" else found / found.sum(1, keepdim=True)
    torch.testing.assert_close(shares, whole.gather(1, best[:, None])[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(shares, whole.amax(1), atol=1e-5, rtol=0)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the short way was asked for")

    with monkeypatch.context() as patch:
        patch.setattr(best_class, "numba_works", lambda: False)
        patch.setattr(semantic, f"best_of_{kind}", never)
        slow = labels(output, image_size, out_size)
    assert torch.equal(slow[0], best) and torch.allclose(slow[1], shares, atol=1e-5)


@pytest.mark.parametrize("kind", ["logits", "masks"])
@pytest.mark.parametrize("out_size", [(33, 45), (51, 77)])
@pytest.mark.parametrize("threads", [1, 3])
def test_any_layout_precision_and_number_of_threads(kind, out_size, threads):
    half = list(random_output(kind))[: 1 if kind == "logits" else 2]
    half = [part.bfloat16() for part in half]
    output = SemanticOutput if kind == "logits" else MaskFormerOutput
    expected = labels(output(*(part.float() for part in half)), (33, 45), out_size)
    last = [*half[:-1], half[-1].contiguous(memory_format=torch.channels_last)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for parts in (half, last):
            for found, one in zip(labels(output(*parts), (33, 45), out_size), expected, strict=True):
                assert torch.equal(found, one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("out_size", [(36, 48), (50, 31)])
def test_extreme_values(out_size):
    """Far from zero, shares and masks become 1 and 0 and nothing overflows."""
    logits = torch.zeros(3, 9, 12)
    logits[1], logits[2] = 3e4, -3e4
    labels, shares = best_of_logits(logits, (36, 48), 4, out_size, shares=True)
    assert (labels == 1).all() and (shares == 1).all()
    logits = torch.full((150, 9, 12), -1e30)
    assert torch.allclose(best_of_logits(logits, (36, 48), 4, out_size, shares=True)[1], torch.tensor(1 / 150))
    masks = torch.stack([torch.full((9, 12), 1e30), torch.full((9, 12), -1e30)])
    labels, shares = best_of_masks(masks, torch.tensor([[0.1, 0.3], [0.9, 0.0]]), (36, 48), 4, out_size, shares=True)
    assert (labels == 1).all() and torch.allclose(shares, torch.tensor(0.75))
    labels, shares = best_of_masks(masks, torch.zeros(2, 3), (36, 48), 4, out_size, shares=True)
    assert not labels.any() and not shares.any()


def test_exponential_function():
    from fapn_zoo.postprocess.best_kernels import squash

    values = torch.linspace(-90, 90, 4001)
    found = np.empty((1, 1, 1, len(values)), np.float32)
    squash(values.view(1, 1, -1).numpy(), 0, 1, 1, 0, found)
    expected = values.double().sigmoid()
    assert (torch.from_numpy(found).flatten() / expected - 1).abs()[values > -86].max() < 3e-7


def test_weights_of_an_axis_add_up_to_one():
    for small, factor, middle, out in ((9, 4, 33, 51), (9, 4, 36, 7), (3, 4, 1, 5), (5, 1, 5, 11), (16, 8, 121, 1000)):
        starts, weights = best_class._taps(small, factor, middle, out)
        assert np.allclose(weights.sum(0), 1, atol=1e-6) and weights.min() > -1e-6
        assert starts.min() >= 0 and (starts + 2 * (weights[2] > 0) <= small - 1).all()
