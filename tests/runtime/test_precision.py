"""What `predict` computes in: half precision on demand and where it is fast, channels-last maps, no traces left."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toys.prediction import BrightSquare

import fapn_zoo
from fapn_zoo.cli import main
from fapn_zoo.modules.backbones.backbone import Backbone
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.predict import predict
from fapn_zoo.predict.inputs import network_input
from fapn_zoo.runtime import device as device_module
from fapn_zoo.runtime.device import resolve_amp
from fapn_zoo.zoo.parts import HEADS, load_part

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def picture(height: int = 65, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def small(name: str = "perpixel_fapn", backbone: str = "resnet10t") -> nn.Module:
    torch.manual_seed(0)
    options = {"neck_out_channels": 32, "num_classes": 5} | ({"neck_deform_groups": 4} if "fapn" in name else {})
    return fapn_zoo.create_model(name, backbone=backbone, **options)


def dtypes_of(model: nn.Module, **options) -> set[torch.dtype]:
    """Of the outputs of all convolutions in one prediction."""
    seen = set()
    handles = [
        module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        for module in model.modules() if isinstance(module, nn.Conv2d)
    ]  # fmt: skip
    result = predict(model, picture(), **options)
    for handle in handles:
        handle.remove()
    assert result.scores.dtype == np.float32 and np.isfinite(result.scores).all()
    return seen


@pytest.mark.parametrize("options", [{}, {"tile": 64}, {"flip": True}])
@pytest.mark.parametrize("name", ["perpixel_fapn", "maskformer_fapn"])
def test_the_network_multiplies_in_what_was_asked_for(monkeypatch, name, options):
    model = small(name)
    assert dtypes_of(model, amp="no", **options) == {torch.float32}
    assert dtypes_of(model, amp="bf16", **options) == {torch.bfloat16}
    for fast in (True, False):
        monkeypatch.setattr(device_module, "fast_bfloat16", lambda device, fast=fast: fast)
        assert dtypes_of(model, **options) == {torch.bfloat16 if fast else torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_half_precision_is_close():
    model = fapn_zoo.create_model("perpixel_fapn_resnet18_slim_camvid", pretrained=True)
    from fapn_zoo.data.scenes import generate_scene

    image = generate_scene(3, (180, 240)).image
    full, half = (predict(model, image, amp=amp) for amp in ("no", "bf16"))
    assert (full.labels == half.labels).mean() > 0.99
    assert np.abs(full.scores - half.scores).mean() < 0.01


@pytest.mark.parametrize("options", [{}, {"tile": 64}, {"flip": True}, {"task": "panoptic"}])
def test_autocast_and_default_dtype_of_the_caller_change_nothing(options):
    model = small("maskformer_fapn")
    expected = predict(model, picture(), amp="no", **options)
    with torch.autocast("cpu", torch.bfloat16):
        inside = predict(model, picture(), amp="no", **options)
    torch.set_default_dtype(torch.float64)
    try:
        wide = predict(model, picture(), amp="no", **options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(inside.scores, expected.scores)
    assert wide.scores.dtype == np.float32 and np.allclose(wide.scores, expected.scores, atol=1e-5)


def test_what_auto_means(monkeypatch):
    for fast, expected in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(device_module, "fast_bfloat16", lambda device, fast=fast: fast)
        assert resolve_amp("auto", CPU) == expected
        assert resolve_amp("auto", CPU, torch.float64) == resolve_amp("auto", CPU, torch.float16) == "no"
        assert resolve_amp("bf16", CPU) == "bf16" and resolve_amp("no", CPU) == "no"
        assert resolve_amp("auto", CPU, training=True) == "no"
        assert resolve_amp("auto", torch.device("cuda"), training=True) == expected
    assert resolve_amp("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(ValueError, match="amp='bf16' does not go with weights in float16"):
        resolve_amp("bf16", CPU, torch.float16)
    monkeypatch.undo()
    assert not device_module.fast_bfloat16(torch.device("mps"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not device_module._cpu_has_bfloat16.__wrapped__()


@pytest.mark.parametrize(
    "amp, message",
    [("fp8", "amp='fp8'; expected auto, bf16, fp16, no"), ("fp16", "amp='fp16' needs a GPU; a CPU takes amp='bf16'")],
)
def test_mistakes(capsys, tmp_path, amp, message):
    with pytest.raises(ValueError, match=message):
        predict(BrightSquare(), picture(), amp=amp)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--amp", amp]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_command_line(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    for amp in ("no", "bf16"):
        assert main(["predict", str(tmp_path / "a.png"), "--out", str(tmp_path / amp), "--amp", amp]) == 0
    summaries = [json.loads((tmp_path / amp / "summary.json").read_text()) for amp in ("no", "bf16")]
    assert [summary["amp"] for summary in summaries] == ["no", "bf16"]
    model = fapn_zoo.create_model("perpixel_fapn_resnet18_slim_camvid", pretrained=True)
    for amp in ("no", "bf16"):
        written = np.asarray(Image.open(tmp_path / amp / "a_labels.png"))
        assert np.array_equal(written, predict(model, picture(), amp=amp).labels)


# Channels-last ------------------------------------------------------------------------------------------------------


def is_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@pytest.mark.parametrize(
    "name, backbone", [("perpixel_fapn", "resnet10t"), ("maskformer_fpn", "resnet10t"), ("perpixel_fpn", "swin_t")]
)
def test_maps_are_channels_last_and_mean_the_same(name, backbone):
    model = small(name, backbone).eval()
    pixels = [torch.from_numpy(picture(64, 96)).permute(2, 0, 1)]
    x = network_input(model.data, pixels, CPU, torch.float32)
    assert is_last(x)
    with torch.inference_mode():
        features = model.backbone(x)
        maps = [*features, *model.neck(features)]
        assert all(is_last(one) for one in maps)
        plain = model.backbone(x.contiguous())
        expected = [*plain, *model.neck(plain)]
    assert all(one.is_contiguous() for one in plain)
    for found, one in zip(maps, expected, strict=True):
        assert torch.allclose(found, one, atol=1e-3 * one.abs().max().item())


# Nothing is left behind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet10t", "swin_t", "tiny_vit_5m_224", "pvt_v2_b0"])
def test_training_goes_on_after_a_prediction(backbone):
    """Also with networks that remember biases of positions while they are not trained."""
    model = small(backbone=backbone).train()
    criterion = load_part(HEADS[model.spec.head].loss).of(model)
    batch = torch.randn(2, 3, 64, 64)
    labels = Targets(torch.randint(0, 5, (2, 64, 64)))
    twin = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    predict(model, picture(64, 64), amp="bf16")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    gradients = []
    for one in (model, twin):
        torch.manual_seed(1)
        criterion(one(batch), labels)["loss"].backward()
        gradients.append([parameter.grad for parameter in one.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    with torch.enable_grad():
        model.eval()
        criterion(model(batch), labels)["loss"].backward()


# Frozen batch norm --------------------------------------------------------------------------------------------------


def test_frozen_norm_is_torchvisions_in_one_step():
    from timm.layers import FrozenBatchNormAct2d
    from torchvision.ops.misc import FrozenBatchNorm2d

    from fapn_zoo.modules.backbones.surgery import use_one_step

    for norm in (FrozenBatchNorm2d(6), FrozenBatchNormAct2d(6)):
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.normal_()
        norm.running_var.uniform_(0.5, 2)
        x = torch.randn(2, 6, 5, 7, requires_grad=True)
        expected = norm(x)
        expected_gradient = torch.autograd.grad(expected.square().sum(), x)[0]
        keys, kind = list(norm.state_dict()), type(norm)
        use_one_step(norm)
        assert isinstance(norm, kind) and type(norm) is not kind and list(norm.state_dict()) == keys
        for training in (False, True):
            found = norm.train(training)(x)
            assert torch.allclose(found, expected, atol=1e-5)
            gradient = torch.autograd.grad(found.square().sum(), x)[0]
            assert torch.allclose(gradient, expected_gradient, atol=1e-4)
        assert norm(x.detach().bfloat16()).dtype == torch.bfloat16
        copied = copy.deepcopy(norm)
        assert torch.equal(copied(x), norm(x))


def test_frozen_backbones_use_it():
    backbone = Backbone("resnet10t", norm="frozen_bn")
    names = {type(module).__name__ for module in backbone.modules() if "Norm" in type(module).__name__}
    assert names and all(name.startswith("OneStep") for name in names)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert all(x.dtype == torch.bfloat16 for x in backbone.eval()(torch.randn(1, 3, 64, 64)))
