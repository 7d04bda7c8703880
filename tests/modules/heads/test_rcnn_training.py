"""What two-stage heads are trained on: matching, drawing by seed, true masks; and that a tiny one learns in seconds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

import fapn_zoo
from fapn_zoo.metrics import AveragePrecision
from fapn_zoo.modules.heads.outputs import Compared, RCNNOutput, Targets
from fapn_zoo.modules.heads.rcnn import sampling
from fapn_zoo.modules.layers import boxes as layer
from fapn_zoo.modules.losses import RCNNLoss

pytestmark = pytest.mark.unit

NARROW = {"neck_out_channels": 32, "head_hidden": 64, "head_anchor_sides": (8, 16, 32, 64, 128)}
NARROW |= {"head_region_samples": 32, "head_train_pre_nms": 200, "head_train_proposals": 100}
NARROW |= {"head_pre_nms": 100, "head_proposals": 50}
MASKS = {"head_mask_hidden": 16, "head_mask_convs": 2}


def small(head: str = "mask_rcnn", backbone: str = "test_efficientnet", **options: object) -> nn.Module:
    torch.manual_seed(0)
    options = NARROW | (MASKS if head == "mask_rcnn" else {}) | {"num_classes": 2} | options
    return fapn_zoo.create_model(f"{head}_fpn", backbone=backbone, **options).train()


def some_boxes(count: int, seed: int = 0, side: float = 64) -> Tensor:
    low = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * side * 0.7
    sides = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed + 1)) * side * 0.25 + 2
    return torch.cat([low, low + sides], dim=1)


def shapes(count: int, channels: int = 3, side: int = 64) -> tuple[Tensor, Targets]:
    """Noisy pictures of two dark squares or bright discs each."""
    rng, grid = np.random.default_rng(0), np.arange(side) + 0.5
    x = rng.normal(0, 0.2, (count, channels, side, side)).astype(np.float32)
    classes, masks = [], []
    for image in x:
        taken, found, kinds = np.zeros((side, side), bool), [], []
        while len(found) < 2:
            radius, kind = rng.uniform(5, 12), int(rng.integers(2))
            across, down = (abs(grid - c) for c in rng.uniform(radius, side - radius, 2))
            square = np.maximum(across, down[:, None]) < radius
            mask = across**2 + down[:, None] ** 2 < radius**2 if kind else square
            if not (mask & taken).any():
                taken |= mask
                image[:, mask] += 1 if kind else -1
                found.append(mask)
                kinds.append(kind)
        classes.append(torch.tensor(kinds))
        masks.append(torch.from_numpy(np.stack(found)))
    return torch.from_numpy(x), Targets(classes=tuple(classes), masks=tuple(masks), boxes=tuple(map(around, masks)))


def around(masks: Tensor) -> Tensor:
    places = [mask.nonzero() for mask in masks]
    return torch.stack([torch.cat([p.amin(0).flip(0), p.amax(0).flip(0) + 1]) for p in places]).float()


@pytest.mark.parametrize("pairs", [1, 50, 2**21])
def test_overlaps_in_pieces_are_those_of_one_table(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    monkeypatch.setattr(sampling, "PAIRS", pairs)
    boxes, truth = some_boxes(70), some_boxes(5, seed=7)
    table = box_iou(truth, boxes)
    overlap, objects = sampling.nearest_objects(boxes, truth)
    assert torch.equal(overlap, table.max(0).values) and torch.equal(objects, table.max(0).indices)
    nearest = sampling.nearest_boxes(boxes, truth)
    assert nearest.nonzero().flatten().tolist() == sorted(set(table.argmax(1).tolist()))


def test_equal_overlaps_are_all_nearest_and_none_is_no_overlap() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [40, 40, 48, 48]])
    assert sampling.nearest_boxes(boxes, torch.tensor([[4.0, 0, 12, 8]])).tolist() == [True, True, False]
    assert not sampling.nearest_boxes(boxes, torch.tensor([[60.0, 60, 62, 62]])).any()
    assert not sampling.nearest_boxes(boxes, torch.zeros(0, 4)).any()


@pytest.mark.parametrize(("positives", "negatives", "counts"), [(40, 60, (8, 24)), (3, 60, (3, 29)), (40, 5, (8, 5))])
def test_as_many_are_drawn_as_there_may_be(positives: int, negatives: int, counts: tuple[int, int]) -> None:
    is_positive = torch.arange(100) < positives
    is_negative = torch.arange(100) >= 100 - negatives
    bits = sampling.drawn_bits(torch.tensor([5]), 100)[0]
    drawn = sampling.draw(is_positive, is_negative, bits, 32, 0.25)
    assert tuple(map(len, drawn)) == counts
    assert is_positive[drawn[0]].all() and is_negative[drawn[1]].all()
    assert all(len(rows.unique()) == len(rows) for rows in drawn)
    others = sampling.draw(is_positive, is_negative, sampling.drawn_bits(torch.tensor([6]), 100)[0], 32, 0.25)
    assert counts[0] < 8 or set(others[0].tolist()) != set(drawn[0].tolist())


def test_a_region_s_lot_is_not_that_of_its_rank() -> None:
    """Rounding swaps proposals of nearly equal scores."""
    proposals, truth, seed = some_boxes(80), some_boxes(4, seed=3), torch.tensor(9)
    numbers = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:80]
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    found = sampling.draw_regions(proposals, numbers, 500, truth, seed, 16)
    again = sampling.draw_regions(proposals[order], numbers[order], 500, truth, seed, 16)
    assert len(found.boxes) == 16 and 0 < len(found.objects) <= 4
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("pixels", [1, 2**24])
def test_true_masks_show_what_covers_half_of_a_cell(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    monkeypatch.setattr(layer, "PIXELS", pixels)
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, 8:24, 16:40] = True
    masks[2, 30:, :] = True
    boxes = torch.tensor([[16.0, 8, 40, 24], [0, 16, 64, 44], [0, 0, 48, 16], [10, 10, 12, 12]])
    found = layer.masks_in_boxes(masks, boxes, torch.tensor([0, 2, 0, 1]), 28)
    assert found[0].all() and not found[3].any()
    assert not found[1, :14].any() and found[1, 14:].all()
    rows, columns = torch.arange(28) >= 14, (torch.arange(28) + 0.5) * 48 / 28
    inside = (columns > 16) & (columns < 40)
    assert (found[2] != (rows[:, None] & inside)).sum() <= 28 * 2 + 28  # cells of the edge alone
    assert layer.masks_in_boxes(masks[:0], boxes[:0], torch.zeros(0, dtype=torch.int64), 28).shape == (0, 28, 28)


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_images_draw_alike_in_every_batch(head: str) -> None:
    model = small(head, backbone_norm="frozen_bn")
    x, targets = shapes(3)
    targets.seeds = torch.tensor([3, 1, 4])
    together, sizes = model(x, None, targets), torch.tensor([[64, 64]])
    for n in range(3):
        alone, part = model(x[n : n + 1], sizes, targets.part(n, n + 1)), together.image(n)
        assert type(alone) is type(part) is RCNNOutput and alone.masks.keys() == part.masks.keys()
        for a, b in zip((*alone[:4], *alone.masks.values()), (*part[:4], *part.masks.values()), strict=True):
            for ours, theirs in zip((*a.found, *a.true), (*b.found, *b.true), strict=True):
                assert torch.allclose(ours, theirs, atol=1e-3)
    targets.seeds = -targets.seeds
    others = model(x, None, targets)
    assert not torch.equal(others.rpn_class.found[0], together.rpn_class.found[0])


def test_predictions_are_the_same_whatever_the_mode() -> None:
    model = small(backbone_norm="frozen_bn")
    x, targets = shapes(1)
    training, evaluating = model(x), model.eval()(x)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(training[:4], evaluating[:4], strict=True))
    assert isinstance(model(x, None, targets), RCNNOutput)  # a frozen head has its loss


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (300, 1)])
@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_no_objects_and_many(head: str, counts: tuple[int, int]) -> None:
    """Losses are finite and every parameter has a gradient, as processes that share a model need it."""
    model = small(head)
    boxes = tuple(some_boxes(count) for count in counts)
    masks = tuple(torch.rand(count, 64, 64) < 0.5 for count in counts)
    targets = Targets(classes=tuple(torch.arange(c) % 2 for c in counts), boxes=boxes, masks=masks)
    losses = RCNNLoss.of(model)(model(torch.randn(2, 3, 64, 64), None, targets), targets)
    losses["loss"].backward()
    assert all(value.isfinite() for value in losses.values()) and losses["class"] > 0 and losses["rpn_class"] > 0
    on_objects = [name for name in ("rpn_box", "box", "mask") if name in losses]
    assert all((losses[name] > 0) == any(counts) for name in on_objects)
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("box", [(5, 5, 6, 6), (-500, -500, 900, 900), (0, 0, 64, 64), (5, 5, 5.01, 60)])
def test_objects_of_every_size_are_trained_on(box: tuple[float, ...]) -> None:
    model, boxes = small("faster_rcnn"), torch.tensor([box], dtype=torch.float32)
    targets = Targets(classes=(torch.tensor([1]),), boxes=(boxes,))
    out = model(torch.randn(1, 3, 64, 64), None, targets)
    losses = RCNNLoss.of(model)(out, targets)
    assert len(out.rpn_box.true[0]) and len(out.box.true[0]) and all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("box", [(5, 5, 5, 60), (50, 50, 9, 9), (math.nan, 5, 60, 60), (0, 0, math.inf, 60)])
def test_a_box_that_is_none_is_refused(box: tuple[float, ...]) -> None:
    boxes = torch.tensor([[1, 1, 9, 9], box], dtype=torch.float32)
    targets = Targets(classes=(torch.zeros(2, dtype=torch.int64),), boxes=(boxes,))
    with pytest.raises(ValueError, match="image 0 of the batch has a true box"):
        small("faster_rcnn")(torch.randn(1, 3, 64, 64), None, targets)


def test_what_lacks_is_named() -> None:
    model, (x, targets) = small(), shapes(2)
    with pytest.raises(ValueError, match="boxes of 0 images, the batch has 2"):
        model(x, None, Targets(torch.zeros(2, 64, 64, dtype=torch.int64)))
    with pytest.raises(ValueError, match="boxes but no masks"):
        model(x, None, Targets(classes=targets.classes, boxes=targets.boxes))
    with pytest.raises(ValueError, match="region proposals are not finite"):
        model(x * math.nan, None, targets)
    with pytest.raises(ValueError, match="class_weights is for per-pixel heads"):
        RCNNLoss.of(model, class_weights=(1.0, 2.0))


def test_means_are_over_images() -> None:
    """Two images, of which one has a third of the other's regions and no object."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 3, generator=g), torch.randn(3, 3, generator=g)
    ids = torch.randint(3, (9,), generator=g), torch.full((3,), 2)
    pair = torch.randn(4, 4, generator=g), torch.zeros(0, 4)
    truth = torch.randn(4, 4, generator=g), torch.zeros(0, 4)
    cells = torch.randn(4, 2, 2, generator=g), torch.zeros(0, 2, 2)
    masks = Compared(cells, (torch.ones(4, 2, 2), torch.zeros(0, 2, 2)))
    anchors = Compared((torch.randn(5, generator=g), torch.randn(2, generator=g)), (torch.ones(5), torch.zeros(2)))
    box = Compared(pair, truth)
    out = RCNNOutput(anchors, box, Compared(logits, ids), box, {"mask": masks})
    losses = RCNNLoss(16)(out, Targets(classes=(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))))
    binary, errors = nn.functional.binary_cross_entropy_with_logits, (pair[0] - truth[0]).abs().sum()
    cross = [nn.functional.cross_entropy(*image) for image in zip(logits, ids, strict=True)]
    expected = {"rpn_class": binary(torch.cat(anchors.found), torch.cat(anchors.true), reduction="sum") / 32}
    expected |= {"rpn_box": errors / 32, "class": sum(cross) / 2, "box": errors / 9 / 2}
    expected["mask"] = binary(masks.found[0], masks.true[0])
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        {k: v.item() for k, v in ({"loss": sum(expected.values())} | expected).items()}
    )


