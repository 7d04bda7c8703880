"""Backbones, necks, heads and final scores against outputs of the official code, for weights made by one rule."""

from __future__ import annotations

import pytest
import torch
from parity.official_names import DETECTRON2, MASKFORMER, MASKFORMER_FPN, RESNET, SWIN, rename
from parity.rule import Golden
from torch import nn

import fapn_zoo
from fapn_zoo.postprocess import semantic_scores

pytestmark = pytest.mark.parity


def record(modules: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """A dict that the modules' outputs are written into when they run."""
    outputs: dict[str, torch.Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda m, args, out, name=name: outputs.__setitem__(name, out))
    return outputs


def pixel_decoder(model: nn.Module) -> dict[str, nn.Module]:
    """Our modules by the official names of their outputs."""
    neck = model.neck
    named = {f"pd.adapter_{i + 1}": neck.lateral[i] for i in range(3)}
    named |= {f"pd.layer_{i + 1}": layer for i, layer in enumerate(neck.output)}
    if hasattr(neck, "align"):
        named |= {f"pd.align_{i + 1}": neck.align[i] for i in range(3)} | {"pd.layer_4": neck.top}
    return named | {"mask_features": model.head.mask_features}


def report(title: str, ratios: dict[str, float]) -> None:
    print(f"\n{title}: difference as a multiple of the official model's own rounding noise")
    for name, ratio in ratios.items():
        print(f"  {name:28s} {ratio:7.2f}")


@pytest.mark.parametrize(
    "name, golden_name, rules, backbone",
    [
        ("maskformer_fapn_resnet101_cocostuff10k", "maskformer_fapn_r101_cocostuff10k", MASKFORMER, RESNET),
        ("maskformer_fpn_resnet50_ade20k", "maskformer_fpn_r50_ade20k", MASKFORMER_FPN, RESNET),
        ("maskformer_fapn_swin_l_ade20k", "maskformer_fapn_swinl_ade20k", MASKFORMER, SWIN),
        ("perpixel_fapn_resnet50_ade20k", "perpixel_fapn_r50_ade20k", MASKFORMER, RESNET),
    ],
)
def test_official_model(name, golden_name, rules, backbone):
    golden = Golden(golden_name)
    model = fapn_zoo.create_model(name).eval()
    assert sum(p.numel() for p in model.parameters()) == golden.meta["n_parameters"]
    model.load_state_dict(rename(golden.state(), rules, backbone))
    outputs = record(pixel_decoder(model))
    x = golden.network_input()
    if name.startswith("maskformer"):
        model.head.deep_supervision = True
    with torch.no_grad():
        out = model(x)
        outputs |= {f"backbone.res{i + 2}": f for i, f in enumerate(model.backbone(x))}
    if name.startswith("maskformer"):
        outputs |= {"pred_logits": out.class_logits, "pred_masks": out.mask_logits}
        for layer in (0, 4):
            classes, masks = out.aux[layer]
            outputs |= {f"aux{layer}.pred_logits": classes, f"aux{layer}.pred_masks": masks}
    size = golden.meta["input"]["H_W"]["outputs.npz"]
    outputs["sem_seg"] = semantic_scores(out, tuple(size), tuple(size))[0]
    stored = set(golden.meta["outputs"]["outputs.npz"]) - {"sem_seg_argmax"}
    assert stored <= set(outputs), stored - set(outputs)
    report(name, {key: golden.check(key, outputs[key]) for key in sorted(stored)})


def test_official_detectron2_dialect():
    golden = Golden("pointrend_semantic_fapn_r50_cityscapes")
    model = fapn_zoo.create_model(
        "semantic_fpn_fapn_resnet50", num_classes=19, backbone_norm="frozen_bn", backbone_stride_in_1x1=True
    ).eval()
    model.load_state_dict(rename(golden.state(), DETECTRON2, RESNET, prefix="backbone.bottom_up."))
    neck = model.neck
    named = {f"fan_align{i + 2}": neck.align[i] for i in range(3)} | {"fan_align5": neck.top}
    named |= {f"fan_align{i + 2}.lateral_conv": neck.lateral[i] for i in range(3)}
    outputs = record(named)
    with torch.no_grad():
        features = model.backbone(golden.network_input())
        pyramid = model.neck(features)
        outputs |= {"coarse_logits": model.head(pyramid, features).logits}
    outputs |= {f"p{i + 2}": p for i, p in enumerate(pyramid)} | {f"res{i + 2}": f for i, f in enumerate(features)}
    report("detectron2 dialect", {key: golden.check(key, value) for key, value in outputs.items()})
