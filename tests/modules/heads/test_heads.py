"""Heads: position embedding, deep supervision, and what each reads."""

from __future__ import annotations

import math

import pytest
import torch

from fapn_zoo.modules.heads import MaskFormerHead, PerPixelHead, PerPixelPlusHead, SemanticFPNHead
from fapn_zoo.modules.layers.position import sine_position

pytestmark = pytest.mark.unit


def test_sine_position_by_the_formula():
    """Each value from the description: y first, counts from 1, scaled to 2 pi, sine and cosine alternate."""
    table = sine_position(3, 5, 16, device=torch.device("cpu"), dtype=torch.float32)
    assert table.shape == (16, 3, 5)
    for channel in range(16):
        for y in range(3):
            for x in range(5):
                i = channel % 8
                angle = (y + 1) / (3 + 1e-6) if channel < 8 else (x + 1) / (5 + 1e-6)
                angle = angle * 2 * math.pi / 10000 ** (2 * (i // 2) / 8)
                expected = math.cos(angle) if i % 2 else math.sin(angle)
                assert table[channel, y, x].item() == pytest.approx(expected, abs=1e-5)


def maskformer():
    torch.manual_seed(0)
    return MaskFormerHead(8, 12, 3, mask_channels=8, channels=16, num_queries=5, layers=3, feedforward=16)


def maps():
    return [torch.randn(2, 8, 16 // 2**i, 24 // 2**i) for i in range(4)], [torch.randn(2, 12, 2, 3)]


def test_deep_supervision_follows_training_unless_told():
    head, (pyramid, features) = maskformer(), maps()
    out = head.train()(pyramid, features)
    assert out.class_logits.shape == (2, 5, 4) and out.mask_logits.shape == (2, 5, 16, 24) and len(out.aux) == 2
    assert head.eval()(pyramid, features).aux == ()
    head.deep_supervision = True
    layers = head(pyramid, features)
    assert len(layers.aux) == 2 and not torch.equal(layers.aux[0][0], layers.class_logits)


def test_queries_read_the_coarsest_backbone_map_and_masks_the_finest_output():
    head, (pyramid, features) = maskformer().eval(), maps()
    out = head(pyramid, features)
    other = head([pyramid[0], *(torch.zeros_like(p) for p in pyramid[1:])], features)
    assert torch.equal(out.mask_logits, other.mask_logits)
    assert not torch.equal(out.class_logits, head(pyramid, [features[0] + 1]).class_logits)


def test_every_class_has_a_query_embedding_of_its_own():
    head, (pyramid, features) = maskformer().eval(), maps()
    out = head(pyramid, features)
    assert (out.class_logits[:, 0] - out.class_logits[:, 1]).abs().max() > 1e-4


def test_per_pixel_head_with_and_without_mask_features():
    pyramid, features = maps()
    assert PerPixelHead(8, 12, 3)(pyramid, features).logits.shape == (2, 3, 16, 24)
    plain = PerPixelHead(8, 12, 3, mask_channels=0)
    assert sum(p.numel() for p in plain.parameters()) == 8 * 3 + 3
    assert torch.equal(plain(pyramid, features).logits, plain.predictor(pyramid[0]))


def test_per_pixel_plus_is_maskformer_with_a_query_per_class():
    """The same transformer with the same weights makes the same masks; its loss sees every decoder layer."""
    pyramid, features = maps()
    options = {"mask_channels": 8, "channels": 16, "layers": 3, "feedforward": 16}
    plus = PerPixelPlusHead(8, 12, 5, **options).eval()
    masked = MaskFormerHead(8, 12, 2, num_queries=5, **options).eval()
    left_out = masked.load_state_dict(plus.state_dict(), strict=False).missing_keys
    assert left_out == ["class_embed.weight", "class_embed.bias"]
    assert torch.equal(plus(pyramid, features).logits, masked(pyramid, features).mask_logits)
    assert plus(pyramid, features).aux == ()
    assert [a.shape for a in plus.train()(pyramid, features).aux] == [(2, 5, 16, 24)] * 2


def test_semantic_fpn_head_sums_levels_at_odd_sizes():
    sizes = [(25, 33), (13, 17), (7, 9), (4, 5)]
    pyramid = [torch.randn(1, 8, *s) for s in sizes]
    head = SemanticFPNHead(8, 12, 3, channels=32)
    assert head(pyramid, []).logits.shape == (1, 3, 25, 33)
    assert [len(branch) for branch in head.branches] == [1, 1, 2, 3]
