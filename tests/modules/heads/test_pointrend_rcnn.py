"""PointRend's masks of boxes: by plain loops from the description alone; odd boxes, batches and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fapn_zoo
from fapn_zoo.modules.heads.outputs import InstanceOutput, Targets
from fapn_zoo.modules.heads.rcnn import PointRendRCNNHead, pointrend
from fapn_zoo.modules.heads.rcnn.head import OnObjects
from fapn_zoo.modules.heads.rcnn.pointrend import BLOCK, PointRendBranch
from fapn_zoo.modules.losses import RCNNLoss
from fapn_zoo.postprocess import Frame
from fapn_zoo.postprocess.decoders import decode
from fapn_zoo.weights import probe
from fapn_zoo.weights.folder import read_config

pytestmark = pytest.mark.unit

CHANNELS, CLASSES = 6, 3
BOXES = [
    (3.0, 2.0, 40.0, 31.0),
    (-20.0, -9.0, 15.0, 20.0),  # leaves the image at the upper left
    (30.0, 10.0, 70.0, 48.0),  # and at the lower right, whose corner is (64, 40)
    (11.2, 7.9, 11.3, 8.4),  # smaller than a pixel
]
SMALL = {"backbone": "resnet10t", "backbone_channels": (16, 24, 32, 48), "neck_out_channels": 32, "head_hidden": 32}
SMALL |= {"head_mask_hidden": 16, "head_mask_fc": 24, "head_point_channels": 16}
WIDE = {"head_score_threshold": 0.0, "head_pre_nms": 200, "head_proposals": 60, "head_max_detections": 20}


def branch(classes: int = CLASSES, **options: int) -> PointRendBranch:
    torch.manual_seed(0)
    small = {"hidden": 5, "fc": 12, "point_channels": 8}
    made = PointRendBranch(CHANNELS, classes, **(small | options)).eval()
    for name, parameter in made.named_parameters():  # new predictors give next to nothing, and biases are 0
        nn.init.normal_(parameter, std=0.5 if "bias" in name else 2 / parameter[0].numel() ** 0.5)
    return made


def fine_map(n: int = 1) -> Tensor:
    return torch.randn(n, CHANNELS, 10, 16, generator=torch.Generator().manual_seed(1))  # 40 x 64 pixels


def read(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """The value (C,) of an image (C, h, w) at (x, y) in 0..1, zero outside: the formula, corner by corner."""
    height, width = image.shape[1:]
    column, row = x * width - 0.5, y * height - 0.5
    left, top = int(np.floor(column)), int(np.floor(row))
    total = np.zeros(len(image))
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * image[:, i, j]
    return total


class Plain:
    """FACTS section 3, "PointRend instance", for one box in double precision."""

    def __init__(self, mask: PointRendBranch, fine: Tensor, box: tuple[float, ...]) -> None:
        self.w = {name: value.detach().double().numpy() for name, value in mask.named_parameters()}
        self.fine, self.box = fine.double().numpy(), np.float32(box).astype(float)
        self.coarse = self.make_coarse()

    def feature(self, x: float, y: float) -> np.ndarray:
        """The finest map at a place in the box: in pixels first, then as a share of (map size * 4)."""
        (x1, y1, x2, y2), (height, width) = self.box, self.fine.shape[1:]
        return read(self.fine, (x1 + x * (x2 - x1)) / (4 * width), (y1 + y * (y2 - y1)) / (4 * height))

    def layer(self, name: str, x: np.ndarray) -> np.ndarray:
        weight = self.w[f"{name}.weight"]
        return weight.reshape(len(weight), -1) @ x + self.w[f"{name}.bias"]

    def make_coarse(self) -> np.ndarray:
        grid = np.stack([[self.feature((j + 0.5) / 14, (i + 0.5) / 14) for j in range(14)] for i in range(14)])
        weight, bias = self.w["reduce.weight"], self.w["reduce.bias"]
        halved = np.zeros((len(bias), 7, 7))
        for i in range(7):
            for j in range(7):
                patch = grid[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]  # (2, 2, C)
                halved[:, i, j] = np.maximum(np.einsum("ocyx,yxc->o", weight, patch) + bias, 0)
        x = np.maximum(self.layer("fc1", halved.reshape(-1)), 0)
        x = np.maximum(self.layer("fc2", x), 0)
        return self.layer("prediction", x).reshape(-1, 7, 7)

    def point(self, x: float, y: float) -> np.ndarray:
        """The logits of all classes at a place in the box."""
        coarse = read(self.coarse, x, y)
        hidden = np.concatenate([self.feature(x, y), coarse])
        for n in range(3):
            hidden = np.concatenate([np.maximum(self.layer(f"points.layers.{n}", hidden), 0), coarse])
        return self.layer("points.predictor", hidden)

    def mask(self, category: int, steps: int, refined: int) -> np.ndarray:
        """`steps` doublings from 7 x 7; a step whose grid has at most `refined` points classifies all of them."""
        side = 7
        logits = np.array([[self.point((j + 0.5) / 7, (i + 0.5) / 7)[category] for j in range(7)] for i in range(7)])
        for _ in range(steps):
            side *= 2
            # bilinear, and at the border the nearest value
            old = np.pad(logits, 1, mode="edge")
            wide = np.zeros((side, side))
            for i in range(side):
                for j in range(side):
                    row, column = (i + 0.5) / 2 - 0.5 + 1, (j + 0.5) / 2 - 0.5 + 1
                    top, left = int(row), int(column)
                    a, b = row - top, column - left
                    wide[i, j] = (1 - a) * ((1 - b) * old[top, left] + b * old[top, left + 1]) + a * (
                        (1 - b) * old[top + 1, left] + b * old[top + 1, left + 1]
                    )
            logits = wide
            for place in np.argsort(np.abs(wide).ravel(), kind="stable")[:refined]:
                i, j = divmod(int(place), side)
                logits[i, j] = self.point((j + 0.5) / side, (i + 0.5) / side)[category]
        return logits


@torch.no_grad()
@pytest.mark.parametrize(("steps", "refined"), [(0, 784), (2, 20), (2, 784), (3, 200)])
def test_masks_by_plain_loops(steps: int, refined: int) -> None:
    mask, fine = branch(steps=steps, refined_points=refined), fine_map()
    classes = torch.tensor([2, 0, 1, 2])
    (found,) = mask(fine, [torch.tensor(BOXES)], [classes])
    coarse = mask.coarse(fine, [torch.tensor(BOXES)])
    assert found.shape == (4, 7 * 2**steps, 7 * 2**steps) and coarse.shape == (4, CLASSES, 7, 7)
    for m, box in enumerate(BOXES):
        plain = Plain(mask, fine[0], box)
        np.testing.assert_allclose(coarse[m].numpy(), plain.coarse, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[m].numpy(), plain.mask(classes[m], steps, refined), rtol=1e-3, atol=1e-3)


def test_the_official_settings() -> None:
    """A dense grid of 28 x 28 comes first, because 4 * 14^2 <= 784; three steps lead to 224."""
    with torch.device("meta"):
        head = PointRendRCNNHead(256, 2048, 80)
    assert (head.mask.first_side, head.mask.steps) == (28, 3)
    shapes = {name: tuple(p.shape) for name, p in head.mask.named_parameters() if "weight" in name}
    assert shapes == {
        "reduce.weight": (256, 256, 2, 2),
        "fc1.weight": (1024, 12544),
        "fc2.weight": (1024, 1024),
        "prediction.weight": (3920, 1024),
        "points.layers.0.weight": (256, 336, 1),
        "points.layers.1.weight": (256, 336, 1),
        "points.layers.2.weight": (256, 336, 1),
        "points.predictor.weight": (80, 336, 1),
    }
    assert branch(steps=1).first_side == 14 and branch(steps=1).steps == 0  # never finer than asked for


@torch.no_grad()
def test_many_boxes_and_images_do_not_mix() -> None:
    mask, fine, generator = branch(steps=3), fine_map(3), torch.Generator().manual_seed(2)
    counts = (BLOCK + 3, 0, 1)
    corners = [torch.rand(count, 2, generator=generator) * 30 for count in counts]
    boxes = [torch.cat([c, c + 4 + torch.rand(c.shape, generator=generator) * 20], 1) for c in corners]
    classes = [torch.randint(CLASSES, (count,), generator=generator) for count in counts]
    found = mask(fine, boxes, classes)
    assert [tuple(m.shape) for m in found] == [(count, 56, 56) for count in counts]
    for n, count in enumerate(counts):
        for m in range(count):
            (alone,) = mask(fine[n : n + 1], [boxes[n][m : m + 1]], [classes[n][m : m + 1]])
            assert torch.allclose(alone[0], found[n][m], atol=1e-4)


@torch.no_grad()
def test_no_point_is_classified_in_vain() -> None:
    """No step of the official settings classifies more than 784 points of a box, of one class each."""
    mask, seen = branch(), []
    mask.points.layers[0].register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape[::2])))
    mask.points.predictor.register_forward_hook(lambda *_: seen.append("all classes"))
    (found,) = mask(fine_map(), [torch.tensor(BOXES)], [torch.zeros(4, dtype=torch.int64)])
    assert found.shape == (4, 224, 224) and seen == [(4, 784)] * 4


def small(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = fapn_zoo.create_model("pointrend_rcnn_fapn", **(SMALL | WIDE | {"num_classes": 5} | options)).eval()
    head = model.head
    layers = (head.rpn.objectness, head.rpn.deltas, head.box.scores, head.box.deltas, head.mask.points.predictor)
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.3)  # a new head's answers are all alike
    return model


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_classes": 1}, {"in_chans": 5}])
def test_shapes_ranges_and_batches(options: dict) -> None:
    model = small(**options)
    x, sizes = torch.randn(2, options.get("in_chans", 3), 96, 128), torch.tensor([[90, 100], [17, 128]])
    out = model(x, sizes)
    assert isinstance(out, InstanceOutput)
    for n in range(2):
        assert out.mask_logits[n].shape == (len(out.boxes[n]), 224, 224) and len(out.boxes[n])
        assert out.mask_logits[n].isfinite().all()
        alone = model(x[n : n + 1], sizes[n : n + 1])
        assert torch.allclose(alone.boxes[0], out.boxes[n], atol=1e-3)
        assert (alone.mask_logits[0] - out.mask_logits[n]).abs().median() < 1e-3  # near-ties may be chosen otherwise


@torch.no_grad()
def test_no_detection_is_a_result() -> None:
    out = small(head_score_threshold=1.0)(torch.randn(2, 3, 64, 64))
    assert [tuple(m.shape) for m in out.mask_logits] == [(0, 224, 224)] * 2


def test_on_the_meta_device_there_are_as_many_as_may_be() -> None:
    with torch.device("meta"):
        out = fapn_zoo.create_model("pointrend_rcnn_fpn_resnet50_coco").eval()(torch.empty(2, 3, 96, 128))
    assert [tuple(m.shape) for m in out.mask_logits] == [(100, 224, 224)] * 2


def test_predictions_paste_all_cells() -> None:
    """Masks of 224 cells a side lie inside their boxes, also in half precision and of several images."""
    model = small()
    nn.init.normal_(model.head.box.scores.weight, std=3.0)
    model.head.box.scores.bias.data[-1] = -1000.0  # nothing is background
    nn.init.constant_(model.head.mask.points.predictor.bias, 50.0)  # all inside
    checked = 0
    images = [(np.random.default_rng(n).random((96, 128, 3)) * 255).astype(np.uint8) for n in range(2)]
    for amp in ("no", "bf16"):
        for result in model.predict(images, batch_size=2, amp=amp):
            assert len(result.segments)
            for mask, (x1, y1, x2, y2), segment in zip(result.masks, result.boxes, result.segments, strict=True):
                rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
                if x2 - x1 > 2 and y2 - y1 > 2:
                    checked += 1
                    assert abs(columns[0] - x1) <= 1 and abs(columns[-1] + 1 - x2) <= 1
                    assert abs(rows[0] - y1) <= 1 and abs(rows[-1] + 1 - y2) <= 1
                assert segment["area"] == mask.sum()
    assert checked > 4 and all(r.segments for r in model.predict(images, task="detection"))


def test_stored_outputs_are_those_before_the_choice(tmp_path: Path) -> None:
    model = small(head_score_threshold=1.0)
    model.save(tmp_path / "m", license="apache-2.0")
    stored = read_config(tmp_path / "m")["probe"]
    assert probe.check(model, stored) == 0
    for name, parameter in model.head.mask.named_parameters():
        before = parameter.detach().clone()
        parameter.data += 0.5
        with pytest.raises(ValueError, match="no longer computes its stored outputs"):
            probe.check(model, stored)
        parameter.data = before
        assert probe.check(model, stored) == 0, name


def learning(counts: tuple[int, ...] = (3, 0, 1)) -> tuple[PointRendRCNNHead, list[Tensor], OnObjects, Targets]:
    """A head, a pyramid of 3 images, regions on objects of known deltas, and two objects in each image."""
    torch.manual_seed(0)
    options = {"hidden": 8, "mask_hidden": 5, "mask_fc": 12, "point_channels": 8, "train_points": 40}
    head = PointRendRCNNHead(CHANNELS, 8, CLASSES, **options)
    head.mask.load_state_dict(branch().state_dict())
    generator = torch.Generator().manual_seed(3)
    regions = tuple(torch.tensor(BOXES)[:count] for count in counts)
    deltas = tuple(torch.randn(count, 4, generator=generator, requires_grad=True) for count in counts)
    classes = tuple(torch.arange(count) % CLASSES for count in counts)
    objects = tuple(torch.arange(count) % 2 for count in counts)
    masks = torch.zeros(2, 40, 64, dtype=torch.bool)
    masks[0, 5:25, 8:30], masks[1, 20:, 31:] = True, True
    boxes = torch.tensor([[8.0, 5, 30, 25], [31, 20, 64, 40]])
    truth = Targets(None, (torch.tensor([0, 1]),) * 3, (masks,) * 3, (boxes,) * 3, seeds=torch.tensor([4, 5, 6]))
    return head, [fine_map(3)] * 5, OnObjects(regions, deltas, classes, objects), truth


def test_what_it_is_trained_on_point_by_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the true class in predicted boxes, and the truth there, by the plain rules."""
    drawn, real = [], pointrend.training_points
    monkeypatch.setattr(pointrend, "training_points", lambda *given: drawn.append(real(*given)) or drawn[-1])
    head, pyramid, found, truth = learning()
    out = head.learn_masks(pyramid, found, truth)
    assert out.keys() == {"mask", "point"}
    assert [tuple(t.shape) for t in out["mask"].found] == [(3, 7, 7), (0, 7, 7), (1, 7, 7)]
    assert [tuple(t.shape) for t in out["point"].found] == [(3, 40), (0, 40), (1, 40)]
    points = drawn[0].split([3, 0, 1])
    for n, count in ((0, 3), (2, 1)):
        for m in range(count):
            (x1, y1, x2, y2), (dx, dy, dw, dh) = found.boxes[n][m].tolist(), found.deltas[n][m].tolist()
            w, h = x2 - x1, y2 - y1
            x, y = x1 + w / 2 + dx / 10 * w, y1 + h / 2 + dy / 10 * h
            w, h = w * np.exp(dw / 5), h * np.exp(dh / 5)
            box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [64, 40, 64, 40])
            plain, category = Plain(head.mask, pyramid[0][n], tuple(box)), found.classes[n][m]
            got = out["mask"].found[n][m].detach().numpy()
            np.testing.assert_allclose(got, plain.coarse[category], rtol=1e-3, atol=1e-3)
            mask = truth.masks[n][found.objects[n][m]][None].double().numpy()
            for k, (px, py) in enumerate(points[n][m].tolist()):
                logit, true = out["point"].found[n][m, k].item(), out["point"].true[n][m, k].item()
                assert logit == pytest.approx(plain.point(px, py)[category], rel=1e-3, abs=2e-3)
                place = (box[0] + px * (box[2] - box[0])) / 64, (box[1] + py * (box[3] - box[1])) / 40
                assert true == pytest.approx(read(mask, *place)[0], abs=1e-4)
    inside = out["point"].true[0]
    assert 0 < inside.mean() < 1 and set(out["mask"].true[0].unique().tolist()) <= {0.0, 1.0}


