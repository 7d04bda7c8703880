"""Backbones: four maps from any pyramid, freezing, checkpointing, errors that say what to do."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import timm
import torch
from torch import Tensor, nn

from fapn_zoo.modules.backbones.backbone import Backbone
from fapn_zoo.modules.backbones.plan import _rehearse, plan, timm_name
from fapn_zoo.modules.backbones.surgery import OfficialSwinBlock
from fapn_zoo.zoo.parts import BACKBONES, REHEARSED

THIN_SWIN = {"name": "swin_t", "depths": (2, 2, 2, 2), "embed_dim": 32, "num_heads": (1, 2, 4, 8)}
# (name, channels, size divisor): one small member of each family
FAMILIES = [
    ("resnet18", (64, 128, 256, 512), 1),
    ("swin_t", (96, 192, 384, 768), 4),
    ("convnextv2_atto", (40, 80, 160, 320), 32),
    ("mobilenetv4_s", (32, 64, 96, 960), 1),
    ("mobilenetv3_small_050", (8, 16, 24, 288), 1),
    ("efficientnet_b0", (24, 40, 112, 320), 1),
    ("efficientvit_b0", (16, 32, 64, 128), 1),
    ("hiera_tiny_224", (96, 192, 384, 768), 1),
    ("hieradet_small", (96, 192, 384, 768), 32),
    ("tiny_vit_5m_224", (64, 128, 160, 320), 1),
    ("mambaout_femto", (48, 96, 192, 288), 1),
    ("fastvit_t8", (48, 96, 192, 384), 1),
    ("pvt_v2_b0", (32, 64, 160, 256), 1),
    ("regnety_002", (24, 56, 152, 368), 1),
    ("edgenext_xx_small", (24, 48, 88, 168), 32),
    ("poolformer_s12", (64, 128, 320, 512), 4),
    ("hrnet_w18_small", (128, 256, 512, 1024), 32),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Such small networks only wait for a second thread, the more so where the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(*args, **kwargs) -> Backbone:
    torch.manual_seed(0)
    return Backbone(*args, **kwargs)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def sizes(features: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(feature.shape[2:]) for feature in features]


def ceil_sizes(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]


# ---- any pyramid


@pytest.mark.unit
@pytest.mark.parametrize(("name", "channels", "divisor"), FAMILIES, ids=[family[0] for family in FAMILIES])
def test_families(name, channels, divisor):
    kwargs = {"img_size": (128, 160)} if name == "hiera_tiny_224" else {}
    backbone = seeded(name, in_chans=4, **kwargs).eval()
    assert backbone.out_channels == channels
    assert backbone.strides == (4, 8, 16, 32)
    assert backbone.size_divisor == divisor
    again = Backbone(name, in_chans=4, **kwargs).eval()
    again.load_state_dict(backbone.state_dict())
    x = noise(1, 4, 64, 96)
    with torch.no_grad():
        before, after = backbone(x), again(x)
    assert sizes(before) == ceil_sizes(64, 96)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    features = backbone.train()(noise(2, 4, 97, 131))
    assert sizes(features) == ceil_sizes(97, 131)
    assert [feature.shape[1] for feature in features] == list(channels)
    sum(feature.square().mean() for feature in features).backward()
    gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
    assert len(gradients) > 0.8 * len(list(backbone.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.unit
def test_names():
    assert timm_name("swin_l") == "swin_large_patch4_window12_384.ms_in22k"
    assert timm_name("resnet50.a1_in1k") == "resnet50.a1_in1k"
    assert set(BACKBONES.values()) <= set(timm.list_pretrained())
    shadowed = {name for name, full in BACKBONES.items() if timm.is_model(name) and name != full.partition(".")[0]}
    # Users know TensorFlow's EfficientNet-Lite by these names; timm's own padding is reached with its tag, .ra_in1k.
    assert shadowed == {f"efficientnet_lite{i}" for i in range(3)}, "a short name means another network than timm's"


@pytest.mark.unit
@pytest.mark.parametrize("name", ["resnet101s", "swin_b", "swin_l", "convnextv2_t", "mobilenetv4_m"])
def test_large_ones_on_the_meta_device(name):
    with torch.device("meta"):
        backbone = Backbone(name)
        assert sizes(backbone(torch.empty(1, 3, 250, 333))) == ceil_sizes(250, 333)
    assert all(value.is_meta for value in backbone.state_dict().values())


@pytest.mark.unit
@pytest.mark.parametrize("name", ["resnet18", "swin_t", "convnextv2_atto"])
@pytest.mark.parametrize("size", [(33, 33), (250, 333), (32, 7)])
def test_any_size(name, size):
    with torch.no_grad():
        assert sizes(seeded(name).eval()(noise(1, 3, *size))) == ceil_sizes(*size)


@pytest.mark.unit
def test_resnet_is_not_padded():
    backbone = seeded("resnet18").eval()
    reference = timm.create_model("resnet18", features_only=True).eval()
    reference.load_state_dict(backbone.body.state_dict(), strict=False)
    with torch.no_grad():
        x = noise(1, 3, 45, 71)
        assert all(torch.equal(a, b) for a, b in zip(backbone(x), reference(x)[1:], strict=True))


@pytest.mark.unit
def test_resnet101s_has_the_deep_stem():
    with torch.device("meta"):
        stem = [m.weight.shape for m in Backbone("resnet101s").body.conv1 if isinstance(m, nn.Conv2d)]
    assert [tuple(shape) for shape in stem] == [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3)]


@pytest.mark.unit
def test_one_size_only():
    backbone = seeded("hiera_tiny_224", img_size=(64, 96)).eval()
    assert backbone.fixed_size == (64, 96)
    with torch.no_grad():
        assert sizes(backbone(noise(1, 3, 50, 96))) == ceil_sizes(50, 96)
        with pytest.raises(ValueError, match="64x96 only and the image is 65x96.*img_size"):
            backbone(noise(1, 3, 65, 96))


@pytest.mark.unit
def test_copies_and_pickles():
    backbone = seeded(**THIN_SWIN, frozen_stages=1).eval()
    x = noise(1, 3, 40, 52)
    with torch.no_grad():
        expected = backbone(x)
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert all(torch.equal(a, b) for a, b in zip(expected, twin(x), strict=True))


# ---- bad input


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet5", {}, "unknown backbone 'resnet5'; nearest: resnet50"),
        ("swn_t", {}, "nearest: swin_t"),
        ("resnet50.nonsense", {}, "unknown tag 'nonsense' of backbone 'resnet50'; known: .*tv_in1k"),
        ("pit_ti_224", {}, "is no pyramid: its levels have strides 8, 16, 32.*are needed.*resnet50, swin_t"),
        ("levit_128", {}, "strides 16, 32, 64"),
        ("inception_v3", {}, "no zero padding"),
        ("resnet18", {"nonsense": 1}, "does not take.*nonsense"),
        ("resnet18", {"out_indices": (1, 2)}, "out_indices: a Backbone chooses"),
        ("resnet18", {"norm": "bn"}, "unknown norm 'bn'.*'frozen_bn'"),
        ("swin_t", {"norm": "frozen_bn"}, "needs a backbone with BatchNorm"),
        ("resnet18", {"in_chans": 0}, "in_chans must be at least 1, got 0"),
        ("resnet18", {"frozen_stages": 5}, "must be 0 to 4 for 'resnet18', got 5"),
        ("resnet18", {"frozen_stages": -1}, "got -1"),
        ("resnet18", {"stride_in_1x1": True}, "bottleneck blocks such as resnet50, not 'resnet18'"),
        ("hrnet_w18_small", {"grad_checkpointing": True}, "no gradient checkpointing"),
        ("xception41", {"grad_checkpointing": True}, "no gradient checkpointing"),
    ],
)
def test_bad_arguments(name, kwargs, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Backbone(name, **kwargs)


@pytest.mark.unit
def test_unreachable_weights_are_explained(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="'resnet10t.c3_in1k'.*Hub.*pretrained_backbone=False") as caught:
        Backbone("resnet10t", pretrained=True, cache_dir=tmp_path)
    assert "HF_HUB_OFFLINE is set" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="No pretrained weights exist for convnextv2_small"):
        Backbone("convnextv2_small", pretrained=True)


# ---- freezing, frozen norms, checkpointing


@pytest.mark.unit
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv4_s", "hiera_tiny_224", "swin_t"])
def test_freeze_keeps_weights_and_statistics(name):
    backbone = seeded(name, frozen_stages=2, **({"img_size": 64} if "hiera" in name else {})).train()
    frozen = [p for p in backbone.parameters() if not p.requires_grad]
    assert 0 < len(frozen) < len(list(backbone.parameters()))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    features = backbone(noise(2, 3, 64, 64))
    has_output_norm = name == "swin_t"
    assert [feature.requires_grad for feature in features] == [has_output_norm, has_output_norm, True, True]
    sum(feature.square().mean() for feature in features).backward()
    torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1).step()
    moved = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert moved.isdisjoint(f"body.{key}" for key in backbone._frozen)
    if name == "resnet18":
        assert all(re.match(r"body\.(layer[34])", key) for key in moved)
        assert sum(key.endswith("running_mean") for key in set(before) - moved) == 10  # stem 1, layer1 4, layer2 5
    backbone.set_grad_checkpointing()
    backbone.freeze(1)
    backbone.freeze(0)
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(m.training for m in backbone.modules())


@pytest.mark.unit
def test_freeze_all_leaves_nothing_but_the_output_norms():
    assert not any(p.requires_grad for p in seeded("resnet18", frozen_stages=4).parameters())
    trainable = [key for key, p in seeded(**THIN_SWIN, frozen_stages=4).named_parameters() if p.requires_grad]
    assert all(re.fullmatch(r"norm\d\.(weight|bias)", key) for key in trainable) and len(trainable) == 8


@pytest.mark.unit
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv4_s", "regnety_002"])
def test_frozen_batch_norm(name):
    plain = seeded(name).train()
    with torch.no_grad():  # statistics and affine terms worth freezing
        for _ in range(3):
            plain(3 * noise(4, 3, 64, 64) + 1)
    frozen = Backbone(name, norm="frozen_bn")
    frozen.load_state_dict({key: value for key, value in plain.state_dict().items() if "num_batches" not in key})
    norms = sum(p.numel() for m in plain.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    count = [sum(p.numel() for p in m.parameters()) for m in (plain, frozen)]
    assert norms > 0 and count[0] - count[1] == norms
    x = noise(2, 3, 64, 64)
    expected, found = plain.eval()(x), frozen.train()(x)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())


def stored_bytes(backbone: Backbone, x: Tensor) -> tuple[int, list[Tensor]]:
    """Bytes kept for the backward pass, and the gradients."""
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = sum(feature.square().mean() for feature in backbone(x))
    for parameter in backbone.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    stored = sum(kept.values())
    loss.backward()
    return stored, [p.grad for p in backbone.parameters() if p.grad is not None]


@pytest.mark.unit
@pytest.mark.parametrize(
    "name", ["resnet18", "swin_t", "convnextv2_atto", "efficientnet_b0", "pvt_v2_b0", "hieradet_small", "fastvit_t8"]
)
def test_grad_checkpointing(name):
    plain = seeded(name).train()
    thrifty = copy.deepcopy(plain)
    thrifty.set_grad_checkpointing()
    x = noise(2, 3, 64, 96)
    (many, expected), (few, found) = stored_bytes(plain, x), stored_bytes(thrifty, x)
    assert few < 0.8 * many
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


# ---- Swin


def reference_attention(block: OfficialSwinBlock, x: Tensor) -> Tensor:
    """Window attention of a block from its description, as one dense attention among all tokens of the padded map."""
    (_, height, width, channels), window, shift = x.shape, block.window_size[0], block.shift_size[0]
    rows, columns = -(-height // window) * window, -(-width // window) * window
    padded = torch.zeros(rows, columns, channels)
    padded[:height, :width] = x[0]
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    # where rolling takes each token
    row, column = ((row - shift) % rows).flatten(), ((column - shift) % columns).flatten()

    def region(position: Tensor, length: int) -> Tensor:
        return torch.where(position < length - window, 0, torch.where(position < length - shift, 1, 2))

    key = torch.stack([row // window, column // window], 1)
    band = torch.stack([region(row, rows), region(column, columns)], 1)
    together = (key[:, None] == key[None]).all(-1)
    neighbours = (band[:, None] == band[None]).all(-1) if shift else together
    down, right = row[:, None] - row[None] + window - 1, column[:, None] - column[None] + window - 1
    index = (down * (2 * window - 1) + right).clamp(0, len(block.attn.relative_position_bias_table) - 1)
    q, k, v = block.attn.qkv(padded.reshape(-1, channels)).reshape(len(row), 3, block.attn.num_heads, -1).unbind(1)
    logits = torch.einsum("ihc,jhc->hij", q, k) / q.shape[-1] ** 0.5
    logits = logits + block.attn.relative_position_bias_table[index].permute(2, 0, 1)
    logits = logits.masked_fill(~neighbours, 0) + (logits - 100).masked_fill(neighbours, 0)
    weights = logits.masked_fill(~together, -torch.inf).softmax(-1)
    out = block.attn.proj(torch.einsum("hij,jhc->ihc", weights, v).flatten(1))
    return out.reshape(rows, columns, channels)[None, :height, :width]


@pytest.mark.unit
@pytest.mark.parametrize("size", [(5, 9), (13, 20), (7, 7), (14, 21), (1, 3)])
@pytest.mark.parametrize("index", [0, 1], ids=["plain", "shifted"])
def test_swin_block_is_the_described_one(index, size):
    block = seeded(**THIN_SWIN).eval().body.layers_0.blocks[index]
    assert isinstance(block, OfficialSwinBlock) and block.window_size == (7, 7) and block.shift_size == (3 * index,) * 2
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, 0.3)
        x = noise(1, *size, 32)
        expected = x + reference_attention(block, block.norm1(x))
        expected = expected + block.mlp(block.norm2(expected))
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_swin_keeps_nothing_that_depends_on_size():
    with torch.device("meta"):
        swins = {name: Backbone(name) for name in ("swin_t", "swin_b")}
    assert not [key for swin in swins.values() for key in swin.state_dict() if "mask" in key or "index" in key]
    blocks = {name: swin.body.layers_3.blocks[1] for name, swin in swins.items()}
    assert {name: (block.window_size, block.shift_size) for name, block in blocks.items()} == {
        "swin_t": ((7, 7), (3, 3)),
        "swin_b": ((12, 12), (6, 6)),
    }


@pytest.mark.unit
def test_swin_exports_with_free_multiples_of_32():
    backbone = seeded(**THIN_SWIN | {"depths": (2, 1, 1, 1)}).eval()
    height = 32 * torch.export.Dim("height", min=2, max=40)
    program = torch.export.export(backbone, (noise(1, 3, 96, 160),), dynamic_shapes=({2: height},))
    x = noise(1, 3, 64, 160)
    with torch.no_grad():
        for a, b in zip(program.module()(x), backbone(x), strict=True):
            torch.testing.assert_close(a, b)


# ---- what timm's networks need


@pytest.mark.parametrize("architecture", REHEARSED)
def test_the_table_says_what_a_rehearsal_finds(architecture):
    options = {"in_chans": 3}
    extra, divisor, only = _rehearse(architecture, tuple(options.items()))
    assert plan(architecture, options) == (options | dict(extra), divisor, only)


def test_multi_grid_dilates_the_last_stage_alone():
    """The last block's convolution is compared with nine shifted 1x1 convolutions."""
    torch.manual_seed(0)
    plain, dilated = Backbone("resnet50"), Backbone("resnet50", multi_grid=(1, 2, 4))
    dilated.load_state_dict(plain.state_dict())
    assert [b.conv2.dilation for b in dilated.body.layer4] == [(1, 1), (2, 2), (4, 4)]
    x = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        for backbone in (plain, dilated):  # timm starts the last norm of a block at zero, which would hide it
            for block in backbone.body.layer4:
                block.bn3.weight.fill_(1)
        *fine, coarse = plain.eval()(x)
        *same, other = dilated.eval()(x)
        block = dilated.body.layer4[2].conv2
        y = torch.randn(1, 512, 9, 9)
        taps = sum(
            torch.einsum(
                "oi,nihw->nohw",
                block.weight[:, :, i, j],
                torch.nn.functional.pad(y, (4,) * 4)[..., 4 * i : 4 * i + 9, 4 * j : 4 * j + 9],
            )
            for i in range(3)
            for j in range(3)
        )
        assert torch.allclose(block(y), taps, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(fine, same, strict=True))
    assert coarse.shape == other.shape and (coarse - other).abs().max() > 1e-3


@pytest.mark.parametrize("name, grid", [("resnet18", (1, 2)), ("resnet50", (1, 2)), ("swin_t", (1, 2))])
def test_multi_grid_needs_as_many_bottlenecks(name, grid):
    with pytest.raises(ValueError, match=f"multi_grid={re.escape(str(grid))} needs a ResNet with 2 bottleneck"):
        Backbone(name, multi_grid=grid)
