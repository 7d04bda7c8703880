"""Plain ViTs as pyramids: fifteen families, what their pyramid is made of, and where its cells lie."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fapn_zoo
from fapn_zoo.modules.backbones.backbone import Backbone
from fapn_zoo.modules.backbones.plain import PlainPyramid
from fapn_zoo.zoo.parts import BACKBONES

pytestmark = pytest.mark.unit
# Each as timm has it, but for a depth of four blocks; BEiT's position tables are of one size.
ONE_SIZE = {"img_size": (256, 336)}
FAMILIES = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch16_224.dino": {},
    "vit_small_patch8_224": {},
    "vit_base_patch32_clip_224": {"embed_dim": 192, "num_heads": 3},
    "vit_small_patch14_dinov2": {},
    "dinov2_s": {},
    "dinov3_s": {},
    "siglip2_b": {"embed_dim": 192, "num_heads": 3},
    "eva02_tiny_patch14_224": {},
    "beit_base_patch16_224": {"embed_dim": 192, "num_heads": 3} | ONE_SIZE,
    "beitv2_base_patch16_224": {"embed_dim": 192, "num_heads": 3} | ONE_SIZE,
    "deit3_small_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "samvit_base_patch16_224": {"embed_dim": 192, "num_heads": 3, "global_attn_indexes": (1, 3)},
    "xcit_nano_12_p16_224": {},
    "vit_small_patch16_rope_mixed_224": {},
}
STRIDES = (4, 8, 16, 32)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(name: str, seed: int = 0, **options) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(name, pyramid_channels=32, **{"depth": 4, "in_chans": 4} | FAMILIES.get(name, {}) | options)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def with_square(x: Tensor, top: int, left: int, side: int = 32) -> Tensor:
    x = x.clone()
    x[..., top : top + side, left : left + side] += 3
    return x


@pytest.mark.parametrize("name", FAMILIES)
def test_fifteen_families(name: str):
    backbone = small(name, drop_path_rate=0.1).eval()
    x = noise(1, 4, 250, 333)
    with torch.no_grad():
        maps = backbone(x)
        assert [tuple(m.shape) for m in maps] == [(1, 32, -(-250 // s), -(-333 // s)) for s in STRIDES]
        twin = small(name, seed=1).eval()
        twin.load_state_dict(backbone.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(maps, twin(x), strict=True))
        for top, left in ((64, 96), (160, 224)):  # the square changes the maps where it is
            for stride, a, b in zip(STRIDES, maps, backbone(with_square(x, top, left)), strict=True):
                change = (a - b).abs().sum((0, 1))
                row, column = divmod(change.argmax().item(), change.shape[1])
                slack = stride + backbone.size_divisor % 4 * 4  # a 3x3 convolution; cells of 16 share patches of 14
                assert top - slack <= row * stride < top + 32 + slack, (stride, row)
                assert left - slack <= column * stride < left + 32 + slack, (stride, column)
    trained = small(name, drop_path_rate=0.1).train()
    trained.set_grad_checkpointing()
    sum(m.square().mean() for m in trained(noise(2, 4, *(trained.fixed_size or (96, 80))))).backward()
    missing = [key for key, p in trained.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert all(key.endswith("mask_token") for key in missing), missing


@pytest.mark.parametrize("name", ["dinov2_s", "dinov3_s", "eva02_tiny_patch14_224", "samvit_base_patch16_224"])
def test_features_are_timms_own(name: str):
    backbone = small(name, pyramid="levels").eval()
    assert backbone.out_channels == (32,) * 4
    options = {"depth": 4, "in_chans": 4} | FAMILIES[name]
    size = {"dynamic_img_size": True} if "samvit" not in name else {}
    whole = timm.create_model(BACKBONES.get(name, name), num_classes=0, **options | size).eval()
    whole.load_state_dict(backbone.body.model.state_dict(), strict=False)
    x = noise(1, 4, 224, 112)
    with torch.no_grad():
        expected = whole.forward_intermediates(x, norm=True, intermediates_only=True)
        found = backbone.body(x)
    assert len(found) == 4 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "dinov2_s", "dinov3_s", "beit_base_patch16_224"])
def test_exports(name: str):
    backbone = small(name).eval()
    x = noise(1, 4, *(backbone.fixed_size or (90, 126)))
    program = torch.export.export(backbone, (x,))
    with torch.no_grad():
        for a, b in zip(program.module()(x), backbone(x), strict=True):
            torch.testing.assert_close(a, b)


def test_the_simple_pyramid_is_vitdets():
    """Written anew from the paper: transposed convolutions, none, a max-pool; then 1x1 and 3x3, each with a norm."""
    torch.manual_seed(0)
    pyramid = PlainPyramid([64], 16, STRIDES, 16)
    x = noise(1, 64, 3, 5)
    quarter, half, _, _ = pyramid.sample
    fine = F.conv_transpose2d(x, quarter[0].weight, quarter[0].bias, stride=2)
    fine = F.gelu(F.layer_norm(fine.movedim(1, -1), (32,), quarter[1].weight, quarter[1].bias, 1e-6).movedim(-1, 1))
    fine = F.conv_transpose2d(fine, quarter[3].weight, quarter[3].bias, stride=2)
    middle = F.conv_transpose2d(x, half[0].weight, half[0].bias, stride=2)
    coarse = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 2)
    for found, sampled, output in zip(pyramid([x]), (fine, middle, x, coarse), pyramid.output, strict=True):
        for layer in output:
            sampled = F.conv2d(sampled, layer.conv.weight, padding=layer.conv.kernel_size[0] // 2).movedim(1, -1)
            sampled = F.layer_norm(sampled, (16,), layer.norm.weight, layer.norm.bias, 1e-6).movedim(-1, 1)
        torch.testing.assert_close(found, sampled)


@pytest.mark.parametrize("patch", [7, 8, 12, 14, 16, 20, 30, 32])
def test_cells_lie_where_their_pixels_are(patch: int):
    """Tokens that hold their own position in pixels: at every level each cell must hold its own."""
    pyramid = PlainPyramid([16], patch, STRIDES, 16)
    pyramid.output = nn.ModuleList(nn.Identity() for _ in STRIDES)
    for layer in pyramid.modules():  # finer cells as copies of what they are made of
        if isinstance(layer, nn.ConvTranspose2d):
            layer.weight.data = torch.ones_like(layer.weight) / layer.in_channels
            layer.bias.data.zero_()
    pyramid.sample = nn.ModuleList(
        nn.Sequential(*(m for m in s if isinstance(m, nn.ConvTranspose2d))) if isinstance(s, nn.Sequential) else s
        for s in pyramid.sample
    )
    centres = (torch.arange(24) + 0.5) * patch
    base = max(s for s in STRIDES if s * 2**0.5 < patch * 2) if patch < 32 else 32
    for stride, found in zip(STRIDES, pyramid([centres.expand(1, 16, 24, 24).contiguous()]), strict=True):
        row = found[0, 0, 2]
        wanted = (torch.arange(len(row)) + 0.5) * stride
        if stride < base:  # copies of the cell that they lie in
            wanted = (wanted // base + 0.5) * base
        elif stride > base:  # the largest of the cells that they are made of
            wanted = wanted + (stride - base) / 2
        edge = max(32 // stride, 2)  # nothing lies beyond the outermost tokens
        torch.testing.assert_close(row[edge:-edge], wanted[edge:-edge], rtol=0, atol=1e-3)


def test_positions_are_interpolated_and_registers_stay():
    backbone = small("dinov2_s", img_size=56).eval()
    assert backbone.body.model.num_prefix_tokens == 5 and backbone.body.model.pos_embed.shape[1] == 16
    with torch.no_grad():
        backbone.body.model.pos_embed.copy_(torch.linspace(-2, 2, 4).repeat_interleave(4)[None, :, None])
        tall = backbone.body.model._pos_embed(torch.zeros(1, 12, 8, 384))
    column = tall[0, 5:, 0].reshape(12, 8)
    assert column.diff(dim=1).abs().max() < 1e-5 and (column[:, 0].diff() > 0).all()


def test_frozen_blocks_keep_their_weights_and_the_pyramid_learns():
    backbone = small("dinov2_s", frozen_stages=2).train()
    layers = backbone.depths()
    assert {k for k, v in layers.items() if v == 0} == {
        f"model.{k}"
        for k in ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    }
    assert all(layers[f"model.blocks.{i}.ls1.gamma"] == i + 1 for i in range(4))
    before = copy.deepcopy(backbone.state_dict())
    sum(m.square().mean() for m in backbone(noise(2, 4, 64, 64))).backward()
    torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1).step()
    moved = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {f"body.{k}" for k, v in layers.items() if v > 2} | {k for k in before if k.startswith("pyramid.")}
    backbone.freeze(4)
    assert not any(p.requires_grad for p in backbone.body.parameters())
    backbone.freeze(0)
    assert all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_224", {"pyramid": "fpn"}, "unknown pyramid 'fpn'.*simple, levels"),
        ("resnet18", {"pyramid": "simple"}, "is for plain ViTs; backbone 'resnet18.* is a pyramid by itself"),
        ("vit_tiny_patch16_224", {"pyramid": "levels", "depth": 3}, "takes four blocks, and .* has 3"),
        ("vit_tiny_patch16_224", {"frozen_stages": 13}, "must be 0 to 12 for 'vit_tiny_patch16_224', got 13"),
        ("vit_tiny_patch16_224", {"feature_cls": "hook"}, "feature_cls: a Backbone chooses"),
        ("vit_tiny_patch16_224", {"patch_size": 64}, "patches of 64 pixels"),
        ("beit_base_patch16_224", {"img_size": (250, 333)}, "250x333 into a map.*multiples of 16"),
        ("volo_d1_224", {}, "its levels have strides 8, 16.*a plain ViT has"),
    ],
)
def test_refused_with_the_reason(name: str, options: dict, message: str):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Backbone(name, **options)


@pytest.mark.parametrize("head", ["perpixel_fapn", "mask_rcnn_fpn"])
def test_every_head_stands_on_them(head: str, tmp_path):
    torch.manual_seed(0)
    options = {"backbone": "dinov2_s", "backbone_depth": 4, "backbone_pyramid": "levels", "neck_out_channels": 32}
    model = fapn_zoo.create_model(head, num_classes=3, **options).eval()
    model.save(tmp_path / "model")
    again = fapn_zoo.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    image = torch.zeros(50, 70, 3, dtype=torch.uint8).numpy()
    first, second = model.predict(image), again.predict(image)
    assert again.backbone.pyramid is not None and type(first) is type(second)
    with torch.no_grad():
        a, b = model.features(noise(1, 3, 50, 70)), again.features(noise(1, 3, 50, 70))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
