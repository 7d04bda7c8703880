"""Panoptic FCN's head and its answers: which kernels are joined, what is enlarged, images without answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fapn_zoo
from fapn_zoo.modules.heads.panoptic_fcn import with_places
from fapn_zoo.modules.necks import ConvolvedLevels
from fapn_zoo.postprocess import Frame, decode, panoptic_fcn
from fapn_zoo.zoo.spec import DataSpec

pytestmark = pytest.mark.unit
SMALL = {"backbone": "test_efficientnet", "neck_out_channels": 16, "head_channels": 16, "head_embed": 8}


def small(**options) -> nn.Module:
    """A head whose positions are many and kernels unlike, where a new one's are all alike."""
    torch.manual_seed(0)
    options = SMALL | {"num_classes": 5, "things": (1, 3), "head_stuff_area": 1} | options
    model = fapn_zoo.create_model("panoptic_fcn_fpn", **options).eval()
    head = model.head
    for layer in (head.position.centres, head.position.regions, head.kernel_out, head.thing_embed, head.stuff_embed):
        nn.init.normal_(layer.weight, std=0.3)
    nn.init.zeros_(head.position.centres.bias)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 1, "things": ()}, {"in_chans": 5}, {"things": ()}, {"things": (4,)}]
)
@pytest.mark.parametrize("size", [(64, 96), (70, 33)])
def test_answers_of_a_batch(options, size):
    model = small(**options)
    x = torch.randn(2, options.get("in_chans", 3), *(-(-side // 32) * 32 for side in size))
    output, frame = model(x), Frame(size, (50, 61))
    things = model.data.things or tuple(range(model.num_classes))
    for n in range(2):
        one = output.image(n)
        alone = model(x[n : n + 1])
        assert torch.allclose(one.features, alone.features, atol=1e-4)
        whole = decode(one, "panoptic", frame, model.data)
        assert whole.ids.shape == whole.scores.shape == frame.original and whole.segments
        areas = np.bincount(whole.ids.flatten(), minlength=len(whole.segments) + 1)[1:]
        assert [s.area for s in whole.segments] == areas.tolist() and (areas > 0).all()
        assert all(s.isthing == (s.category_id in things) and 0 <= s.score <= 1 for s in whole.segments)
        objects = decode(one, "instance", frame, model.data, score_threshold=0.0)
        assert objects.segments and {s.category_id for s in objects.segments} <= {*things}
        assert [s.area for s in objects.segments] == objects.masks.sum(dim=(1, 2)).tolist()
        assert np.all(np.diff([s.score for s in objects.segments]) <= 0)
        assert len(decode(one, "instance", frame, model.data, score_threshold=0.0, max_instances=1).segments) == 1


@torch.no_grad()
def test_masks_are_those_of_whole_maps():
    output = small()(torch.randn(1, 3, 64, 96))
    for original in ((53, 81), (200, 300), (20, 25)):
        frame = Frame((53, 81), original)
        found = panoptic_fcn.objects(output, 0.2)
        full = F.interpolate(found.masks[None], scale_factor=4.0, mode="bilinear")[..., :53, :81]
        full = F.interpolate(full, original, mode="bilinear")[0]
        expected = full > panoptic_fcn.INSIDE
        expected = expected[expected.flatten(1).any(dim=1)]
        masks = decode(output, "instance", frame, DataSpec(things=(1, 3)), score_threshold=0.0).masks
        assert masks.shape == expected.shape and (masks != expected).float().mean() < 1e-4
        channels, logits = panoptic_fcn.stuff_masks(output, 0.1)
        full = F.interpolate(logits.sigmoid()[None], scale_factor=4.0, mode="bilinear")[..., :53, :81]
        best, place = F.interpolate(full, original, mode="bilinear")[0].max(dim=0)
        stuff = panoptic_fcn.stuff_map(output, frame, 0.1)
        assert (stuff.labels != channels[place]).float().mean() < 1e-3 and torch.allclose(stuff.scores, best, atol=1e-5)


@torch.no_grad()
def test_an_image_where_nothing_is_found():
    output = small()(torch.randn(1, 3, 64, 96))
    silent = output._replace(**{
        name: tuple(torch.full_like(x, -20) for x in getattr(output, name)) for name in ("centres", "regions")
    })  # fmt: skip
    data, frame = DataSpec(things=(1, 3)), Frame((64, 96), (64, 96))
    whole = decode(silent, "panoptic", frame, data)
    assert whole.segments == () and not whole.ids.any() and not whole.scores.any()
    assert decode(silent, "instance", frame, data, score_threshold=0.0).masks.shape == (0, 64, 96)
    model = small()
    nn.init.zeros_(model.head.position.centres.weight)
    nn.init.zeros_(model.head.position.regions.weight)
    for bias in (model.head.position.centres.bias, model.head.position.regions.bias):
        nn.init.constant_(bias, -20)
    result = model.predict(np.zeros((40, 50, 3), np.uint8))
    assert not result.segments and result.segment_map.shape == (40, 50)
    assert not model.predict(np.zeros((40, 50, 3), np.uint8), task="instance").segments


def test_kernels_that_are_joined():
    """By loops: a kernel belongs to the first it is alike, and where that one is joined itself, to none."""
    generator = torch.Generator().manual_seed(0)
    kernels = torch.randn(40, 3, generator=generator)  # so few numbers make many alike
    kernels[7] = 0
    classes = torch.randint(0, 2, (40,), generator=generator)
    scores = torch.rand(40, generator=generator).sort(descending=True).values
    found, kept_scores, kept_classes = panoptic_fcn.joined(kernels, scores, classes)
    first = []
    for j in range(40):
        near = [
            i
            for i in range(j)
            if classes[i] == classes[j] and torch.cosine_similarity(kernels[i], kernels[j], dim=0) >= 0.9
        ]
        first.append(near[0] if near else j)
    kept = [j for j in range(40) if first[j] == j]
    lost = [j for j in range(40) if first[j] != j and first[j] not in kept]
    assert lost and len(kept) < 30
    expected = torch.stack([kernels[[j for j in range(40) if first[j] == i]].mean(dim=0) for i in kept])
    assert torch.allclose(found, expected, atol=1e-6) and found.isfinite().all()
    assert torch.equal(kept_scores, scores[kept]) and torch.equal(kept_classes, classes[kept])


def test_places_and_levels():
    places = with_places(torch.zeros(2, 1, 3, 5))
    assert places[1, 1, :, 4].tolist() == [-1, 0, 1] and places[0, 2, 2].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert with_places(torch.zeros(1, 1, 1, 1)).flatten().tolist() == [0, -1, -1]
    maps = [torch.randn(1, 4, 9, 11)]
    levels = ConvolvedLevels(4)
    found, names = levels(maps, maps, ["0"])
    assert names == ["0", "p6", "p7"] and [x.shape[-2:] for x in found[1:]] == [(5, 6), (3, 3)]
    assert torch.equal(found[2], levels.p7(found[1].clamp(min=0)))


def test_exported_places_follow_the_size():
    class Places(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return with_places(x)

    sizes = ({2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)},)
    program = torch.export.export(Places(), (torch.zeros(2, 1, 6, 8),), dynamic_shapes=sizes).module()
    x = torch.randn(2, 1, 9, 5)
    assert torch.equal(program(x), with_places(x))


def test_what_is_refused():
    for options, words in (
        ({"things": (5,)}, "things"),
        ({"things": (1, 1)}, "things"),
        ({"head_positions": 0}, "positions=0"),
        ({"head_convs": 0}, "convs=0"),
        ({"head_merge_score": 1.5}, "merge_score=1.5"),
        ({"head_stuff_area": -1}, "stuff_area=-1"),
    ):
        with pytest.raises(ValueError, match=words):
            small(**options)
    with torch.no_grad():
        output = small()(torch.randn(1, 3, 64, 64))
    for task in ("panoptic", "instance"):
        with pytest.raises(ValueError, match="does not fit data"):
            decode(output, task, Frame((64, 64), (64, 64)), DataSpec(labels=tuple("abcde"), things=(0, 1, 2)))
        with pytest.raises(ValueError, match="cover"):
            decode(output, task, Frame((80, 64), (64, 64)), DataSpec(things=(1, 3)))
