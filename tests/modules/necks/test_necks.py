"""Necks: what each variant computes, torchvision's calling convention, and errors that name both numbers."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from fapn_zoo import FPN, FaPN

pytestmark = pytest.mark.unit
CHANNELS = (8, 12, 16, 24)


def features(sizes=((32, 48), (16, 24), (8, 12), (4, 6)), channels=CHANNELS):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, c, *s, generator=g) for c, s in zip(channels, sizes, strict=True)]


VARIANTS = [
    (FPN, {"dialect": "detectron2"}),
    (FPN, {"dialect": "maskformer"}),
    (FPN, {"extra_convs": 2}),
    *(
        (FaPN, {"dialect": d, "align": a, "select": s, "deform_groups": 4})
        for d in ("detectron2", "maskformer")
        for a in ("fam", "dcn", "deconv")
        for s in ("fsm", "se", "none")
    ),
    (FaPN, {"dialect": "maskformer", "norm": "bn", "deform_groups": 4}),
    (FaPN, {"dialect": "maskformer", "norm": "none", "deform_groups": 4}),
]


@pytest.mark.parametrize("neck, options", VARIANTS)
@pytest.mark.parametrize("sizes", [((32, 48), (16, 24), (8, 12), (4, 6)), ((25, 33), (13, 17), (7, 9), (4, 5))])
def test_sizes_and_gradients(neck, options, sizes):
    module = neck(CHANNELS, 16, **options)
    outputs = module(features(sizes))
    assert [tuple(o.shape) for o in outputs] == [(2, 16, *s) for s in sizes]
    sum(o.square().mean() for o in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("neck", [FPN, lambda *a, **k: FaPN(*a, deform_groups=4, **k)])
def test_drop_in_for_torchvision(neck):
    theirs = FeaturePyramidNetwork(list(CHANNELS), 16, extra_blocks=LastLevelMaxPool())
    ours = neck(list(CHANNELS), 16, extra_blocks=LastLevelMaxPool())
    x = OrderedDict(zip(["feat0", "feat1", "feat2", "feat3"], features(), strict=True))
    expected, outputs = theirs(x), ours(x)
    assert isinstance(outputs, OrderedDict) and list(outputs) == list(expected)
    assert [o.shape for o in outputs.values()] == [o.shape for o in expected.values()]
    for a, b in zip(ours(list(x.values())), outputs.values(), strict=True):
        assert torch.equal(a, b)


def test_fpn_computes_what_torchvisions_does():
    theirs, ours = FeaturePyramidNetwork(list(CHANNELS), 16), FPN(CHANNELS, 16)
    for i in range(4):
        ours.lateral[i].conv.load_state_dict(theirs.inner_blocks[i][0].state_dict())
        ours.output[i].conv.load_state_dict(theirs.layer_blocks[i][0].state_dict())
    x = features()
    expected = theirs(OrderedDict((str(i), f) for i, f in enumerate(x)))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours(x), expected.values(), strict=True))


def test_a_detector_of_torchvision_trains_on_it():
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=96, max_size=128
    )
    old = model.backbone.fpn
    model.backbone.fpn = FaPN([b[0].in_channels for b in old.inner_blocks], 256, extra_blocks=old.extra_blocks)
    target = {"boxes": torch.tensor([[10.0, 10, 60, 50]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 96, 128)], [target])
    sum(losses.values()).backward()
    assert model.backbone.fpn.align[0].dcn.weight.grad is not None


def test_alignment_starts_as_half_a_convolution_of_the_upsampled_map():
    """Offsets start at zero and masks at one half (FACTS section 3, initialisation)."""
    align = FaPN(CHANNELS, 16, deform_groups=4).align[0]
    fine, coarse = torch.randn(1, 16, 10, 12), torch.randn(1, 16, 5, 6)
    up = F.interpolate(coarse, size=(10, 12), mode="bilinear")
    plain = F.conv2d(up, align.dcn.weight, padding=1)
    assert torch.allclose(align(fine, coarse), F.relu(plain / 2 + align.dcn.bias[:, None, None]) + fine, atol=1e-5)


@pytest.mark.parametrize("dialect", ["detectron2", "maskformer"])
def test_a_new_neck_only_enlarges_the_coarse_map(dialect):
    x = features()
    neck = FaPN(CHANNELS, 16, dialect=dialect, deform_groups=4).eval()
    flow = neck.top(x[-1])
    expected = [flow]
    for level in (2, 1, 0):
        up = F.interpolate(flow, size=x[level].shape[-2:], mode="bilinear", align_corners=False)
        total = up.relu() + neck.lateral[level](x[level])
        expected.insert(0, neck.output[level](total))
        flow = expected[0] if dialect == "maskformer" else total
    for found, exact in zip(neck(x), expected, strict=True):
        assert torch.allclose(found, exact, atol=1e-5)
    official = FaPN(CHANNELS, 16, dialect=dialect, deform_groups=4, init="official")
    assert official.state_dict().keys() == neck.state_dict().keys()
    with pytest.raises(ValueError, match="init 'zero'; expected one of identity, official"):
        FaPN(CHANNELS, 16, init="zero")


def test_offsets_move_the_coarse_map():
    """A constant offset of one pixel down and two right reads the map one row and two columns on."""
    align = FaPN((4, 4), 4, deform_groups=1).align[0]
    with torch.no_grad():
        align.dcn.weight.zero_()
        align.dcn.weight[range(4), range(4), 1, 1] = 1
        align.dcn.offset_mask.bias[0:18:2], align.dcn.offset_mask.bias[1:18:2] = 1, 2
        align.dcn.offset_mask.bias[18:] = 50  # sigmoid 1
    coarse = torch.rand(1, 4, 8, 9)
    moved = align(torch.zeros(1, 4, 8, 9), coarse)
    assert torch.allclose(moved[..., :-1, :-2], coarse[..., 1:, 2:], atol=1e-6)
    assert moved[..., -1, :].abs().max() == 0


@pytest.mark.parametrize("grad", [True, False])
def test_offsets_are_read_from_the_fine_map_and_twice_the_coarse_one(grad):
    """The published formula, a convolution of both maps side by side, where ours sums two convolutions."""
    align = FaPN(CHANNELS, 16, deform_groups=4, norm="gn").align[0]
    with torch.no_grad():
        for parameter in align.parameters():
            parameter.normal_(std=0.2)
    fine, coarse = torch.randn(2, 16, 11, 14), torch.randn(2, 16, 6, 7)
    up = F.interpolate(coarse, size=(11, 14), mode="bilinear")
    with torch.set_grad_enabled(grad):
        guide = align.guide(torch.cat([fine, 2 * up], dim=1))
        expected = F.relu(align.dcn(up, *align.dcn.moves(guide))) + fine
        kept = fine.clone(), coarse.clone()
        assert torch.allclose(align(fine, coarse), expected, atol=1e-4)
    assert torch.equal(fine, kept[0]) and torch.equal(coarse, kept[1])


@pytest.mark.parametrize("images", [0, 1, 2])
def test_selection_gates_whole_channels(images):
    fsm = FaPN(CHANNELS, 16, deform_groups=4).lateral[0]
    x = features()[0][:images]
    gate = torch.sigmoid(torch.einsum("oc,nc->no", fsm.gate.conv.weight[..., 0, 0], x.mean((2, 3))))[..., None, None]
    assert torch.allclose(fsm(x), F.conv2d(x * (1 + gate), fsm.reduce.conv.weight), atol=1e-5)
    fsm.skip = False
    assert torch.allclose(fsm(x), F.conv2d(x * gate, fsm.reduce.conv.weight), atol=1e-5)


def test_one_norm_serves_two_places_in_maskformers_dialect():
    neck = FaPN(CHANNELS, 32, dialect="maskformer")
    assert neck.shares_norm and isinstance(neck.align[0].guide.norm, torch.nn.Identity)
    calls = []
    neck.output[0].norm.register_forward_hook(lambda *a: calls.append(1))
    neck(features())
    assert len(calls) == 2
    assert not FaPN(CHANNELS, 32, dialect="maskformer", norm="bn").shares_norm  # their statistics must not mix


@pytest.mark.parametrize(
    "inputs, message",
    [
        (features()[:3], "built for 4 levels and got 3"),
        (features(channels=(8, 12, 20, 24)), "level 2 has 20 channels, FaPN expects 16"),
        (features(((16, 24), (32, 48), (8, 12), (4, 6))), r"level 0 is \(16, 24\) and level 1 is \(32, 48\)"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(ValueError, match=message):
        FaPN(CHANNELS, 16, deform_groups=4)(inputs)


@pytest.mark.parametrize("dialect", ["detectron2", "maskformer"])
@pytest.mark.parametrize("neck", [FPN, lambda *a, **k: FaPN(*a, deform_groups=4, **k)])
def test_fewer_outputs_are_the_finest_ones_and_leave_no_idle_layer(neck, dialect):
    torch.manual_seed(0)
    whole = neck(CHANNELS, 16, dialect=dialect)
    fine = neck(CHANNELS, 16, dialect=dialect, num_outputs=1)
    fine.load_state_dict({k: v for k, v in whole.state_dict().items() if k in fine.state_dict()})
    (output,) = fine(features())
    assert torch.equal(output, whole(features())[0])
    output.sum().backward()
    assert all(p.grad is not None for p in fine.parameters())
    with pytest.raises(ValueError, match="num_outputs=5; expected 1 to 4"):
        neck(CHANNELS, 16, num_outputs=5)


def test_deconvolution_needs_a_factor_of_two():
    with pytest.raises(ValueError, match=r"makes \(8, 12\) of the coarse map, the fine map is \(16, 24\)"):
        FaPN((8, 12), 16, align="deconv")([torch.rand(1, 8, 16, 24), torch.rand(1, 12, 4, 6)])
    with pytest.raises(ValueError, match="two levels or more"):
        FaPN((8,), 16)
