"""Every registered model, tested by being registered: large ones on the meta device, small stand-ins for real numbers.

What a name's structure does is tested on its own head and neck with a small backbone of the same kind; what only the
name itself can get wrong (channels, counts, labels, arguments) is tested on the model it makes, without memory.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fapn_zoo
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.weights.folder import classifier_keys
from fapn_zoo.zoo.parts import HEADS, NECKS, load_part
from fapn_zoo.zoo.registry import get_spec

pytestmark = pytest.mark.unit

NAMED = [name for name in fapn_zoo.list_models() if get_spec(name)[0].backbone]
ARCHITECTURES = [name for name in fapn_zoo.list_models() if not get_spec(name)[0].backbone]
# structure (head, neck and their arguments) -> one name that has it
STRUCTURES = {
    (s.head, s.neck, tuple(sorted((k, str(v)) for k, v in s.args.items() if not k.startswith("backbone_")))): name
    for name in NAMED + ARCHITECTURES
    for s in [get_spec(name)[0]]
}
ODD_SIZES = [(250, 333), (97, 131), (64, 64)]


def small(name: str, **kwargs) -> nn.Module:
    """The structure of a name on a tiny backbone with narrow necks and heads."""
    spec = get_spec(name)[0]
    options = {"neck_out_channels": 32, "neck_deform_groups": 4}
    if "fpn" in spec.neck:
        del options["neck_deform_groups"]
    if spec.head in ("maskformer", "perpixel_plus"):
        options |= {"head_layers": 2, "head_channels": 32, "head_feedforward": 32}
    if spec.head == "maskformer":
        options |= {"head_num_queries": 7}
    if "encoder_layers" in spec.args:
        options |= {"encoder_channels": 32, "encoder_layers": 2, "encoder_feedforward": 32}
    if spec.head == "pointrend":
        options |= {"head_channels": 32, "head_point_channels": 32, "head_train_points": 64}
    if "rcnn" in spec.head or spec.head == "panoptic_fpn":
        options |= {"head_hidden": 32, "head_region_samples": 32}
    if spec.head == "panoptic_fpn":
        options |= {"things": (0, 4), "head_semantic_channels": 32}
    if spec.head == "panoptic_fcn":
        options |= {"head_channels": 32, "head_embed": 8, "things": (0, 3)}
    options |= {"backbone": "resnet10t", "num_classes": 5, "backbone_channels": (16, 24, 32, 48)}
    if spec.head == "eomt":
        options = {"backbone": "vit_tiny_patch16_224", "num_classes": 5, "backbone_depth": 6, "head_num_queries": 7}
        options |= {"backbone_embed_dim": 48}
    torch.manual_seed(0)
    return fapn_zoo.create_model(name, **(options | kwargs))


def places(output, height, width):
    """The size of the maps of an output for an image of this size."""
    return tuple(-(-side // 4) * 4 // output.stride for side in (height, width))


def two_boxes(height, width):
    """Targets of two images with one object each."""
    masks = torch.zeros(2, 1, height, width, dtype=torch.bool)
    masks[..., 10:50, 8:30] = True
    boxes = torch.tensor([[8.0, 10.0, 30.0, 50.0]])
    return Targets(classes=(torch.tensor([0]), torch.tensor([4])), masks=tuple(masks), boxes=(boxes, boxes))


def logits(output):
    if hasattr(output, "boxes"):
        return torch.cat(output.boxes)
    if hasattr(output, "centres"):
        return output.features
    return output.logits if hasattr(output, "logits") else output.mask_logits


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("changes", [{}, {"num_classes": 5, "in_chans": 4}], ids=["as named", "changed"])
def test_shapes_on_meta(name, changes):
    with torch.device("meta"):
        model = fapn_zoo.create_model(name, **changes).eval()
        x = torch.empty(2, changes.get("in_chans", 3), 97, 131)
        out = model(x)
    classes = changes.get("num_classes", get_spec(name)[0].num_classes)
    assert model.num_classes == classes
    if hasattr(out, "boxes"):
        things = len(model.data.things) or classes
        assert logits(out).shape == (200, 4) and model.head.box.scores.out_features == things + 1
        if hasattr(out, "semantic_logits"):
            assert out.semantic_logits.shape == (2, classes - things + 1, 25, 33)
    elif hasattr(out, "centres"):
        things = 5 if "num_classes" in changes else 80
        assert [x.shape[1] for x in out.centres] == [things] * 5 and out.features.shape[2:] == (25, 33)
        assert {x.shape[1] for x in out.regions} == {classes - things + 1}
    elif get_spec(name)[0].head == "eomt":
        side = get_spec(name)[0].data.test_size // 4  # they are of one size
        assert logits(out).shape[-2:] == (side, side) and model.head.class_embed.out_features == classes + 1
    elif get_spec(name)[0].head == "maskformer":
        assert logits(out).shape[-2:] == (25, 33) and model.head.class_embed.out_features == classes + 1
    else:
        assert logits(out).shape[1:] == (classes, *places(out, 97, 131))
    assert len(model.data.labels) == (0 if "num_classes" in changes else classes)
    assert len(model.data.mean) == len(model.data.std) == changes.get("in_chans", 3)
    assert model.data.size_divisor in (1, 32)


@pytest.mark.parametrize("name", [n for n in STRUCTURES.values() if HEADS[get_spec(n)[0].head].loss])
def test_forward_backward_odd_sizes(name):
    model = small(name).train()
    criterion = load_part(HEADS[model.spec.head].loss).of(model)
    for height, width in ODD_SIZES:
        targets = Targets(torch.randint(0, 5, (2, height, width)))
        targets.labels[:, :8] = 255
        two_stages = hasattr(model.head, "rpn")
        if two_stages:
            targets = dataclasses.replace(two_boxes(height, width), labels=targets.labels)
        out = model(torch.randn(2, 3, height, width), None, targets)
        if not two_stages:
            padded = out.covers if get_spec(name)[0].head == "eomt" else (height, width)
            assert out.stride == 4 and logits(out).shape[-2:] == places(out, *padded)
        criterion(out, targets)["loss"].backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent


@pytest.mark.parametrize("name", STRUCTURES.values())
def test_save_and_load(name, tmp_path):
    model = small(name).eval()
    x = torch.randn(1, 3, 64, 96)
    model.save(tmp_path / "m", license="apache-2.0")
    again = fapn_zoo.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert again.spec == dataclasses.replace(model.spec, weights={})  # a folder is one set of weights, not a table
    with torch.no_grad():
        assert torch.equal(logits(again(x)), logits(model(x)))


@pytest.mark.parametrize("name", STRUCTURES.values())
def test_adapting_a_saved_model(name, tmp_path):
    model = small(name)
    model.save(tmp_path)
    folder = f"local-dir:{tmp_path}"
    fewer = fapn_zoo.create_model(folder, pretrained=True, num_classes=3, in_chans=4)
    report = fewer.load_report
    assert sorted(report.fresh) == sorted(classifier_keys(model))
    assert len(report.adapted) == 1 and report.adapted[0].startswith("backbone.")
    kept = {k for k in model.state_dict() if k not in report.fresh + report.adapted}
    state = fewer.state_dict()
    assert all(torch.equal(state[k], model.state_dict()[k]) for k in kept)
    fewer(torch.randn(2, 4, 64, 64))


@pytest.mark.parametrize("name", [n for n in STRUCTURES.values() if n.startswith(("perpixel", "maskformer"))][:6])
def test_batch_does_not_mix_images(name):
    model = small(name).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(logits(model(x))[1:], logits(model(x[1:])), atol=1e-4)


PARAMETERS = {
    "maskformer_fapn_resnet50_ade20k": 44_911_839,
    "maskformer_fapn_resnet101_cocostuff10k": 63_857_140,
    "maskformer_fapn_swin_l_ade20k": 215_232_723,
    "maskformer_fpn_resnet50_ade20k": 41_254_743,
    "perpixel_fpn_resnet50_ade20k": 31_033_942,
    "perpixel_fapn_resnet50_ade20k": 34_691_038,
    "faster_rcnn_fapn_resnet50_coco": 46_142_440,
    # FACTS section 3: the plain neck has 3,344,384 parameters, FaPN's 7,786,888
    "faster_rcnn_fpn_resnet50_coco": 46_142_440 - 7_786_888 + 3_344_384,
    "panoptic_fcn_fapn_resnet50_coco": 41_442_015,
    "panoptic_fcn_fpn_resnet50_600_coco": 41_442_015 - 7_786_888 + 3_344_384,
    # by hand from the rows above: the transformer without its classifier, and a query per class instead of 100
    "perpixel_plus_fpn_resnet50_ade20k": 41_254_743 - (256 + 1) * 151 + 50 * 256,
}


@pytest.mark.parametrize("name, count", PARAMETERS.items())
def test_official_parameter_counts(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in fapn_zoo.create_model(name).parameters()) == count


# FACTS section 5, PointRend semantic on Cityscapes: parameters as counted there.
ABLATION = {
    ("fpn", "resnet50"): 28_632_678,
    ("fpn", "resnet101"): 47_572_582,
    ("fpn_extra3x3", "resnet50"): 33_353_318,
    ("fam", "resnet50"): 31_699_694,
    ("fam_se", "resnet50"): 33_075_182,
    ("fam_noref_fsm", "resnet50"): 32_681_966,
    ("fapn", "resnet50"): 33_075_182,
}


ROWS = json.loads((Path(__file__).resolve().parents[2] / "hub" / "results" / "ablation.json").read_text("utf-8"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["row"])
def test_ablation_parameter_counts(row):
    """The reading of a row has the parameters that are printed; of the row that no reading fits, this is said."""
    with torch.device("meta"):
        model = fapn_zoo.create_model(f"pointrend_{row['neck']}_{row['backbone']}_cityscapes")
    count = sum(p.numel() for p in model.parameters())
    if row["neck"] == "deconv_fsm":
        assert round(count / 1e6, 3) == 32.565 and "no reading fits" in row["reading"]
    else:
        assert count == ABLATION[row["neck"], row["backbone"]] and round(count / 1e6, 1) == row["printed"]


def test_every_neck_of_the_ablation_has_a_row():
    assert {row["neck"] for row in ROWS} == set(NECKS) - {"none"} and len(ROWS) == len(ABLATION) + 1


def test_compile_and_export():
    """One graph without breaks, and a program whose batch and size are free."""
    model = small("perpixel_fapn").eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(x).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x).logits
        assert torch.allclose(compiled, expected, atol=1e-5)
        dims = {
            0: torch.export.Dim("batch", min=1, max=8),
            2: 32 * torch.export.Dim("h", min=1, max=32),
            3: 32 * torch.export.Dim("w", min=1, max=32),
        }
        program = torch.export.export(model, (x,), dynamic_shapes=({**dims},))
        other = torch.randn(3, 3, 96, 64)
        assert torch.allclose(program.module()(other).logits, model(other).logits, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["maskformer_fapn", "semantic_fpn_fapn", "pointrend_fapn", "panoptic_fcn_fapn", "eomt_none"]
)
def test_exported_batches_are_free(name):
    """Of heads with queries, and of necks that treat single images in a way of their own."""
    model = small(name).eval()
    with torch.no_grad():
        dims = {0: torch.export.Dim("batch", max=8)}
        program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(dims,)).module()
        for count in (1, 3):
            x = torch.randn(count, 3, 64, 64)
            assert torch.allclose(logits(program(x)), logits(model(x)), atol=1e-4)


def test_maskformer_compiles():
    model = small("maskformer_fapn").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        out = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        assert torch.allclose(out.mask_logits, model(x).mask_logits, atol=1e-4)