def test_seeds_decide_the_points_and_go_with_their_images() -> None:
    head, pyramid, found, truth = learning()
    first, again = (head.learn_masks(pyramid, found, truth)["point"] for _ in range(2))
    assert all(map(torch.equal, first.found, again.found))
    last = OnObjects(*(field[2:] for field in found))
    alone = head.learn_masks([level[2:] for level in pyramid], last, truth.part(2, 3))["point"]
    torch.testing.assert_close(alone.found[0], first.found[2], rtol=1e-4, atol=1e-4)
    truth.seeds = truth.seeds + 1
    other = head.learn_masks(pyramid, found, truth)["point"]
    assert not torch.equal(other.found[0], first.found[0])


@pytest.mark.parametrize("counts", [(3, 0, 1), (0, 0, 0)])
def test_gradients_reach_the_masks_and_not_the_boxes(counts: tuple[int, ...]) -> None:
    head, pyramid, found, truth = learning(counts)
    out = head.learn_masks(pyramid, found, truth)
    sum(found.square().sum() for compared in out.values() for found in compared.found).backward()
    assert all(p.grad is not None for p in head.mask.parameters())
    assert all(deltas.grad is None for deltas in found.deltas)
    if any(counts):
        assert all(p.grad.abs().sum() > 0 for p in head.mask.parameters())
    truth.masks = ()
    with pytest.raises(ValueError, match="boxes but no masks"):
        head.learn_masks(pyramid, found, truth)


