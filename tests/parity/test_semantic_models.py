"""Backbones, necks, heads and final scores against outputs of the official code, for weights made by one rule.

Official state dicts reach the models through the converter's key maps. Every comparison is a row of the table that the
run ends with.
"""

from __future__ import annotations

import numpy as np
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


def run_pointrend(model: nn.Module, x: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """The same of a PointRend; `point_head_on_16x20_grid` is its point head on a regular grid over the map."""
    neck, head = model.neck, model.head
    named = {f"fan_align{i + 2}": neck.align[i] for i in range(3)} | {"fan_align5": neck.top}
    named |= {f"fan_align{i + 2}.lateral_conv": neck.lateral[i] for i in range(3)}
    outputs = record(named | {"coarse_logits": head.coarse})
    rows, columns = torch.meshgrid((torch.arange(16) + 0.5) / 16, (torch.arange(20) + 0.5) / 20, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1).view(1, -1, 2)
    with torch.no_grad():
        out = model(x)
        features = model.backbone(x)
        pyramid = neck(features)
        coarse = outputs["coarse_logits"] = outputs["coarse_logits"].logits
        outputs["point_head_on_16x20_grid"] = head.at(grid, coarse, pyramid[0])
    outputs |= {f"p{i + 2}": p for i, p in enumerate(pyramid)} | {f"res{i + 2}": f for i, f in enumerate(features)}
    scores = semantic_scores(out, Frame(size, size))
    return outputs | {"refined_logits_padded": out.logits, "final_sem_seg": scores}


def test_official_pointrend(compare):
    """All that is stored; p6, which no semantic head reads, is every second value of p5."""
    golden = Golden("pointrend_semantic_fapn_r50_cityscapes")
    model = converted("pointrend_fapn_resnet50_cityscapes", golden)
    assert sum(p.numel() for p in model.parameters()) == golden.meta["n_parameters"]
    size = tuple(golden.meta["input"]["H_W"]["outputs.npz"])
    outputs = run_pointrend(model, golden.network_input(), size)
    outputs["p6"] = outputs["p5"][..., ::2, ::2]
    stored = set(golden.meta["outputs"]["outputs.npz"]) - {"padded_input_shape", "final_sem_seg_argmax"}
    assert stored <= set(outputs), stored - set(outputs)
    compare(golden, {key: outputs[key] for key in sorted(stored)})
    with np.load(golden.folder / "outputs.npz") as arrays:
        assert tuple(arrays["padded_input_shape"]) == tuple(golden.network_input().shape)
        best = outputs["final_sem_seg"].argmax(0)[::2, ::2]
        assert (best.numpy() == arrays["final_sem_seg_argmax"]).all()


@pytest.mark.parametrize("size", [(250, 333), (97, 64), (33, 180)])
def test_pointrend_at_other_sizes(size):
    golden = Golden("pointrend_semantic_fapn_r50_cityscapes")
    model = converted("pointrend_fapn_resnet50_cityscapes", golden)
    x = golden.network_input(size)
    outputs = run_pointrend(model, x, size)
    assert outputs["refined_logits_padded"].shape == (1, 19, *x.shape[2:])
    assert outputs["final_sem_seg"].shape == (19, *size)
    assert torch.equal(outputs["final_sem_seg"], outputs["refined_logits_padded"][0, :, : size[0], : size[1]])
