"""Dice, OHEM and Lovasz-Softmax against naive formulas; the same result however a batch is spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import fapn_zoo
from fapn_zoo.modules.heads.outputs import SemanticOutput, Targets
from fapn_zoo.modules.losses import PerPixelLoss, PointRendLoss, RCNNLoss
from fapn_zoo.modules.losses.per_pixel import KINDS, upsample_to

pytestmark = pytest.mark.unit
WEIGHTS = (1.0, 2.0, 3.0, 0.5)


def truth() -> Tensor:
    """Three images of four classes: one with a void corner, one of a single class, one of which nothing is known."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 4, (3, 4, 6))).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[0, :7] = 255
    labels[1], labels[2] = 2, 255
    return labels


def probabilities(logits: Tensor, labels: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every image with labelled pixels (P, K) and (P,)."""
    p = upsample_to(logits, *labels.shape[-2:], 4).softmax(1).double().numpy()
    rows = [(p[i][:, (y != 255).numpy()].T, y[y != 255].numpy()) for i, y in enumerate(labels)]
    return [row for row in rows if len(row[1])]


def naive_dice(p: np.ndarray, y: np.ndarray) -> list[float]:
    return [1 - (2 * p[y == k, k].sum() + 1) / (p[:, k].sum() + (y == k).sum() + 1) for k in np.unique(y)]


def naive_ohem(p: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    own = p[np.arange(len(y)), y]
    hard = own <= max(0.7, np.sort(own)[max(len(y) // 16, 1) - 1])
    return (-np.log(own) * weights[y])[hard].sum() / weights[y][hard].sum()


def naive_lovasz(p: np.ndarray, y: np.ndarray) -> float:
    """The definition: a sum over prefixes of the sorted errors of what the Jaccard loss grows by."""
    found = []
    for k in np.unique(y):
        true = y == k
        errors = np.where(true, 1 - p[:, k], p[:, k])
        order = np.argsort(-errors, kind="stable")

        def loss(wrong: set[int], true: np.ndarray = true) -> float:
            missed = sum(true[i] for i in wrong)
            return len(wrong) / (true.sum() + len(wrong) - missed)

        steps = [loss({*order[: i + 1]}) - (loss({*order[:i]}) if i else 0) for i in range(len(order))]
        found.append(float(np.dot(errors[order], steps)))
    return float(np.mean(found))


@pytest.mark.parametrize("confident", [1.0, 8.0])
def test_against_naive_formulas(confident: float) -> None:
    labels = truth()
    logits = confident * torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    if confident > 1:  # nearly all right: then the hardest sixteenth counts
        near = labels[:, ::4, ::4]
        logits = logits + 30 * torch.nn.functional.one_hot(near.where(near < 4, 0), 4).permute(0, 3, 1, 2)
    images = probabilities(logits, labels)
    output, targets = SemanticOutput(logits), Targets(labels)
    found = {kind: PerPixelLoss(kind=kind)(output, targets) for kind in KINDS}
    dice = [value for image in images for value in naive_dice(*image)]
    assert found["ce+dice"]["dice"].item() == pytest.approx(np.mean(dice), rel=1e-4)
    assert found["ce+dice"]["ce"] == found["ce"]["loss"]
    assert found["ce+dice"]["loss"].item() == pytest.approx((found["ce"]["loss"] + found["ce+dice"]["dice"]).item())
    assert found["lovasz"]["loss"].item() == pytest.approx(np.mean([naive_lovasz(*i) for i in images]), rel=1e-4)
    for weights in ((), WEIGHTS):
        loss = PerPixelLoss(class_weights=weights, kind="ohem")(output, targets)["loss"].item()
        expected = [naive_ohem(*image, np.array(weights or (1.0,) * 4)) for image in images]
        assert loss == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_spreading_changes_no_gradient(kind: str) -> None:
    labels, loss = truth(), PerPixelLoss(class_weights=() if kind == "lovasz" else WEIGHTS, kind=kind)
    logits = torch.randn(3, 4, 4, 6, requires_grad=True)
    aux = (torch.randn(3, 4, 4, 6),)
    loss(SemanticOutput(logits, aux), Targets(labels))["loss"].backward()
    whole, logits.grad = logits.grad, None
    parts = [Targets(labels[i : i + 1]) for i in range(3)]
    counts = [loss.count(part) for part in parts]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    for i, part in enumerate(parts):  # the last one without a labelled pixel
        loss(SemanticOutput(logits[i : i + 1], (aux[0][i : i + 1],)), part, totals)["loss"].backward()
    assert torch.allclose(whole, logits.grad, atol=1e-7) and whole.abs().max() > 0
    assert not whole[2].any() and not whole[0, :, 0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_labelled_and_one_pixel(kind: str) -> None:
    for labels in (torch.full((2, 4, 4), 255), torch.full((2, 4, 4), 255).index_fill_(0, torch.tensor(1), 3)):
        logits = torch.zeros(2, 4, 1, 1, requires_grad=True)
        loss = PerPixelLoss(kind=kind)(SemanticOutput(logits), Targets(labels))["loss"]
        loss.backward()
        assert math.isfinite(loss.item()) and logits.grad.isfinite().all()
        assert (loss.item() == 0) == bool((labels == 255).all())


def test_what_is_refused() -> None:
    model = fapn_zoo.create_model("pointrend_fpn", backbone="test_efficientnet", num_classes=2, neck_out_channels=16)
    assert PointRendLoss.of(model, loss="ohem").kind == "ohem"
    with pytest.raises(ValueError, match="loss='focal'; expected one of ce, ce\\+dice, ohem, lovasz"):
        PerPixelLoss.of(model, loss="focal")
    with pytest.raises(ValueError, match="loss='lovasz'; knows no class_weights"):
        PerPixelLoss.of(model, class_weights=(1.0, 2.0), loss="lovasz")
    with pytest.raises(ValueError, match="loss is for per-pixel heads; this loss balances regions"):
        RCNNLoss.of(model, loss="ohem")
