from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from toys.decoding import classes, instances, labels, panoptic, scores

from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput
from fapn_zoo.postprocess import Frame, decode
from fapn_zoo.postprocess import semantic as bands
from fapn_zoo.zoo.spec import DataSpec

pytestmark = pytest.mark.unit
FRAME, PLAIN = Frame((16, 16), (16, 16)), DataSpec()

SIZES = [  # maps (h, w) at stride 4, image_size, out_size
    ((8, 10), (32, 40), (32, 40)),
    ((8, 10), (29, 37), (29, 37)),
    ((8, 10), (29, 37), (43, 61)),
    ((8, 10), (29, 37), (13, 11)),
    ((8, 10), (29, 37), (29, 60)),
    ((8, 10), (29, 37), (7, 37)),
    ((1, 1), (1, 3), (5, 2)),
]


def random_output(kind: str, maps: tuple[int, int], n: int = 2, k: int = 5, q: int = 7):
    generator = torch.Generator().manual_seed(0)
    if kind == "semantic":
        return SemanticOutput(torch.randn(n, k, *maps, generator=generator) * 3)
    return MaskFormerOutput(
        torch.randn(n, q, k + 1, generator=generator) * 2, torch.randn(n, q, *maps, generator=generator) * 4
    )


def naive_scores(output, image_size, out_size):
    """The order of the official code, on whole maps."""
    if isinstance(output, SemanticOutput):
        scores = F.interpolate(output.logits, scale_factor=4, mode="bilinear", align_corners=False)
    else:
        h, w = output.mask_logits.shape[-2:]
        masks = F.interpolate(output.mask_logits, size=(h * 4, w * 4), mode="bilinear", align_corners=False)
        classes = output.class_logits.softmax(-1)[..., :-1]
        scores = torch.einsum("nqc,nqhw->nchw", classes, masks.sigmoid())
    scores = scores[..., : image_size[0], : image_size[1]]
    return F.interpolate(scores, size=out_size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("kind", ["semantic", "masks"])
@pytest.mark.parametrize("maps, image_size, out_size", SIZES)
@pytest.mark.parametrize("budget", [1, 3000, bands.BAND_FLOATS])
def test_bands_equal_the_whole(monkeypatch, kind, maps, image_size, out_size, budget):
    monkeypatch.setattr(bands, "BAND_FLOATS", budget)
    output = random_output(kind, maps)
    expected = naive_scores(output, image_size, out_size)
    found = scores(output, image_size, out_size)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    best, shares = labels(output, image_size, out_size)
    assert best.dtype == torch.int64 and torch.equal(best, found.argmax(1))
    assert torch.equal(classes(output, image_size, out_size), best)
    whole = expected.softmax(1) if kind == "semantic" else expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(shares, whole.amax(1), atol=1e-5, rtol=0)


def test_half_precision_outputs_are_raised_to_float32():
    output = random_output("semantic", (4, 4))
    found = scores(SemanticOutput(output.logits.bfloat16()), (16, 16), (20, 20))
    assert found.dtype == torch.float32
    assert torch.equal(found, scores(SemanticOutput(output.logits.bfloat16().float()), (16, 16), (20, 20)))


def test_scores_are_float32_under_autocast_too():
    output = random_output("masks", (4, 4))
    expected = scores(output, (16, 16), (20, 20))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scores(output, (16, 16), (20, 20)), expected)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements any operation returned."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def run_panoptic(output, image_size, out_size):
    return panoptic(output, image_size, out_size, object_threshold=0.0, overlap_threshold=0.0)


@pytest.mark.parametrize("function", [classes, labels, run_panoptic])
@pytest.mark.parametrize("out_size", [(512, 512), (700, 700), (300, 300)])
def test_memory_is_bounded(monkeypatch, function, out_size):
    monkeypatch.setattr(bands, "BAND_FLOATS", 2**20)
    output = MaskFormerOutput(torch.randn(1, 40, 31), torch.randn(1, 40, 128, 128))
    with LargestTensor() as seen:
        function(output, (512, 512), out_size)
    assert seen.largest <= 1.3 * 2**20, "more than a band at once"
    assert seen.largest < 40 * 512 * 512 / 5, "near the size of all masks at full size"


