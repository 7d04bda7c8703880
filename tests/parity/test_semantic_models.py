"""Backbones, necks, heads and final scores against outputs of the official code, for weights made by one rule.

Official state dicts reach the models through the converter's key maps. Every comparison is a row of the table that the
run ends with.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toys.golden_rule import NOISE_FACTOR, Golden, record

import fapn_zoo
from fapn_zoo.convert import to_zoo
from fapn_zoo.modules.deform_conv.conv import available_backends, deform_conv_backend
from fapn_zoo.postprocess import Frame
from fapn_zoo.postprocess.decoders import semantic_scores

pytestmark = pytest.mark.parity

MODELS = {
    "maskformer_fapn_resnet101_cocostuff10k": "maskformer_fapn_r101_cocostuff10k",
    "maskformer_fpn_resnet50_ade20k": "maskformer_fpn_r50_ade20k",
    "maskformer_fapn_swin_l_ade20k": "maskformer_fapn_swinl_ade20k",
    "perpixel_fapn_resnet50_ade20k": "perpixel_fapn_r50_ade20k",
}


def pixel_decoder(model: nn.Module) -> dict[str, nn.Module]:
    """Our modules by the official names of their outputs."""
    neck = model.neck
    named = {f"pd.adapter_{i + 1}": neck.lateral[i] for i in range(3)}
    named |= {f"pd.layer_{i + 1}": layer for i, layer in enumerate(neck.output)}
    if hasattr(neck, "align"):
        named |= {f"pd.align_{i + 1}": neck.align[i] for i in range(3)} | {"pd.layer_4": neck.top}
    return named | {"mask_features": model.head.mask_features}


def converted(name: str, golden: Golden, **kwargs) -> nn.Module:
    model = fapn_zoo.create_model(name, **kwargs).eval()
    model.load_state_dict(to_zoo(golden.state(), model.spec)[0])
    return model


def run(model: nn.Module, x: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """All that the official code's outputs are stored of, by their names, for a batch and the size of its image."""
    outputs = record(pixel_decoder(model))
    masks = hasattr(model.head, "deep_supervision")
    if masks:
        model.head.deep_supervision = True
    with torch.no_grad():
        out = model(x)
        outputs |= {f"backbone.res{i + 2}": f for i, f in enumerate(model.backbone(x))}
    if masks:
        outputs |= {"pred_logits": out.class_logits, "pred_masks": out.mask_logits}
        for layer in (0, 4):
            classes, logits = out.aux[layer]
            outputs |= {f"aux{layer}.pred_logits": classes, f"aux{layer}.pred_masks": logits}
    return outputs | {"sem_seg": semantic_scores(out, Frame(size, size))}


@pytest.mark.parametrize("name", MODELS)
def test_official_model(name, compare):
    golden = Golden(MODELS[name])
    model = converted(name, golden)
    assert sum(p.numel() for p in model.parameters()) == golden.meta["n_parameters"]
    outputs = run(model, golden.network_input(), tuple(golden.meta["input"]["H_W"]["outputs.npz"]))
    stored = set(golden.meta["outputs"]["outputs.npz"]) - {"sem_seg_argmax"}
    assert stored <= set(outputs), stored - set(outputs)
    compare(golden, {key: outputs[key] for key in sorted(stored)})


@pytest.mark.parametrize("size", [(250, 333), (97, 64), (33, 180)])
@pytest.mark.parametrize("name", MODELS)
def test_other_sizes(name, size):
    """Shapes follow the size, and torchvision's deformable convolution gives what ours does.

    Another implementation of the models without one, at other sizes too, is in test_transformers.py.
    """
    golden = Golden(MODELS[name])
    model = converted(name, golden)
    x = golden.network_input(size)
    outputs = run(model, x, size)
    for level in (2, 3, 4, 5):
        assert outputs[f"backbone.res{level}"].shape[2:] == tuple(-(-side // 2**level) for side in x.shape[2:])
    quarter = outputs["backbone.res2"].shape[2:]
    assert outputs["mask_features"].shape[2:] == outputs["pd.layer_1"].shape[2:] == quarter
    assert outputs["sem_seg"].shape == (model.num_classes, *size)
    assert all(output.isfinite().all() for output in outputs.values())
    if not hasattr(model.neck, "align"):
        return
    assert "numba" in available_backends()
    with deform_conv_backend("reference"):
        again = run(model, x, size)
    for key, output in outputs.items():
        if key in golden.meta["outputs"]["outputs.npz"]:
            difference = (output - again[key]).abs().max().item()
            assert difference <= NOISE_FACTOR * golden.noise(key), f"{key}: {difference:.3g}"


def test_official_detectron2_dialect(compare):
    """PointRend's pyramid and coarse head; its point head, which refines their result, is none of these models'."""
    golden = Golden("pointrend_semantic_fapn_r50_cityscapes")
    model = fapn_zoo.create_model(
        "semantic_fpn_fapn_resnet50", num_classes=19, backbone_norm="frozen_bn", backbone_stride_in_1x1=True
    ).eval()
    coarse = {
        key.replace(".coarse_sem_seg_head.", "."): value
        for key, value in golden.state().items()
        if not key.startswith("sem_seg_head.point_head.")
    }
    model.load_state_dict(to_zoo(coarse, model.spec)[0])
    neck = model.neck
    named = {f"fan_align{i + 2}": neck.align[i] for i in range(3)} | {"fan_align5": neck.top}
    named |= {f"fan_align{i + 2}.lateral_conv": neck.lateral[i] for i in range(3)}
    outputs = record(named)
    with torch.no_grad():
        features = model.backbone(golden.network_input())
        pyramid = model.neck(features)
        outputs |= {"coarse_logits": model.head(pyramid, features).logits}
    outputs |= {f"p{i + 2}": p for i, p in enumerate(pyramid)} | {f"res{i + 2}": f for i, f in enumerate(features)}
    compare(golden, outputs)
