"""Boxes: coding and back, anchors, clipping, and pooling against values known by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import clip_boxes_to_image

from fapn_zoo.modules.layers import boxes as module
from fapn_zoo.modules.layers.boxes import anchors, decode, encode, levels_of, not_empty, pool_boxes

pytestmark = pytest.mark.unit


def some_boxes(count: int, seed: int = 0) -> torch.Tensor:
    corners, sides = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed)) * 100 + 1
    return torch.cat([corners, corners + sides], dim=1)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_deltas_lead_back_to_the_boxes(weights):
    boxes, references = some_boxes(50), some_boxes(50, 1)
    assert torch.allclose(decode(encode(boxes, references, weights), references, weights), boxes, atol=1e-3)
    assert torch.equal(decode(torch.zeros(50, 4), references), decode(encode(references, references), references))


def test_one_delta_by_hand():
    found = decode(torch.tensor([0.5, -1.0, math.log(2), 0.0]), torch.tensor([10.0, 20.0, 30.0, 60.0]))
    assert torch.allclose(found, torch.tensor([10.0, -20.0, 50.0, 20.0]))  # centre (20, 40) -> (30, 0), sides 40 and 40


def test_sides_grow_at_most_to_the_limit():
    found = decode(torch.tensor([[0.0, 0.0, 100.0, 100.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    assert torch.allclose(found[0, 2:] - found[0, :2], torch.tensor([1000.0, 1000.0]))


def test_anchors():
    found = anchors((2, 3), 8, 64, (0.5, 1.0, 2.0), torch.empty(0)).view(2, 3, 3, 4)
    assert torch.equal(found[0, 0, 1], torch.tensor([-32.0, -32.0, 32.0, 32.0]))
    assert torch.equal(found[1, 2, 1], torch.tensor([-16.0, -24.0, 48.0, 40.0]))
    sides = found[..., 2:] - found[..., :2]
    assert torch.allclose(sides.prod(-1), torch.tensor(64.0**2))
    assert torch.allclose(sides[0, 0, :, 1] / sides[0, 0, :, 0], torch.tensor([0.5, 1.0, 2.0]))


def test_clipping_empties_what_is_outside():
    boxes = torch.tensor([[-5.0, -5.0, 5.0, 5.0], [90.0, 10.0, 120.0, 20.0], [101.0, 0.0, 110.0, 10.0]])
    found = clip_boxes_to_image(boxes, (50, 100))
    assert found.tolist() == [[0, 0, 5, 5], [90, 10, 100, 20], [100, 0, 100, 10]]
    assert not_empty(found).tolist() == [True, True, False]


def test_levels_follow_the_area():
    sides = torch.tensor([1.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 5000.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    assert levels_of(boxes, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_pooling_a_ramp_gives_the_middle_of_every_cell():
    """Pixel (x, y) of stride 4 covers 4 pixels of the input: its middle is 4x + 2."""
    x = torch.arange(40.0).expand(1, 1, 40, 40) * 4 + 2
    box = torch.tensor([[16.0, 20.0, 16.0 + 70, 20.0 + 35]])
    pooled = pool_boxes([x, x[..., ::2, ::2]], [box], 7)
    middles = 16 + 10 * (torch.arange(7) + 0.5)
    assert torch.allclose(pooled[0, 0], middles.expand(7, 7), atol=1e-4)


def test_images_and_levels_stay_in_order():
    maps = [torch.full((2, 1, 64 // 2**i, 64 // 2**i), float(i)) for i in range(4)]
    for x in maps:
        x[1] += 10
    boxes = [torch.tensor([[0.0, 0, 250, 250], [0, 0, 20, 20]]), torch.zeros(0, 4)], [torch.zeros(0, 4)] * 2
    assert pool_boxes(maps, boxes[0], 2)[:, 0, 0, 0].tolist() == pytest.approx([2, 0])
    assert pool_boxes(maps, boxes[0][::-1], 2)[:, 0, 0, 0].tolist() == pytest.approx([12, 10])
    assert pool_boxes(maps, boxes[1], 2).shape == (0, 1, 2, 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [7, 14])
def test_kernels_are_torchvisions_operator(side, layout, monkeypatch):
    """Boxes inside, beyond every side, of no size, inverted, and larger than the image."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 16, 96 // 2**i, 72 // 2**i, generator=generator) for i in range(4)]
    maps = [x.contiguous(memory_format=layout) for x in maps]
    corners = torch.rand(300, 4, generator=generator) * torch.tensor([360.0, 460, 360, 460]) - 40
    low, high = torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])
    odd = [[10, 10, 10, 10], [50, 60, 40, 50], [-500, -500, 900, 900], [0, 0, 288, 384], [284, 380, 288, 384]]
    boxes = [torch.cat([low, high], dim=1), torch.tensor(odd, dtype=torch.float32)]
    assert module._kernels_work(maps)
    found = pool_boxes(maps, boxes, side)
    monkeypatch.setattr(module, "_kernels_work", lambda pyramid: False)
    expected = pool_boxes(maps, boxes, side)
    assert found.shape == expected.shape == (305, 16, side, side)
    assert (found - expected).abs().max() < 1e-4


def test_gradients_go_through_torchvisions_operator():
    maps = [torch.randn(1, 4, 32 // 2**i, 32 // 2**i, requires_grad=True) for i in range(2)]
    pool_boxes(maps, [torch.tensor([[8.0, 8.0, 60.0, 60.0]])], 7).sum().backward()
    assert maps[0].grad.abs().sum() > 0