def test_queries_without_probability_and_no_queries():
    output = MaskFormerOutput(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4, 4))
    best, shares = labels(output, (15, 13), (31, 27))
    assert best.shape == shares.shape == (2, 31, 27) and not best.any() and not shares.any()
    assert scores(output, (15, 13), (15, 13)).shape == (2, 3, 15, 13)
    assert [p.segments for p in panoptic(output, (15, 13), (31, 27))] == [(), ()]
    assert [tuple(i.masks.shape) for i in instances(output, (15, 13), (31, 27))] == [(0, 31, 27)] * 2


def blocks(*queries: tuple[int, float, slice], k: int = 3) -> MaskFormerOutput:
    """Queries of (class, class logit, columns of a 4 x 8 map that its mask covers)."""
    chosen = torch.zeros(1, len(queries), k + 1)
    masks = torch.full((1, len(queries), 4, 8), -12.0)
    for i, (label, logit, columns) in enumerate(queries):
        chosen[0, i, label] = logit
        masks[0, i, :, columns] = 12.0
    return MaskFormerOutput(chosen, masks)


def test_panoptic_merges_stuff_and_keeps_things_apart():
    output = blocks(
        (0, 9.0, slice(0, 2)), (1, 9.0, slice(2, 4)), (1, 8.0, slice(4, 6)), (0, 7.0, slice(6, 8)),
        (3, 9.0, slice(0, 8)),
    )  # fmt: skip
    (found,) = panoptic(output, (16, 32), (16, 32), things=(1,))
    assert [(s.id, s.category_id, s.isthing) for s in found.segments] == [(1, 0, False), (2, 1, True), (3, 1, True)]
    assert found.ids.dtype == torch.int32
    assert found.ids[8].tolist() == [1] * 8 + [2] * 8 + [3] * 8 + [1] * 8
    assert [s.area for s in found.segments] == [2 * 8 * 16, 8 * 16, 8 * 16]
    p9, p7 = (torch.tensor([x, 0.0, 0.0, 0.0]).softmax(0)[0].item() for x in (9.0, 7.0))
    assert found.segments[0].score == pytest.approx((p9 + p7) / 2, abs=1e-6)
    torch.testing.assert_close(found.scores[8, 12].item(), p9, atol=1e-4, rtol=0)


def test_panoptic_thresholds():
    weak = blocks((0, 9.0, slice(0, 4)), (1, 1.0, slice(4, 8)))
    (found,) = panoptic(weak, (16, 32), (16, 32))
    # Every pixel goes to some kept query, as in the official code: the weak one is not among them.
    assert [s.category_id for s in found.segments] == [0] and found.ids.unique().tolist() == [1]
    hidden = blocks((0, 9.0, slice(0, 6)), (1, 8.0, slice(2, 8)))  # query 1 wins 2 of the 6 columns it claims
    (found,) = panoptic(hidden, (16, 32), (16, 32))
    assert [s.category_id for s in found.segments] == [0]
    assert found.ids[8, :22].eq(1).all() and not found.ids[8, 24:].any() and not found.scores[8, 24:].any()
    (found,) = panoptic(hidden, (16, 32), (16, 32), overlap_threshold=0.3)
    assert [s.category_id for s in found.segments] == [0, 1]


def test_instances_are_ranked_and_filtered():
    output = blocks((2, 3.0, slice(6, 8)), (1, 9.0, slice(0, 4)), (1, 6.0, slice(2, 6)), (0, 9.0, slice(0, 8)))
    (found,) = instances(output, (16, 32), (32, 64), things=(1, 2))
    assert [(s.id, s.category_id) for s in found.segments] == [(1, 1), (2, 1), (3, 2)]
    assert found.masks.dtype == torch.bool and found.masks.shape == (3, 32, 64)
    assert (found.masks[0] & found.masks[1]).any(), "instances may overlap"
    assert [s.area for s in found.segments] == found.masks.sum((1, 2)).tolist() == [32 * 32, 32 * 32, 32 * 16]
    ranked = [s.score for s in found.segments]
    assert ranked == sorted(ranked, reverse=True) and 0.5 <= ranked[-1] and ranked[0] <= 1
    assert len(instances(output, (16, 32), (32, 64), max_instances=1)[0].segments) == 1
    assert len(instances(output, (16, 32), (32, 64), score_threshold=0.99)[0].segments) == 2


