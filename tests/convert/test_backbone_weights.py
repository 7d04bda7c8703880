"""ImageNet weights of a backbone from a file: by timm's names, in TensorFlow's order, or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import fapn_zoo
from fapn_zoo.zoo.spec import IMAGENET_MEAN

pytestmark = pytest.mark.unit
LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model(LITE).state_dict()


def foreign(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as another library has them: no word of timm's but the last."""
    return {f"_part{i}.{key.rpartition('.')[2]}": value for i, (key, value) in enumerate(state.items())}


def create(path: Path, backbone: str = "efficientnet_lite0", name: str = "perpixel_fpn", **options):
    options = {"num_classes": 2, "neck_out_channels": 8, "backbone_weights": path} | options
    return fapn_zoo.create_model(name, backbone=backbone, **options)


def check_equal(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    mine = model.backbone.body.state_dict()
    assert mine and all(torch.equal(value, state[key]) for key, value in mine.items())


@pytest.mark.parametrize("named", [dict, foreign])
def test_names_of_timm_and_names_of_others_in_its_order(lite: dict, named, tmp_path: Path):
    path = tmp_path / "lite.pth"
    torch.save(named(lite), path)
    model = create(path)
    check_equal(model, lite)
    assert model.load_report is None and model.training  # the rest is new
    assert model.data.mean == model.data.std == (127.5,) * 3
    x = torch.rand(1, 3, 64, 96)
    whole = timm.create_model(LITE).eval()
    whole.load_state_dict(lite)
    with torch.no_grad():
        theirs = whole.forward_intermediates(x, indices=(1, 2, 3, 4), intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(model.eval().backbone(x), theirs, strict=True))


def test_without_the_last_layers_without_counters_frozen_and_with_another_number_of_bands(lite: dict, tmp_path: Path):
    short = {
        k: v for k, v in lite.items() if not k.startswith(("conv_head", "bn2", "classifier")) and "tracked" not in k
    }
    save_file(short, tmp_path / "lite.safetensors")
    check_equal(create(tmp_path / "lite.safetensors", backbone_norm="frozen_bn"), lite)
    model = create(tmp_path / "lite.safetensors", in_chans=5)
    assert model.backbone.body.conv_stem.weight.shape[1] == 5 and model.data.mean == (127.5,) * 5
    rest = {k: v for k, v in model.backbone.body.state_dict().items() if k != "conv_stem.weight"}
    assert all(torch.equal(value, lite[key]) for key, value in rest.items() if "tracked" not in key)


@pytest.mark.parametrize(
    "backbone, change, words",
    [
        ("resnet18", foreign, r"120 names.*296 of its 296.*in order, tensor 1 is _part0.w.*conv1.weight \(64, 3"),
        ("efficientnet_lite0.ra_in1k", foreign, "such names are TensorFlow's"),  # the same shapes, another padding
        ("efficientnet_lite0", lambda s: dict(list(foreign(s).items())[:-1]), "it has 295 tensors and the whole.*296"),
        ("efficientnet_lite0", lambda s: s | {"blocks.7.0.conv_pw.weight": torch.zeros(1)}, "0 of .*first blocks.7.0"),
        ("efficientnet_lite0", lambda s: {k: v for k, v in s.items() if k != "bn1.bias"}, "1 of .*first bn1.bias"),
        ("efficientnet_lite0", lambda s: s | {"conv_stem.weight": torch.zeros(32, 4, 3, 3)}, "stem.weight has shape"),
        ("efficientnet_lite0", lambda s: s | {"bn1.bias": torch.full((32,), torch.nan)}, "NaN in bn1"),
    ],
)  # fmt: skip
def test_what_is_of_another_network_is_refused_with_counts(lite: dict, backbone, change, words, tmp_path: Path):
    torch.save(change(lite), tmp_path / "file.pth")
    with pytest.raises(ValueError, match=words) as caught:
        create(tmp_path / "file.pth", backbone)
    assert "file.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_a_deeper_network_with_the_same_names_is_refused(tmp_path: Path):
    torch.save(timm.create_model("resnet26").state_dict(), tmp_path / "file.pth")
    with pytest.raises(ValueError, match=re.escape("54 of its 176 are no names of the network (first layer1.0.conv3")):
        create(tmp_path / "file.pth", "resnet18")


def test_images_are_normalised_as_the_backbone_wants_and_strides_stand_where_it_has_them(tmp_path: Path):
    torch.save(timm.create_model("resnet50").state_dict(), tmp_path / "r50.pth")
    model = create(tmp_path / "r50.pth", None, "pointrend_fpn_resnet50_cityscapes")
    assert model.data.mean == IMAGENET_MEAN and model.data.channel_order == "rgb"
    assert model.backbone.body.layer2[0].conv2.stride == (2, 2)
    own = fapn_zoo.create_model("pointrend_fpn_resnet50_cityscapes").data
    assert own.channel_order == "bgr" and own.std == (1.0, 1.0, 1.0)
    given = create(tmp_path / "r50.pth", None, "pointrend_fpn_resnet50_cityscapes", data=own, num_classes=None)
    assert given.data == own
    saved = model.save(tmp_path / "saved")
    again = fapn_zoo.create_model(f"local-dir:{saved}", pretrained=True)
    assert again.data == model.data
    other = {"num_classes": 2, "neck_out_channels": 8, "checkpoint_path": saved}
    with pytest.raises(ValueError, match="backbone_stride_in_1x1=False"):
        fapn_zoo.create_model("pointrend_fpn_resnet50_cityscapes", **other)
    again = fapn_zoo.create_model("pointrend_fpn_resnet50_cityscapes", backbone_stride_in_1x1=False, **other)
    assert again.data.mean == IMAGENET_MEAN and again.data.channel_order == "rgb"


@pytest.mark.parametrize("other", [{"pretrained": True}, {"pretrained_backbone": True}])
def test_one_source_of_weights(other: dict):
    with pytest.raises(ValueError, match="choose"):
        create(Path("nowhere.pth"), "resnet18", "perpixel_fapn", **other)
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        create(Path("nowhere.pth"), "resnet18")
