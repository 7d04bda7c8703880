"""PointRend's loss against the formula, its counts, labels of points, and where nothing is labelled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fapn_zoo
from fapn_zoo.modules.heads.outputs import PointRendOutput, Targets
from fapn_zoo.modules.losses import PointRendLoss
from fapn_zoo.modules.losses.per_pixel import labels_at

pytestmark = pytest.mark.unit


def output(n: int = 3, classes: int = 4, points: int = 50) -> PointRendOutput:
    g = torch.Generator().manual_seed(0)
    at = torch.rand(n, points, 2, generator=g)
    logits = torch.randn(n, classes, 8, 12, generator=g), torch.randn(n, classes, points, generator=g)
    return PointRendOutput(logits[0], at, logits[1])


def labels(n: int = 3) -> Tensor:
    return torch.randint(0, 4, (n, 32, 48), generator=torch.Generator().manual_seed(1))


def test_the_label_of_a_point_is_that_of_its_pixel() -> None:
    y, points = labels(2), torch.rand(2, 200, 2)
    found = labels_at(y, points, (32, 48), 255)
    nearest = F.grid_sample(y[:, None].float(), (2 * points - 1)[:, :, None], mode="nearest", align_corners=False)
    assert torch.equal(found, nearest.squeeze(3).squeeze(1).long())


def test_points_beyond_the_image_have_no_label() -> None:
    y = labels(1)[:, :29, :45]  # the map of stride 4 covers 32 x 48
    points = torch.tensor([[[44.5 / 48, 28.5 / 32], [45.5 / 48, 0.5], [0.5, 29.5 / 32], [0.0, 0.0]]])
    assert labels_at(y, points, (32, 48), 255).tolist() == [[y[0, 28, 44].item(), 255, 255, y[0, 0, 0].item()]]


def test_without_void_it_is_the_official_mean() -> None:
    out, y = output(), labels()
    losses = PointRendLoss()(out, Targets(y))
    up = F.interpolate(out.logits, scale_factor=4, mode="bilinear", align_corners=False)
    assert losses["coarse"].item() == pytest.approx(F.cross_entropy(up, y).item(), rel=1e-5)
    expected = F.cross_entropy(out.point_logits, labels_at(y, out.points, (32, 48), 255))
    assert losses["point"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((losses["coarse"] + losses["point"]).item())


def test_of_one_image_it_is_the_official_mean_with_void_too() -> None:
    out, y = output(1), labels(1)
    y[:, :10] = 255
    expected = F.cross_entropy(out.point_logits, labels_at(y, out.points, (32, 48), 255), ignore_index=255)
    assert PointRendLoss()(out, Targets(y))["point"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_images_weigh_alike_and_void_ones_nothing() -> None:
    out, y = output(), labels()
    y[0, :20], y[1] = 255, 255
    loss = PointRendLoss()
    assert {name: value.item() for name, value in loss.count(Targets(y)).items()} == {
        "pixels": (y != 255).sum().item(),
        "images": 2,
    }
    alone = [loss(out.image(n), Targets(y[n : n + 1]))["point"].item() for n in range(3)]
    assert alone[1] == 0
    assert loss(out, Targets(y))["point"].item() == pytest.approx((alone[0] + alone[2]) / 2, rel=1e-5)


@pytest.mark.parametrize("weights", [(), (1.0, 2.0, 3.0, 0.5)])
def test_parts_of_a_batch_add_up(weights: tuple[float, ...]) -> None:
    out, y, loss = output(), labels(), PointRendLoss(class_weights=weights)
    y[0, :20], y[1] = 255, 255
    targets = Targets(y)
    whole, totals = loss(out, targets), loss.count(targets)
    counts = [loss.count(targets.part(n, n + 1)) for n in range(3)]
    assert all(sum(count[name] for count in counts) == totals[name] for name in totals)
    parts = [loss(out.image(n), targets.part(n, n + 1), totals) for n in range(3)]
    for name, value in whole.items():
        assert sum(part[name] for part in parts).item() == pytest.approx(value.item(), rel=1e-5)


def test_class_weights_are_those_of_cross_entropy() -> None:
    out, y, weights = output(1), labels(1), (1.0, 2.0, 3.0, 0.5)
    y[:, :10] = 255
    expected = F.cross_entropy(
        out.point_logits, labels_at(y, out.points, (32, 48), 255), torch.tensor(weights), ignore_index=255
    )
    losses = PointRendLoss(class_weights=weights)(out, Targets(y))
    assert losses["point"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_labelled_is_no_loss_and_no_gradient() -> None:
    out = PointRendOutput(*(tensor.requires_grad_() for tensor in output()[:3]))
    losses = PointRendLoss()(out, Targets(torch.full((3, 32, 48), 255)))
    losses["loss"].backward()
    assert all(value.item() == 0 for value in losses.values())
    assert out.logits.grad.abs().max() == 0 and out.point_logits.grad.abs().max() == 0


def test_it_is_made_for_a_model() -> None:
    model = fapn_zoo.create_model("pointrend_fpn", backbone="resnet10t", num_classes=3)
    loss = PointRendLoss.of(model, class_weights=(1.0, 2.0, 3.0))
    assert loss.ignore_index == 255 and loss.class_weights.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="class_weights has 2 values"):
        PointRendLoss.of(model, class_weights=(1.0, 2.0))
