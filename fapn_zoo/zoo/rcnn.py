"""Faster, Mask and PointRend R-CNN on COCO, with FaPN and FPN: detectron2's settings and the released checkpoints.

Input is BGR and not divided by a deviation, norms are frozen, strides are in the 1x1 convolutions (weights of the
original Caffe ResNets), and training leaves the stem and the first stage alone (FACTS section 3).
"""

from __future__ import annotations

from collections.abc import Iterable

from fapn_zoo.zoo.official import FAPN
from fapn_zoo.zoo.pointrend import POINTREND
from fapn_zoo.zoo.spec import DataSpec, ModelSpec, WeightsSpec

DATA = DataSpec(
    mean=(103.53, 116.28, 123.675),
    std=(1.0, 1.0, 1.0),
    channel_order="bgr",
    test_size=800,
    test_max_size=1333,
    size_divisor=32,
)
ARGS = {"backbone_norm": "frozen_bn", "backbone_stride_in_1x1": True, "backbone_frozen_stages": 1}
BACKBONES = ("resnet50", "resnet101")
# head -> its default task
HEADS = {"faster_rcnn": "detection", "mask_rcnn": "instance", "pointrend_rcnn": "instance"}

FILES = "https://dl.fbaipublicfiles.com/detectron2/{file}.pkl"
DETECTRON2 = {
    "license": "cc-by-sa-3.0",
    "page": "https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md",
    "note": "reported by the authors of detectron2",
}
_FASTER, _MASK = "COCO-Detection/faster_rcnn_R", "COCO-InstanceSegmentation/mask_rcnn_R"
_POINTREND = "PointRend/InstanceSegmentation/pointrend_rcnn_R"

# head, neck, backbone, schedule, file or Google Drive id, reported AP; the first of a model is its default
RELEASE = [
    ("faster_rcnn", "fpn", "resnet50", "3x", f"{_FASTER}_50_FPN_3x/137849458/model_final_280758", {"box AP": 40.2}),
    ("faster_rcnn", "fpn", "resnet50", "1x", f"{_FASTER}_50_FPN_1x/137257794/model_final_b275ba", {"box AP": 37.9}),
    ("faster_rcnn", "fpn", "resnet101", "3x", f"{_FASTER}_101_FPN_3x/137851257/model_final_f6e8b1", {"box AP": 42.0}),
    (
        *("mask_rcnn", "fpn", "resnet50", "3x"),
        *(f"{_MASK}_50_FPN_3x/137849600/model_final_f10217", {"AP": 37.2, "box AP": 41.0}),
    ),
    (
        *("mask_rcnn", "fpn", "resnet50", "1x"),
        *(f"{_MASK}_50_FPN_1x/137260431/model_final_a54504", {"AP": 35.2, "box AP": 38.6}),
    ),
    (
        *("mask_rcnn", "fpn", "resnet101", "3x"),
        *(f"{_MASK}_101_FPN_3x/138205316/model_final_a3ec72", {"AP": 38.6, "box AP": 42.9}),
    ),
    (
        *("pointrend_rcnn", "fpn", "resnet50", "3x"),
        *(f"{_POINTREND}_50_FPN_3x_coco/164955410/model_final_edd263", {"AP": 38.3}),
    ),
    (
        *("pointrend_rcnn", "fpn", "resnet50", "1x"),
        *(f"{_POINTREND}_50_FPN_1x_coco/164254221/model_final_736f5a", {"AP": 36.2}),
    ),
    (
        *("pointrend_rcnn", "fpn", "resnet101", "3x"),
        *(f"{_POINTREND}_101_FPN_3x_coco/28119983/model_final_3f4d2a", {"AP": 40.1}),
    ),
    (
        *("faster_rcnn", "fapn", "resnet50", "1x", "16bws3mM-itTMBZvbBoBaJIm8bW7jLrTl"),
        {"box AP": 39.2, "box AP small": 24.5, "box AP medium": 43.3, "box AP large": 49.1},
    ),
    (
        *("faster_rcnn", "fapn", "resnet101", "3x", "1KioARI3Be2LPG1MdIgiQeAL_KIlRXhNP"),
        {"box AP": 42.8, "box AP small": 27.0, "box AP medium": 46.2, "box AP large": 54.9},
    ),
    (
        *("mask_rcnn", "fapn", "resnet50", "1x", "1fNQw3v2d6C9BI3UF34iRqaWp2W48-Hl4"),
        {"AP": 36.4, "AP small": 18.1, "box AP": 39.8, "box AP small": 24.3},
    ),
    (
        *("mask_rcnn", "fapn", "resnet101", "3x", "1MMWu_Bj_nrgiXwACJArcUR5G0iKmVKRA"),
        {"AP": 39.4, "AP small": 20.9, "box AP": 43.8, "box AP small": 27.4},
    ),
    (
        *("pointrend_rcnn", "fapn", "resnet50", "1x", "1EHTQJ4F2RdPBiXno97SJyP2FDZz-roCY"),
        {"AP": 37.6, "AP small": 18.6, "box AP": 39.4, "box AP small": 24.2},
    ),
]


def weights_of(release: Iterable[tuple], head: str, neck: str, backbone: str) -> dict[str, WeightsSpec]:
    """Schedule -> the released weights of a model, of rows like those of `RELEASE`."""
    found = {}
    for *model, schedule, file, scores in release:
        if model == [head, neck, backbone]:
            theirs = POINTREND if head == "pointrend_rcnn" else DETECTRON2
            location, terms = (f"gdrive:{file}", FAPN) if neck == "fapn" else (FILES.format(file=file), theirs)
            metrics = {f"COCO val2017 {name}": value for name, value in scores.items()}
            found[schedule] = WeightsSpec("official", location, metrics=metrics, **terms)
    return found


MODELS = [
    ModelSpec(
        name=f"{head}_{neck}_{backbone}_coco",
        head=head,
        neck=neck,
        backbone=backbone,
        num_classes=80,
        args=ARGS,
        label_set="coco",
        data=DATA,
        weights=weights_of(RELEASE, head, neck, backbone),
        task=task,
    )
    for head, task in HEADS.items()
    for neck in ("fapn", "fpn")
    for backbone in BACKBONES
]