@pytest.mark.parametrize(
    ("head", "backbone", "options", "steps"),
    [
        ("faster_rcnn", "mobilenetv4_s", {"num_classes": 1, "in_chans": 5, "neck_out_channels": 64}, 80),
        ("mask_rcnn", "test_efficientnet", {}, 70),
    ],
)
def test_it_learns(head: str, backbone: str, options: dict[str, object], steps: int) -> None:
    """Eight pictures by heart: nearly every box is found, and little else."""
    model = small(head, backbone, **options)
    x, targets = shapes(8, options.get("in_chans", 3))
    if model.num_classes == 1:
        targets.classes = tuple(torch.zeros_like(classes) for classes in targets.classes)
    loss, optimizer = RCNNLoss.of(model), torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        targets.seeds = torch.arange(8) + 8 * step
        optimizer.zero_grad()
        loss(model(x, None, targets), targets)["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    metric = AveragePrecision(model.num_classes, ["boxes"])
    with torch.no_grad():
        out = model.eval()(x)
    for n in range(8):
        found = {"classes": out.classes[n], "scores": out.scores[n], "boxes": out.boxes[n]}
        metric.update(found, {"classes": targets.classes[n], "boxes": targets.boxes[n]}, n)
    assert metric.compute()["boxes"]["ap50"] > 0.7
