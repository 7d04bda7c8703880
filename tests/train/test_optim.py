"""Parameter groups, schedule, running mean of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fapn_zoo.modules.necks import FaPN
from fapn_zoo.train.optim import Ema, build_optimizer, learning_rate_factor, param_groups, set_learning_rate
from fapn_zoo.train.settings import Settings

pytestmark = pytest.mark.unit


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.backbone.relative_position_bias_table = nn.Parameter(torch.ones(2, 2))
        self.head = nn.Linear(4, 2)
        self.head_norm = nn.LayerNorm(4)
        self.query_embed = nn.Embedding(5, 4)
        self.gamma = nn.Parameter(torch.ones(4))
        self.twin = self.head
        self.frozen = nn.Linear(1, 1).requires_grad_(False)


def by_name(model: nn.Module, **options) -> dict[str, tuple[float, float]]:
    groups = param_groups(model, lr=1.0, weight_decay=0.1, **options)
    place = {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(place)  # nobody twice
    return {n: place[p] for n, p in model.named_parameters() if p in place}


def test_groups_follow_the_official_recipe():
    found = by_name(Net(), backbone_lr_mult=0.5)
    assert found == {
        "gamma": (1.0, 0.0),
        "backbone.relative_position_bias_table": (0.5, 0.0),
        "backbone.0.weight": (0.5, 0.1),
        "backbone.0.bias": (0.5, 0.1),
        "backbone.1.weight": (0.5, 0.0),
        "backbone.1.bias": (0.5, 0.0),
        "head.weight": (1.0, 0.1),
        "head.bias": (1.0, 0.1),
        "head_norm.weight": (1.0, 0.0),
        "head_norm.bias": (1.0, 0.0),
        "query_embed.weight": (1.0, 0.0),
    }
    assert by_name(Net(), decay_bias=False)["head.bias"] == (1.0, 0.0)
    with pytest.raises(ValueError, match="no trainable parameter"):
        param_groups(Net().requires_grad_(False), 1.0, 0.1)


def test_offsets_learn_at_a_rate_of_their_own():
    found = by_name(FaPN([4, 4], 8), offset_lr_mult=0.1)
    slow = {name for name, (rate, _) in found.items() if rate == 0.1}
    assert slow == {"align.0.dcn.offset_mask.weight", "align.0.dcn.offset_mask.bias"}
    assert {rate for rate, _ in by_name(FaPN([4, 4], 8)).values()} == {1.0}


@pytest.mark.parametrize("name", ["maskformer_fapn", "perpixel_fapn"])
def test_real_models_decay_no_norm_and_no_query(name: str):
    from fapn_zoo import create_model

    model = create_model(name, backbone="test_efficientnet", num_classes=3, neck_out_channels=32)
    groups = param_groups(model, 1.0, 0.1, 0.1)
    decayed = {p for g in groups for p in g["params"] if g["weight_decay"]}
    for n, p in model.named_parameters():
        assert (p in decayed) == (not ("norm" in n or "bn" in n or "query_embed" in n)), n
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("backbone", ["test_efficientnet", "resnet10t", "swin_t", "vit_tiny_patch16_224"])
def test_layers_decay_towards_the_image(backbone: str):
    """Against timm's own groups of the whole network."""
    import timm
    from timm.optim import param_groups_layer_decay

    from fapn_zoo import create_model
    from fapn_zoo.modules.backbones.plan import plain_key, timm_name

    with torch.device("meta"):
        model = create_model("perpixel_fpn", backbone=backbone, num_classes=3)
        whole = timm.create_model(timm_name(backbone), num_classes=3)
    groups = param_groups_layer_decay(whole, layer_decay=0.5)
    expected = {p: g["lr_scale"] for g in groups for p in g["params"]}
    expected = {plain_key(name): expected[p] for name, p in whole.named_parameters()}
    found = by_name(model, backbone_lr_mult=0.1, layer_decay=0.5)
    for name, (rate, _) in found.items():
        inside = name.removeprefix("backbone.body.")
        outside = 0.1 if name.startswith("backbone.") else 1.0
        assert rate == pytest.approx(outside if inside == name else 0.1 * expected[plain_key(inside)]), name
    assert len({rate for name, (rate, _) in found.items() if "body" in name}) > 4


def test_schedule():
    factors = [learning_rate_factor(s, Settings(steps=100, warmup_steps=10)) for s in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(0.91**0.9)
    assert factors[50] == pytest.approx(0.5**0.9)
    assert factors[100] == 0
    assert learning_rate_factor(0, Settings(steps=100)) == 1
    optimizer = build_optimizer(param_groups(Net(), 2.0, 0.1, 0.5), "sgd")
    assert set_learning_rate(optimizer, 0.25) == 0.5
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [0.25, 0.5]
    assert set_learning_rate(optimizer, 1.0) == 2.0  # factors do not pile up


@pytest.mark.parametrize("lr_steps", [(60_000, 80_000), (2 / 3, 8 / 9)])
def test_the_schedule_of_detectron2(lr_steps: tuple[float, ...]):
    s = Settings(steps=90_000, schedule="steps", lr_steps=lr_steps, warmup_steps=1000, warmup_factor=1e-3)
    at = {0: 1e-3, 500: 0.5005, 1000: 1, 59_999: 1, 60_000: 0.1, 79_999: 0.1, 80_000: 0.01, 89_999: 0.01}
    for step, factor in at.items():
        assert learning_rate_factor(step, s) == pytest.approx(factor), step
    cosine = Settings(steps=4, schedule="cosine")
    assert [learning_rate_factor(n, cosine) for n in (0, 2, 4)] == pytest.approx([1, 0.5, 0])


def test_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="lamb"):
        build_optimizer(param_groups(Net(), 1.0, 0.1), "lamb")


def test_ema_averages_weights_and_statistics_and_gives_them_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(net, decay=0.5)
    expected, decay = net[0].weight.detach().clone(), []
    for n in range(1, 8):
        net(torch.randn(4, 2))
        with torch.no_grad():
            net[0].weight.add_(1)
        ema.update(net)
        decay.append(min(0.5, (1 + n) / (10 + n)))
        expected = decay[-1] * expected + (1 - decay[-1]) * net[0].weight.detach()
    assert decay[0] < 0.2 and decay[-1] == pytest.approx(8 / 17)
    own = {k: v.clone() for k, v in net.state_dict().items()}
    with ema.applied(net):
        torch.testing.assert_close(net[0].weight.detach(), expected)
        assert not torch.equal(net[1].running_mean, own["1.running_mean"])
        assert net[1].num_batches_tracked == 7
    assert all(torch.equal(v, own[k]) for k, v in net.state_dict().items())

    other = Ema(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), decay=0.5)
    other.load_state_dict(ema.state_dict())
    assert other.updates == 7 and all(
        torch.equal(a, b) for a, b in zip(other.means.values(), ema.means.values(), strict=True)
    )
