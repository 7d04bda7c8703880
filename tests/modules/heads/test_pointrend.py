"""PointRend's head: what it refines, by a plain loop over pixels; what it gives while training; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fapn_zoo
from fapn_zoo.modules.heads import PointRendHead
from fapn_zoo.modules.heads.outputs import PointRendOutput, SemanticOutput, Targets
from fapn_zoo.postprocess import Frame
from fapn_zoo.postprocess.decoders import decode, semantic_scores

pytestmark = pytest.mark.unit
SMALL = {"channels": 16, "point_channels": 16, "train_points": 20}


def make(classes: int = 3, **options: object) -> PointRendHead:
    torch.manual_seed(0)
    head = PointRendHead(8, 12, classes, **(SMALL | options)).eval()
    torch.nn.init.normal_(head.points.predictor.weight)  # new ones give next to nothing
    return head


def maps(height: int = 6, width: int = 10, n: int = 2) -> list[Tensor]:
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(4)]
    return [torch.randn(n, 8, *size, generator=torch.Generator().manual_seed(1)) for size in sizes]


def read(image: Tensor, x: float, y: float) -> Tensor:
    """Bilinear value (C,) of an image (C, h, w) at (x, y) in 0..1, zero outside: the formula, corner by corner."""
    height, width = image.shape[1:]
    column, row = x * width - 0.5, y * height - 0.5
    left, top = int(np.floor(column)), int(np.floor(row))
    total = torch.zeros(len(image))
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * image[:, i, j]
    return total


def slowly(head: PointRendHead, coarse: Tensor, fine: Tensor) -> Tensor:
    """The refinement of one image in words: double, sort by the margin, classify one pixel after the other."""
    logits = coarse
    for _ in range(head.steps):
        logits = F.interpolate(logits[None], scale_factor=2, mode="bilinear", align_corners=False)[0].clone()
        height, width = logits.shape[1:]
        best = logits.topk(2, dim=0).values
        order = (best[0] - best[1]).flatten().argsort()[: head.refined_points].tolist()
        for place in order:
            i, j = divmod(place, width)
            x, y = (j + 0.5) / width, (i + 0.5) / height
            point = head.points(read(fine, x, y)[None, :, None], read(coarse, x, y)[None, :, None])
            logits[:, i, j] = point[0, :, 0]
    return logits


@pytest.mark.parametrize("count", [7, 60, 10_000])
@torch.no_grad()
def test_refinement_pixel_by_pixel(count: int) -> None:
    head, pyramid = make(refined_points=count), maps()
    out = head(pyramid, [])
    assert isinstance(out, SemanticOutput) and out.stride == 1 and out.logits.shape == (2, 3, 24, 40)
    coarse = head.coarse(pyramid, []).logits
    for n in range(2):
        torch.testing.assert_close(out.logits[n], slowly(head, coarse[n], pyramid[0][n]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("steps", "stride"), [(0, 4), (1, 2), (2, 1)])
@torch.no_grad()
def test_steps_decide_the_stride(steps: int, stride: int) -> None:
    head, pyramid = make(steps=steps), maps(7, 9)
    out = head(pyramid, [])
    assert out.stride == stride and out.logits.shape[2:] == (7 * 4 // stride, 9 * 4 // stride)
    if not steps:
        assert torch.equal(out.logits, head.coarse(pyramid, []).logits)


def test_training_gives_the_coarse_map_and_points() -> None:
    head, pyramid = make().train(), maps()
    targets = Targets(torch.zeros(2, 24, 40, dtype=torch.int64), seeds=torch.tensor([3, 4]))
    out = head(pyramid, [], None, targets)
    assert isinstance(out, PointRendOutput) and out.stride == 4
    assert out.logits.shape == (2, 3, 6, 10) and out.points.shape == (2, 20, 2) and out.point_logits.shape == (2, 3, 20)
    assert torch.equal(out.point_logits, head.at(out.points, out.logits, pyramid[0]))
    again = head.eval()(pyramid, [], None, targets)  # as a frozen head is asked
    assert isinstance(again, PointRendOutput) and torch.equal(again.points, out.points)
    second = out.image(1)
    assert [tuple(t.shape) for t in second[:3]] == [(1, 3, 6, 10), (1, 20, 2), (1, 3, 20)] and second.stride == 4
    assert isinstance(head.train()(pyramid, []), PointRendOutput)


def test_seeds_go_with_their_images() -> None:
    targets = Targets(torch.zeros(3, 8, 8, dtype=torch.int64), seeds=torch.tensor([5, 6, 7]))
    assert targets.part(1, 3).seeds.tolist() == [6, 7] and targets.padded(9, 9).seeds.tolist() == [5, 6, 7]
    assert Targets.joined([targets.part(0, 1), targets.part(1, 3)]).seeds.tolist() == [5, 6, 7]
    assert targets.to(torch.device("meta")).seeds.device.type == "meta"
    assert Targets(targets.labels).part(0, 2).seeds is None


def test_images_of_a_batch_do_not_mix() -> None:
    head, pyramid = make(refined_points=30), maps(n=3)
    with torch.no_grad():
        whole = head(pyramid, []).logits
        alone = head([level[1:2] for level in pyramid], []).logits
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_part_while_predicting_too() -> None:
    head, pyramid = make(refined_points=30), [level.requires_grad_() for level in maps()]
    head(pyramid, []).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    assert all(level.grad.abs().sum() > 0 for level in pyramid)


def test_one_class_is_refined_around_zero() -> None:
    head, pyramid = make(classes=1, refined_points=5), maps()
    with torch.no_grad():
        out, plain = head(pyramid, []), make(classes=1, steps=1, refined_points=5)(pyramid, [])
    assert out.logits.shape == (2, 1, 24, 40) and plain.stride == 2 and out.logits.isfinite().all()


@torch.no_grad()
def test_answers_are_those_of_its_logits() -> None:
    head, pyramid = make(), maps()
    out, frame = head(pyramid, []).image(1), Frame((22, 37), (22, 37))
    assert torch.equal(semantic_scores(out, frame), out.logits[0, :, :22, :37])
    found = decode(out, "semantic", frame, fapn_zoo.DataSpec())
    assert torch.equal(found.labels, out.logits[0, :, :22, :37].argmax(0))
    torch.testing.assert_close(found.scores, out.logits[0, :, :22, :37].softmax(0).amax(0))
    training = head.train()(pyramid, []).image(0)  # its coarse map can be read too
    assert decode(training, "semantic", frame, fapn_zoo.DataSpec()).labels.shape == (22, 37)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 3}, "steps=3; expected 0, 1 or 2"),
        ({"train_points": 0}, "train_points=0, refined_points=8192, point_layers=3; expected 1 or more"),
        ({"refined_points": 0}, "refined_points=0"),
        ({"importance": 1.5}, "importance=1.5, oversample=3.0; expected 0..1"),
        ({"oversample": 0.5}, "oversample=0.5"),
    ],
)
def test_bad_arguments_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**options)


@pytest.mark.parametrize(
    ("backbone", "in_chans", "width"), [("test_efficientnet", 5, 16), ("convnext_atto", 3, 24), ("swin_t", 3, 32)]
)
def test_any_pyramid_at_any_width(backbone: str, in_chans: int, width: int) -> None:
    model = fapn_zoo.create_model(
        "pointrend_fapn", backbone=backbone, num_classes=4, in_chans=in_chans, neck_out_channels=width,
        head_channels=16, head_point_channels=24,
    ).eval()  # fmt: skip
    image = (np.random.default_rng(0).random((45, 70, in_chans)) * 255).astype(np.uint8)
    result = model.predict(image)
    assert result.labels.shape == (45, 70) and np.isfinite(result.scores).all()
