"""Panoptic FCN on COCO, with FaPN and FPN: the settings of the official configs and the released checkpoints.

Images are BGR, yet the mean that is subtracted is in the order of RGB, as in the official models (FACTS section 4). The
models called 600 are trained and tested on smaller images.
"""

from __future__ import annotations

import dataclasses

from fapn_zoo.zoo.rcnn import ARGS, DATA, FAPN
from fapn_zoo.zoo.spec import IMAGENET_MEAN, ModelSpec, WeightsSpec

PANOPTIC_FCN = {
    "license": "apache-2.0",
    "page": "https://github.com/dvlab-research/PanopticFCN",
    "note": "reported by the authors of Panoptic FCN for their faster thresholds, which are used here; the licence is "
    "that of their repository, which says nothing apart of its weights",
}
# what a name adds for its images -> short and long side at test time, positions of an object in training
SIZES = {"": (800, 1333, 7), "_600": (600, 1000, 5)}
_SCORES = ("PQ", "box AP", "PQ, things", "PQ, stuff")

# neck, size, schedule, Google Drive id, reported scores; the first of a model is its default
RELEASE = [
    ("fapn", "", "1x", "1r3OlzCityLm9hhcXpoDAcfF6g4t4Qro1", (41.8, 32.3, 47.6, 33.1)),
    ("fapn", "_600", "3x", "1RIlPN1fvdQ95Yytjs-cir-FCWTSeUx2E", (43.5, 34.5, 49.0, 35.1)),
    ("fpn", "", "3x", "18Re3keEkIiy7EVS-uFCNPBfT1BfT8Ng3", (43.6,)),
    ("fpn", "", "1x", "1tD1A5Zwbtri5OejlIz9MLKwzOzjtIMHQ", (41.1,)),
    ("fpn", "_600", "3x", "1gIUxy1DJ_V91IwL5_jHQDMOIgHoWn_O1", (42.7,)),
]


def _weights(neck: str, size: str) -> dict[str, WeightsSpec]:
    """Schedule -> the released weights of a model."""
    found = {}
    for *model, schedule, drive_id, scores in RELEASE:
        if model == [neck, size]:
            metrics = {f"COCO val2017 {name}": value for name, value in zip(_SCORES, scores, strict=False)}
            terms = FAPN if neck == "fapn" else PANOPTIC_FCN
            found[schedule] = WeightsSpec("official", f"gdrive:{drive_id}", metrics=metrics, **terms)
    return found


def _model(neck: str, size: str) -> ModelSpec:
    short, long, positions = SIZES[size]
    return ModelSpec(
        name=f"panoptic_fcn_{neck}_resnet50{size}_coco",
        head="panoptic_fcn",
        neck=neck,
        backbone="resnet50",
        num_classes=133,
        args=ARGS | {"head_positions": positions},
        label_set="coco_panoptic",
        data=dataclasses.replace(DATA, mean=IMAGENET_MEAN, test_size=short, test_max_size=long),
        weights=_weights(neck, size),
        task="panoptic",
    )


MODELS = [_model(neck, size) for neck in ("fapn", "fpn") for size in SIZES]
