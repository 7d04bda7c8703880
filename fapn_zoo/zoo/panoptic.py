"""Panoptic models on COCO, with FaPN and FPN: detectron2's settings and the released checkpoints."""

from __future__ import annotations

from fapn_zoo.zoo.rcnn import ARGS, BACKBONES, DATA, weights_of
from fapn_zoo.zoo.spec import ModelSpec

_FILE = "COCO-PanopticSegmentation/panoptic_fpn_R"

# as `rcnn.RELEASE`
PANOPTIC_FPN_RELEASE = [
    (
        *("panoptic_fpn", "fpn", "resnet50", "3x"),
        *(f"{_FILE}_50_3x/139514569/model_final_c10459", {"PQ": 41.5, "box AP": 40.0, "AP": 36.5}),
    ),
    (
        *("panoptic_fpn", "fpn", "resnet50", "1x"),
        *(f"{_FILE}_50_1x/139514544/model_final_dbfeb4", {"PQ": 39.4, "box AP": 37.6, "AP": 34.7}),
    ),
    (
        *("panoptic_fpn", "fpn", "resnet101", "3x"),
        *(f"{_FILE}_101_3x/139514519/model_final_cafdb1", {"PQ": 43.0, "box AP": 42.4, "AP": 38.5}),
    ),
    (
        *("panoptic_fpn", "fapn", "resnet50", "1x", "1XNhvGGbfxTz_kU3VSjLQ5jrKQn_a_4dE"),
        {"PQ": 41.1, "PQ, things": 46.9, "PQ, stuff": 32.5, "box AP": 38.7},
    ),
    (
        *("panoptic_fpn", "fapn", "resnet101", "3x", "1buNmJEETxZmAnjhZCz4WqF5pSc9ezPow"),
        {"PQ": 44.2, "PQ, things": 53.3, "PQ, stuff": 35.0, "box AP": 43.0},
    ),
]

MODELS = [
    ModelSpec(
        name=f"panoptic_fpn_{neck}_{backbone}_coco",
        head="panoptic_fpn",
        neck=neck,
        backbone=backbone,
        num_classes=133,
        args=ARGS,
        label_set="coco_panoptic",
        data=DATA,
        weights=weights_of(PANOPTIC_FPN_RELEASE, "panoptic_fpn", neck, backbone),
        task="panoptic",
    )
    for neck in ("fapn", "fpn")
    for backbone in BACKBONES
]
