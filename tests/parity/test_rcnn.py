"""Faster R-CNN and Panoptic FPN against stored outputs of the official code, and names in official checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys.golden_rule import NOISE_FACTOR, Golden, fill, record
from toys.merging import merged_full
from toys.official_names import to_official

import fapn_zoo
from fapn_zoo.convert import to_zoo
from fapn_zoo.convert.names import model_shapes
from fapn_zoo.modules.heads.outputs import SemanticOutput
from fapn_zoo.modules.layers.boxes import pool_boxes
from fapn_zoo.postprocess import Frame, decode
from fapn_zoo.postprocess.decoders import semantic_scores
from fapn_zoo.zoo.registry import get_spec

pytestmark = pytest.mark.parity
STORED = {
    "faster_rcnn_fapn_resnet50_coco": "faster_rcnn_fapn_r50_coco",
    "panoptic_fpn_fapn_resnet50_coco": "panoptic_fpn_fapn_r50_coco",
}
SETS = ("det_boxes", "det_scores", "det_classes")  # near-ties swap places, so these are compared as sets
MODELS = [
    f"{head}_{neck}_{backbone}_coco"
    for head in ("faster_rcnn", "mask_rcnn", "pointrend_rcnn", "panoptic_fpn")
    for neck in ("fapn", "fpn")
    for backbone in ("resnet50", "resnet101")
]


@pytest.fixture(scope="module", params=STORED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def golden(name: str) -> Golden:
    return Golden(STORED[name])


@pytest.fixture(scope="module")
def model(name: str, golden: Golden) -> torch.nn.Module:
    model = fapn_zoo.create_model(name).eval()
    model.load_state_dict(to_zoo(golden.state(), model.spec)[0])
    return model


@torch.no_grad()
def test_every_stored_tensor(model, golden, compare):
    assert sum(p.numel() for p in model.parameters()) == golden.meta["n_parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == golden.meta["n_trainable_parameters"]
    neck, head, size = model.neck, model.head, golden.meta["input"]["H_W"]["outputs.npz"]
    named = {f"fan_align{i + 2}": neck.align[i] for i in range(3)} | {"fan_align5": neck.top}
    named |= {f"fan_align{i + 2}.lateral_conv": neck.lateral[i] for i in range(3)}
    outputs, x = record(named), golden.network_input()
    features = model.backbone(x)
    pyramid = neck(features)
    logits, deltas = head.rpn(pyramid)
    outputs |= {f"res{i + 2}": f for i, f in enumerate(features)} | {f"p{i + 2}": p for i, p in enumerate(pyramid)}
    outputs |= {f"rpn.objectness.p{i + 2}": v for i, v in enumerate(logits)}
    outputs |= {f"rpn.deltas.p{i + 2}": v for i, v in enumerate(deltas)}
    fixed = pool_boxes(pyramid[:-1], [torch.tensor(golden.meta["fixed_boxes"])], head.box.side)
    outputs["box_pooled"] = fixed
    outputs["box_scores"], outputs["box_deltas"] = head.box(fixed)
    if hasattr(head, "mask"):
        outputs |= masks_and_stuff(model, pyramid, golden)
    hidden = torch.relu(head.box.fc2(torch.relu(head.box.fc1(fixed.flatten(1)))))
    outputs["box_head"] = hidden
    ((proposals, scores),) = head.rpn.choose(logits, deltas, [size])
    outputs |= {"proposals_top50": proposals[:50], "proposals_top50_logits": scores[:50]}
    compare(golden, outputs)

    with np.load(golden.folder / "outputs.npz") as stored:
        assert len(proposals) == stored["num_proposals"] and list(x.shape) == stored["padded_input_shape"].tolist()
        for level, found in enumerate(head.rpn.anchors(logits)):
            assert np.array_equal(found[:6].numpy(), stored[f"anchors_first6.p{level + 2}"])
        others = {"padded_input_shape", "num_proposals", "num_detections", "final_sem_seg_argmax", *SETS}
        others |= {name for name in stored.files if name.startswith("anchors")}
        assert set(stored.files) - others == set(outputs)


def masks_and_stuff(model: torch.nn.Module, pyramid: list[torch.Tensor], golden: Golden) -> dict[str, torch.Tensor]:
    """What Panoptic FPN makes beyond Faster R-CNN; the stored image is not padded and keeps its size."""
    head = model.head
    pooled = pool_boxes(pyramid[:-1], [torch.tensor(golden.meta["fixed_boxes"])], head.mask.side)
    logits = head.semantic(pyramid, ()).logits
    full = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    frame = Frame(tuple(full.shape[-2:]), tuple(full.shape[-2:]))
    stuff = SemanticOutput(logits)
    with np.load(golden.folder / "outputs.npz") as stored:
        found = decode(stuff, "semantic", frame, model.data).labels
        assert np.array_equal(found[::2, ::2].numpy(), stored["final_sem_seg_argmax"])
    return {
        "mask_pooled": pooled,
        "mask_logits": head.mask.predictor(head.mask.features(pooled)),
        "sem_seg_logits_stride4": logits,
        "sem_seg_logits_full": full,
        "final_sem_seg": semantic_scores(stuff, frame),
    }


@torch.no_grad()
def test_the_panoptic_map_is_that_of_its_parts(golden, model):
    """Nothing is stored of it: by the rule in full, from detections and map of which the stored ones are parts."""
    if model.spec.head != "panoptic_fpn":
        pytest.skip("Faster R-CNN has none")
    out, frame = model(golden.network_input(), torch.tensor([[256, 320]])), Frame((256, 320), (200, 300))
    options = {"score_threshold": 0.05, "stuff_area": 64}
    found = decode(out, "panoptic", frame, model.data, **options)
    parts = decode(out, "instance", frame, model.data, score_threshold=0.05)
    labels = decode(SemanticOutput(out.semantic_logits), "semantic", frame, model.data).labels
    classes, scores = zip(*((s.category_id, s.score) for s in parts.segments), strict=True)
    ids, segments = merged_full(parts.masks, classes, scores, labels, [-1, *range(80, 133)], **options)
    assert torch.equal(found.ids, ids) and len(segments) > 3 and {s[2] for s in segments} == {True, False}
    assert [(s.id, s.category_id, s.isthing, s.area) for s in found.segments] == segments


@torch.no_grad()
def test_detections_as_a_set(model, golden):
    size = golden.meta["input"]["H_W"]["outputs.npz"]
    found = model(golden.network_input(), torch.tensor([size]))
    boxes, scores, classes = (field[0] for field in found[:3])
    with np.load(golden.folder / "outputs.npz") as stored:
        assert len(boxes) == stored["num_detections"]
        theirs = [torch.from_numpy(stored[name]) for name in SETS]
    # boxes come from proposals, whose noise is known without swapped places
    apart = (boxes[None] - theirs[0][:, None]).abs().amax(2)
    apart = apart.masked_fill(classes[None] != theirs[2][:, None], torch.inf)
    distance, twin = apart.min(1)
    assert sorted(twin.tolist()) == list(range(len(theirs[0])))  # the best of ours are the best of theirs
    assert distance.max() <= NOISE_FACTOR * golden.noise("proposals_top50")
    assert (scores[twin] - theirs[1]).abs().max() <= NOISE_FACTOR * golden.noise("det_scores")


@torch.no_grad()
@pytest.mark.parametrize("size", [(250, 333), (97, 64)])
def test_other_sizes_stay_inside_the_image(model, golden, size):
    found = model(golden.network_input(size), torch.tensor([size]))
    boxes = found.boxes[0]
    assert len(boxes) and (boxes >= 0).all() and (boxes <= torch.tensor([*size[::-1], *size[::-1]])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all() and (found.scores[0] > 0.05).all()


def test_official_keys_are_those_of_the_release(name, golden):
    spec = get_spec(name)[0]
    assert to_official(model_shapes_as_tensors(name), spec).keys() == golden.keys.keys()


@pytest.mark.parametrize("each", MODELS)
def test_names_and_tensors_go_round(each):
    """To official names, filled by the rule there, to ours, and back: nothing is lost, doubled or changed."""
    spec = get_spec(each)[0]
    state = fill({key: tuple(t.shape) for key, t in to_official(model_shapes_as_tensors(each), spec).items()})
    extra = {"pixel_mean": torch.tensor(spec.data.mean), "pixel_std": torch.tensor(spec.data.std)}
    extra |= {f"proposal_generator.anchor_generator.cell_anchors.{i}": torch.zeros(3, 4) for i in range(5)}
    ours, dropped = to_zoo(state | extra, spec)
    assert dropped.keys() == extra.keys()
    back = to_official(ours, spec)
    assert back.keys() == state.keys() and all(torch.equal(back[key], value) for key, value in state.items())


def test_first_names_of_pointrend():
    """A file of the first version, told by its names alone, becomes the same tensors; both at once are refused."""
    name = "pointrend_rcnn_fpn_resnet50_coco"
    spec = get_spec(name)[0]
    new = to_official(model_shapes_as_tensors(name), spec)
    heads = {"mask_head.point_head": "mask_point_head", "mask_head.coarse_head.fc": "mask_coarse_head.coarse_mask_fc"}
    heads |= {"mask_head.coarse_head": "mask_coarse_head"}

    def older(key: str) -> str:
        return next((key.replace(now, then) for now, then in heads.items() if f".{now}" in key), key)

    old = {older(key): tensor for key, tensor in new.items()}
    assert {
        "roi_heads.mask_point_head.fc3.weight",
        "roi_heads.mask_point_head.predictor.bias",
        "roi_heads.mask_coarse_head.reduce_spatial_dim_conv.weight",
        "roi_heads.mask_coarse_head.coarse_mask_fc2.bias",
        "roi_heads.mask_coarse_head.prediction.weight",
    } <= old.keys() and len(old) == len(new)
    expected = {key: id(tensor) for key, tensor in to_zoo(new, spec)[0].items()}
    assert {key: id(tensor) for key, tensor in to_zoo(old, spec)[0].items()} == expected
    half = {k.replace("coarse_head.fc", "coarse_head.coarse_mask_fc"): v for k, v in new.items()}
    assert {key: id(tensor) for key, tensor in to_zoo(half, spec)[0].items()} == expected
    with pytest.raises(ValueError, match="are names of one tensor in two versions"):
        to_zoo(old | new, spec)


POINTREND_KEYS = {  # as FACTS section 3 gives them
    "coarse_head.reduce_spatial_dim_conv": (256, 256, 2, 2),
    "coarse_head.fc1": (1024, 12544),
    "coarse_head.fc2": (1024, 1024),
    "coarse_head.prediction": (3920, 1024),
    **{f"point_head.fc{n}": (256, 336, 1) for n in (1, 2, 3)},
    "point_head.predictor": (80, 336, 1),
}


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("pointrend")])
def test_pointrend_differs_from_faster_rcnn_by_its_mask_head(name):
    official, plain = (
        {key: tuple(t.shape) for key, t in to_official(model_shapes_as_tensors(n), get_spec(n)[0]).items()}
        for n in (name, name.replace("pointrend", "faster"))
    )
    masks = {f"roi_heads.mask_head.{layer}.weight": shape for layer, shape in POINTREND_KEYS.items()}
    masks |= {f"roi_heads.mask_head.{layer}.bias": shape[:1] for layer, shape in POINTREND_KEYS.items()}
    assert official == plain | masks


def model_shapes_as_tensors(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in model_shapes(get_spec(name)[0]).items()}
