"""Losses against the official criterion, against naive formulas, and where nothing is there or all is ignored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

import fapn_zoo
from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput, Targets
from fapn_zoo.modules.losses import PerPixelLoss, SetCriterion
from fapn_zoo.modules.losses.per_pixel import upsample_to
from fapn_zoo.modules.losses.set_criterion import match

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
    losses = SetCriterion(7, output.class_logits.shape[1])(output, targets)
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
        lambda: (SetCriterion(4, 6), random_output()),
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
    for criterion, output in [(SetCriterion(4, 6), random_output()), per_pixel]:
        first = output[0].requires_grad_()
        loss = criterion(output, Targets(y))["loss"]
        loss.backward()
        assert loss.isfinite() and first.grad.isfinite().all()


def objects(*counts: int, k: int = 4) -> Targets:
    """Images of so many objects each."""
    g = torch.Generator().manual_seed(1)
    classes = tuple(torch.randint(0, k, (count,), generator=g) for count in counts)
    return Targets(classes=classes, masks=tuple(torch.rand(count, 32, 48, generator=g) > 0.5 for count in counts))


CROWDED = [(6, 1), (1, 6), (9, 0, 2), (0, 0, 0), (4, 4), (5, 9), (0, 7), (30, 1, 1)]


@pytest.mark.parametrize("counts", CROWDED)
def test_class_loss_is_the_weighted_mean_over_queries(counts: tuple[int, ...]):
    """As torch's own mean has it, for images with more objects than queries too, aux layers included."""
    last, first = random_output(len(counts), q=4), random_output(len(counts), q=4, seed=1)
    output, targets = last._replace(aux=((first.class_logits, first.mask_logits),)), objects(*counts)
    losses = SetCriterion(4, 4)(output, targets)
    for suffix, (logits, masks) in {"": last[:2], "_0": first[:2]}.items():
        target = torch.full((len(counts), 4), 4)
        for i, pair in enumerate(zip(targets.classes, targets.masks, strict=True)):
            queries, chosen = match(logits[i], masks[i], *pair)
            target[i, queries] = pair[0][chosen]
        weight = torch.tensor([1.0, 1, 1, 1, 0.1])
        expected = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight)
        assert losses["class" + suffix].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("counts", CROWDED)
def test_parts_with_more_objects_than_queries_add_up(counts: tuple[int, ...]):
    """Gradients too, in micro-batches of one and of two, whose counts are added as training adds them."""
    criterion, targets = SetCriterion(4, 4), objects(*counts)

    def gradients(size: int) -> list[torch.Tensor]:
        output = random_output(len(counts), q=4)
        leaves = [output.class_logits.requires_grad_(), output.mask_logits.requires_grad_()]
        bounds = [(i, min(i + size, len(counts))) for i in range(0, len(counts), size)]
        parts = [criterion.count(targets.part(*bound)) for bound in bounds]
        totals = {name: sum(part[name] for part in parts) for name in parts[0]}
        for a, b in bounds:
            criterion(MaskFormerOutput(leaves[0][a:b], leaves[1][a:b]), targets.part(a, b), totals)["loss"].backward()
        return [leaf.grad for leaf in leaves]

    whole = gradients(len(counts))
    for size in (1, 2):
        torch.testing.assert_close(gradients(size), whole)
    matched = sum(min(count, 4) for count in counts)
    assert {name: value.item() for name, value in criterion.count(targets).items()} == {
        "images": len(counts), "masks": sum(counts), "matched": matched,
    }  # fmt: skip


def test_masks_are_averaged_over_all_true_ones_as_officially():
    """Seven masks divide the losses of the five that a query is left for."""
    output, targets = random_output(2, q=4), objects(6, 1)
    losses = SetCriterion(4, 4)(output, targets)
    focal = dice = 0
    for i, (classes, masks) in enumerate(targets.segments()):
        queries, chosen = match(output.class_logits[i], output.mask_logits[i], classes, masks)
        logits = F.interpolate(output.mask_logits[i : i + 1, queries], size=(32, 48), mode="bilinear")[0].flatten(1)
        focal = focal + sigmoid_focal_loss(logits, masks[chosen].flatten(1).float(), 0.25, 2).mean(1).sum()
        p, t = logits.sigmoid(), masks[chosen].flatten(1).float()
        dice = dice + (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).sum()
    assert losses["mask"].item() == pytest.approx(focal.item() / 7, rel=1e-5)
    assert losses["dice"].item() == pytest.approx(dice.item() / 7, rel=1e-5)


def test_the_number_of_queries_comes_from_the_model():
    args = {"head_num_queries": 7, "head_layers": 1, "head_channels": 16, "head_heads": 2, "neck_out_channels": 16}
    model = fapn_zoo.create_model("maskformer_fpn", backbone="resnet10t", num_classes=2, **args)
    assert SetCriterion.of(model).count(objects(9, 3))["matched"] == 10
    with pytest.raises(ValueError, match="the output has 6 queries, the loss was made for 7"):
        SetCriterion.of(model)(random_output(1), objects(1))


def test_counting_makes_no_masks():
    targets = Targets(labels())
    targets.labels[0, :16] = 255
    SetCriterion(4, 6).count(targets)
    assert targets._segments is None
    made = targets.segments()
    assert [ids.tolist() for ids in targets.object_classes()] == [ids.tolist() for ids, _ in made]
    assert Targets(torch.full((2, 4, 4), 255)).object_classes()[1].tolist() == []


def test_a_cost_that_is_not_finite_names_its_term():
    output = random_output(n=1)
    output.mask_logits[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the mask cost of the matching is not finite"):
        SetCriterion(4, 6)(output, Targets(labels(1)))


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
    assert SetCriterion(4, 6)(random_output(2, h=1, w=1), both)["loss"].isfinite()