@pytest.mark.parametrize("maps, image_size, out_size", SIZES)
@pytest.mark.parametrize("budget", [1, bands.BAND_FLOATS])
def test_instances_are_those_of_whole_masks(monkeypatch, maps, image_size, out_size, budget):
    """Rows in which no mask can be are never made, and queries that are found twice are made once."""
    monkeypatch.setattr(bands, "BAND_FLOATS", budget)
    output = random_output("masks", maps, q=6)
    output.mask_logits[:, :, : maps[0] // 2] -= 9.0  # most are empty above
    factor = output.stride
    large = F.interpolate(output.mask_logits, scale_factor=float(factor), mode="bilinear", align_corners=False)
    large = large[..., : image_size[0], : image_size[1]]
    whole = F.interpolate(large, size=out_size, mode="bilinear", align_corners=False).sigmoid()
    for n, found in enumerate(instances(output, image_size, out_size, score_threshold=0.0, max_instances=30)):
        chosen, probabilities = whole[n] > 0.5, output.class_logits[n].softmax(-1)[:, :-1]
        mean = (whole[n] * chosen).sum((1, 2)) / chosen.sum((1, 2)).clamp(min=1)
        rows = [(float(p * mean[q]), q, k) for q, of in enumerate(probabilities) for k, p in enumerate(of)]
        rows = [row for row in sorted(rows, reverse=True) if chosen[row[1]].any()]
        assert [s.category_id for s in found.segments] == [k for _, _, k in rows]
        assert [s.score for s in found.segments] == pytest.approx([score for score, _, _ in rows], abs=1e-5)
        unsure = (whole[n] - 0.5).abs() < 1e-5
        for mask, segment, (_, q, _) in zip(found.masks, found.segments, rows, strict=True):
            assert not (mask ^ chosen[q])[~unsure[q]].any() and segment.area == mask.sum()


def test_instances_of_a_photo_take_little_memory():
    """100 objects on 12 megapixels, one of them scattered all over it; their full masks would take 1.2 GB."""
    maps, size, count = (200, 267), (3000, 4000), 100
    y, x = torch.meshgrid(*map(torch.arange, maps), indexing="ij")
    centre = torch.rand(count, 2, 1, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor(maps).view(2, 1, 1)
    masks = 2.5 - ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2).sqrt()
    masks[0] = torch.where((y + x) % 8 < 4, 3.0, -3.0)
    classes = torch.cat([torch.full((1, count, 1), 4.0), torch.zeros(1, count, 1)], -1)
    with LargestTensor() as seen:
        (found,) = instances(MaskFormerOutput(classes, masks[None]), (800, 1067), size, max_instances=count)
    assert len(found.segments) == count and found.segments[-1].area > 500
    assert seen.largest * 4 < 64 * 2**20
    assert sum(len(mask.bits) for mask in found.cropped._masks) < 2**20


LOGITS = SemanticOutput(torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: decode(torch.zeros(1), "semantic", FRAME, PLAIN), "cannot read an output of type Tensor"),
        (lambda: classes(LOGITS, (17, 16), (9, 9)), r"cover \(16, 16\) pixels, no image of \(17, 16\)"),
        (lambda: classes(LOGITS, (0, 16), (9, 9)), r"no image of \(0, 16\)"),
        (lambda: panoptic(LOGITS, (16, 16), (9, 9)), "SemanticOutput answers semantic, not 'panoptic'"),
        (lambda: instances(LOGITS, (16, 16), (9, 9)), "SemanticOutput answers semantic, not 'instance'"),
    ],
)
def test_errors_name_the_thing(call, message):
    with pytest.raises(ValueError, match=message):
        call()
