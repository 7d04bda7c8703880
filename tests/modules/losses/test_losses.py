"""Losses against the official criterion, against naive formulas, and where nothing is there or all is ignored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fapn_zoo
from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput, Targets
from fapn_zoo.modules.losses import PerPixelLoss, SetCriterion
from fapn_zoo.modules.losses.matcher import match
from fapn_zoo.modules.losses.per_pixel import upsample_to

pytestmark = pytest.mark.unit
GOLDEN = Path(__file__).parents[2] / "goldens" / "losses_maskformer"


@pytest.fixture(scope="module")
def golden():
    arrays = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "inputs.npz").items()}
    output = MaskFormerOutput(
        arrays["l1.pred_logits"], arrays["l1.pred_masks"], ((arrays["l0.pred_logits"], arrays["l0.pred_masks"]),)
    )
    targets = Targets(
        classes=(arrays["t0.labels"], arrays["t1.labels"]), masks=(arrays["t0.masks"].bool(), arrays["t1.masks"].bool())
    )
    return output, targets, json.loads((GOLDEN / "expected.json").read_text())


def test_set_criterion_equals_the_official_one(golden):
    output, targets, expected = golden
    losses = SetCriterion(7)(output, targets)
    ours = {"loss_ce": "class", "loss_mask": "mask", "loss_dice": "dice"}
    for name, value in expected["losses"].items():
        stem, suffix = (name[:-2], "_0") if name.endswith("_0") else (name, "")
        assert losses[ours[stem] + suffix].item() == pytest.approx(value, rel=1e-5)
    weights = {"loss_ce": 1, "loss_mask": 20, "loss_dice": 1}
    total = sum(weights[name.removesuffix("_0")] * value for name, value in expected["losses"].items())
    assert losses["loss"].item() == pytest.approx(total, rel=1e-5)


def test_matches_equal_the_official_ones(golden):
    output, targets, expected = golden
    layers = {"matches_last": (output.class_logits, output.mask_logits), "matches_aux0": output.aux[0]}
    for name, (classes, masks) in layers.items():
        for i in range(2):
            queries, chosen = match(classes[i], masks[i], targets.classes[i], targets.masks[i])
            assert [queries.tolist(), chosen.tolist()] == expected[name][i]


def random_output(n=3, q=6, k=4, h=8, w=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return MaskFormerOutput(torch.randn(n, q, k + 1, generator=g), torch.randn(n, q, h, w, generator=g))


def labels(n=3, h=32, w=48, k=4, seed=0):
    return (
        torch.randint(0, k, (n, h // 8, w // 8), generator=torch.Generator().manual_seed(seed))
        .repeat_interleave(8, 1)
        .repeat_interleave(8, 2)
    )


def test_semantic_labels_become_one_mask_per_class():
    y = labels()
    y[0, :16] = 255
    targets = Targets(y)
    assert targets.segments() is targets.segments()  # made once
    for image, (classes, masks) in zip(y, targets.segments(), strict=True):
        assert 255 not in classes and len(classes) == len(set(image.unique().tolist()) - {255})
        assert torch.equal(masks.sum(0), (image != 255).long())


@pytest.mark.parametrize(
    "make",
    [
        lambda: (SetCriterion(4), random_output()),
        lambda: (PerPixelLoss(), SemanticOutput(torch.randn(3, 4, 8, 12))),
        lambda: (PerPixelLoss(class_weights=(1.0, 2.0, 3.0, 0.5)), SemanticOutput(torch.randn(3, 4, 8, 12))),
    ],
)
def test_parts_of_a_batch_add_up(make):
    """The gradient must not depend on how a batch is spread over steps or processes."""
    torch.manual_seed(0)
    criterion, output = make()
    y = labels()
    y[1] = 255  # an image without any target
    targets = Targets(y)
    whole = criterion(output, targets)["loss"]
    totals = criterion.count(targets)
    split = [criterion.count(targets.part(i, i + 1)) for i in range(3)]
    assert {name: sum(count[name] for count in split).item() for name in totals} == {
        name: total.item() for name, total in totals.items()
    }
    parts = [criterion(output.image(i), targets.part(i, i + 1), totals) for i in range(3)]
    assert sum(p["loss"] for p in parts).item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("fill", [255, 2])
def test_all_ignored_and_one_class(fill):
    y = torch.full((3, 32, 48), fill)
    per_pixel = (PerPixelLoss(), SemanticOutput(torch.randn(3, 4, 8, 12)))
    for criterion, output in [(SetCriterion(4), random_output()), per_pixel]:
        first = output[0].requires_grad_()
        loss = criterion(output, Targets(y))["loss"]
        loss.backward()
        assert loss.isfinite() and first.grad.isfinite().all()


def test_more_masks_than_queries():
    classes = torch.arange(9) % 4
    masks = torch.rand(9, 32, 48) > 0.5
    output = random_output(n=1)
    assert SetCriterion(4)(output, Targets(classes=(classes,), masks=(masks,)))["loss"].isfinite()


def test_a_cost_that_is_not_finite_names_its_term():
    output = random_output(n=1)
    output.mask_logits[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the mask cost of the matching is not finite"):
        SetCriterion(4)(output, Targets(labels(1)))


def test_cross_entropy_on_exactly_enlarged_logits():
    logits, y = torch.randn(2, 4, 9, 13), torch.randint(0, 4, (2, 33, 50))
    y[0, 0] = 255
    enlarged = F.interpolate(logits, scale_factor=4, mode="bilinear")[..., :33, :50]
    assert torch.equal(upsample_to(logits, 33, 50, 4), enlarged)
    expected = F.cross_entropy(enlarged, y, ignore_index=255)
    assert PerPixelLoss()(SemanticOutput(logits), Targets(y))["loss"].item() == pytest.approx(expected.item())


def test_class_weights_as_torch_has_them():
    logits, y, weights = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 32, 32)), (1.0, 4.0, 0.5)
    y[0, :5] = 255
    expected = F.cross_entropy(upsample_to(logits, 32, 32, 4), y, torch.tensor(weights), ignore_index=255)
    loss = PerPixelLoss(class_weights=weights)(SemanticOutput(logits), Targets(y))["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_class_weights_must_fit():
    model = fapn_zoo.create_model("perpixel_fpn", backbone="resnet10t", num_classes=2)
    assert PerPixelLoss.of(model, class_weights=(1.0, 2.0)).class_weights.tolist() == [1, 2]
    for bad in [(1.0,), (1.0, 0.0)]:
        with pytest.raises(ValueError, match="a positive number for each of the 2 classes"):
            PerPixelLoss.of(model, class_weights=bad)
    with pytest.raises(ValueError, match="class_weights is for per-pixel heads"):
        SetCriterion.of(model, class_weights=(1.0, 2.0))


def test_auxiliary_maps_count():
    logits, y = torch.randn(1, 4, 8, 8), torch.randint(0, 4, (1, 32, 32))
    once = PerPixelLoss()(SemanticOutput(logits), Targets(y))["loss"]
    twice = PerPixelLoss()(SemanticOutput(logits, (logits,)), Targets(y))["loss"]
    assert twice.item() == pytest.approx(2 * once.item())


def test_targets_grow_move_and_join():
    one = Targets(torch.full((1, 2, 3), 1), ignore_index=9)
    grown = one.padded(4, 4)
    assert grown.labels[0].tolist() == [[1, 1, 1, 9], [1, 1, 1, 9], [9] * 4, [9] * 4] and len(grown) == 1
    assert Targets.joined([grown, grown]).labels.shape == (2, 4, 4) and one.padded(2, 3).labels is one.labels
    none = Targets(classes=(torch.zeros(0, dtype=torch.int64),), masks=(torch.zeros(0, 2, 3, dtype=torch.bool),))
    some = Targets(classes=(torch.tensor([3]),), masks=(torch.ones(1, 2, 3, dtype=torch.bool),))
    both = Targets.joined([none.padded(4, 4), some.padded(4, 4)]).to(torch.device("cpu"))
    assert len(both) == 2 and [len(classes) for classes, _ in both.segments()] == [0, 1]
    assert both.segments()[1][1].sum() == 6 and len(both.part(1, 2)) == 1
    assert SetCriterion(4)(random_output(2, h=1, w=1), both)["loss"].isfinite()
