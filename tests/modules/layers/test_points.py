"""Points: reading maps at them, where a decision is uncertain, and what is drawn for training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fapn_zoo.modules.layers.points import (
    even_points,
    most_uncertain_pixels,
    sample_points,
    training_points,
    uncertainty,
)

pytestmark = pytest.mark.unit


def test_centres_of_pixels_read_the_pixels() -> None:
    maps = torch.randn(2, 3, 4, 6)
    _, points = most_uncertain_pixels(torch.zeros(2, 4, 6), 24)
    order = (points[..., 1] * 4).long() * 6 + (points[..., 0] * 6).long()
    found = sample_points(maps, points)
    torch.testing.assert_close(found, maps.flatten(2).gather(2, order[:, None].expand(-1, 3, -1)), rtol=1e-5, atol=1e-6)


def test_between_centres_lies_the_mean_and_outside_is_zero() -> None:
    maps = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    points = torch.tensor([[[0.5, 0.5], [0.5, 0.25], [0.0, 0.25], [0.0, 0.0]]])
    assert sample_points(maps, points).flatten().tolist() == pytest.approx([4, 2, 0.5, 0.25])


def test_the_same_points_fit_maps_of_every_stride() -> None:
    """A ramp that doubles in resolution keeps its values, away from the edges."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    points = torch.rand(1, 50, 2) * 0.5 + 0.25
    fine = F.interpolate(ramp, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(sample_points(fine, points), sample_points(ramp, points))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_places(dtype: torch.dtype) -> None:
    maps, points = torch.randn(1, 2, 40, 2000, dtype=dtype), torch.rand(1, 100, 2)
    found = sample_points(maps, points)
    assert found.dtype == dtype
    torch.testing.assert_close(found, sample_points(maps.float(), points).to(dtype))


def test_uncertainty_is_the_margin_of_the_best_class() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 0.0, -1.0], [5.0, -5.0, 4.0]]).t()[None]  # (1, K, 3)
    assert uncertainty(logits.permute(0, 1, 2)).tolist() == [[-0.5, 0.0, -1.0]]
    random = torch.randn(2, 7, 5, 6)
    best = random.topk(2, dim=1).values
    assert torch.equal(uncertainty(random), best[:, 1] - best[:, 0])


def test_uncertainty_of_one_logit_is_its_distance_to_zero() -> None:
    assert uncertainty(torch.tensor([[[-2.0, 0.5, 0.0]]])).tolist() == [[-2.0, -0.5, 0.0]]


def test_the_most_uncertain_pixels() -> None:
    scores = torch.randn(2, 5, 7)
    index, points = most_uncertain_pixels(scores, 6)
    assert index.shape == (2, 6) and points.shape == (2, 6, 2)
    for image, chosen, centres in zip(scores, index, points, strict=True):
        assert set(image.flatten()[chosen].tolist()) == set(image.flatten().sort().values[-6:].tolist())
        expected = {((i % 7 + 0.5) / 7, (i // 7 + 0.5) / 5) for i in chosen.tolist()}
        assert {(round(x, 5), round(y, 5)) for x, y in centres.tolist()} == {
            (round(x, 5), round(y, 5)) for x, y in expected
        }
    assert most_uncertain_pixels(scores, 100)[0].shape == (2, 35)


def splitmix(seed: int, count: int) -> list[float]:
    """The published generator, on whole numbers without an end."""
    wrap, found = 2**64 - 1, []
    for _ in range(count):
        seed = z = (seed + 0x9E3779B97F4A7C15) & wrap
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & wrap
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & wrap
        found.append(((z ^ (z >> 31)) >> 40) / 2**24)
    return found


def test_even_points_are_those_of_the_published_generator() -> None:
    seeds = [0, 1, 123456789, 2**63 - 1]
    points = even_points(torch.tensor(seeds), 50)
    assert [image.flatten().tolist() for image in points] == [splitmix(seed, 100) for seed in seeds]
    assert points.dtype == torch.float32 and 0 <= points.min() and points.max() < 1


def test_even_points_are_even() -> None:
    points = even_points(torch.arange(100), 1000)
    counts = torch.histc(points, 10, 0, 1)
    assert (counts / counts.sum() - 0.1).abs().max() < 0.003
    assert len(points.flatten(0, 1).unique(dim=0)) > 99_900
    across = torch.corrcoef(points.flatten(0, 1).t())[0, 1]
    assert abs(across) < 0.01


def halves(n: int, height: int = 16, width: int = 16) -> Tensor:
    """Logits of two classes that meet in the middle column, and are sure elsewhere."""
    ramp = torch.linspace(-10, 10, width).expand(n, 1, height, width)
    return torch.cat([ramp, -ramp], dim=1)


def test_training_points_lie_where_it_is_uncertain() -> None:
    points = training_points(halves(3), 2000, torch.arange(3))
    assert points.shape == (3, 2000, 2)
    distance = (points[..., 0] - 0.5).abs()
    # three quarters are the most uncertain quarter of three times as many: an eighth to each side; the rest is spread
    near, even = distance[:, :1500], distance[:, 1500:]
    assert (near < 0.13).float().mean() > 0.95 and even.mean() == pytest.approx(0.25, abs=0.02)
    everywhere = training_points(halves(3), 2000, torch.arange(3), importance=0.0)
    assert (everywhere[..., 0] - 0.5).abs().mean() == pytest.approx(0.25, abs=0.01)


def test_points_of_an_image_are_its_own() -> None:
    logits, seeds = torch.randn(4, 3, 8, 9), torch.tensor([5, 6, 7, 8])
    whole = training_points(logits, 40, seeds)
    parts = [training_points(logits[i : i + 1], 40, seeds[i : i + 1]) for i in range(4)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, training_points(logits, 40, seeds + 1))


def test_without_seeds_they_follow_pytorch() -> None:
    logits = torch.randn(2, 3, 8, 9)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(training_points(logits, 40))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][0], found[0][1])