def test_it_learns_one_image() -> None:
    """A disc in noise: after some steps its detection has its mask."""
    torch.manual_seed(0)
    options = SMALL | {
        "num_classes": 1,
        "head_train_points": 60,
        "head_region_samples": 32,
        "backbone_norm": "frozen_bn",
    }
    options |= {"head_train_proposals": 60, "head_proposals": 60, "head_anchor_sides": (16, 32, 48, 64, 96)}
    model = fapn_zoo.create_model("pointrend_rcnn_fpn", **options)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    disc = (rows - 30) ** 2 + (columns - 44) ** 2 < 20**2
    x = torch.randn(1, 3, 64, 96) * 0.3 + disc * 2.0
    truth = Targets(None, (torch.tensor([0]),), (disc[None],), (torch.tensor([[25.0, 11, 64, 50]]),))
    loss, optimizer = RCNNLoss.of(model), torch.optim.AdamW(model.parameters(), lr=2e-3)
    terms = []
    for step in range(60):
        truth.seeds = torch.tensor([step])
        terms.append(loss(model(x, None, truth), truth))
        optimizer.zero_grad()
        terms[-1]["loss"].backward()
        optimizer.step()
    assert terms[-1].keys() == {"loss", "rpn_class", "rpn_box", "class", "box", "mask", "point"}
    for name in ("loss", "mask", "point"):
        assert terms[-1][name] < 0.5 * terms[0][name], name
    with torch.no_grad():
        out = model.eval()(x)
    frame = Frame((64, 96), (64, 96))
    mask = decode(out, "instance", frame, model.data, score_threshold=0.1).masks[0]
    assert (mask & disc).sum() / (mask | disc).sum() > 0.8


@pytest.mark.parametrize(
    ("options", "words"), [({"steps": -1}, "steps=-1, point_layers=3"), ({"refined_points": 0}, "refined_points=0,")]
)
def test_bad_arguments_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PointRendRCNNHead(8, 8, 3, **options)
