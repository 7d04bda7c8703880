"""PointRend on Cityscapes: the FaPN paper's models, their FPN twins, and the rows of its ablation table.

Settings are those of the official configs (FACTS section 3): ResNets with frozen norms whose stride is in the 1x1,
BGR images that are not divided by a deviation, padded to multiples of 32.
"""

from __future__ import annotations

from typing import NamedTuple

from fapn_zoo.zoo.official import DATASETS, FAPN
from fapn_zoo.zoo.spec import DataSpec, ModelSpec, WeightsSpec

CAFFE_MEAN = (103.53, 116.28, 123.675)  # BGR


class AblationRow(NamedTuple):
    """A row of the paper's ablation table: its name and millions of parameters as printed, and how it is read here."""

    row: str
    printed: float
    neck: str
    backbone: str
    reading: str


# The ablations' code was not released: only the first two rows and the last are certain (FACTS section 5).
ABLATION = (
    AblationRow("FPN", 28.6, "fpn", "resnet50", "the official model"),
    AblationRow("FPN, R101", 47.6, "fpn", "resnet101", "the official model"),
    AblationRow(
        "FPN + extra 3x3", 33.4, "fpn_extra3x3", "resnet50",
        "chosen: two more 3x3 convolutions on every level; four of 512 to 256 channels would print the same",
    ),
    AblationRow(
        "FPN + FAM", 31.7, "fam", "resnet50",
        "chosen: plain 1x1 laterals with bias, and no output convolution on the coarsest level, which would make 32.3",
    ),
    AblationRow(
        "FPN + FAM + SE", 33.1, "fam_se", "resnet50", "chosen: feature selection without its skip, channels not reduced"
    ),
    AblationRow(
        "FPN + deconv + FSM", 32.7, "deconv_fsm", "resnet50",
        "no reading fits: transposed 4x4 convolutions come nearest, 3x3 make 31.2, a fourth output convolution 33.15",
    ),
    AblationRow(
        "FPN + FAM' + FSM", 32.7, "fam_noref_fsm", "resnet50",
        "chosen: offsets read from the coarse map alone, an ordinary DCNv2 without the 1x1 convolution of both maps",
    ),
    AblationRow("FaPN", 33.1, "fapn", "resnet50", "the official model"),
)  # fmt: skip

POINTREND = {
    "license": "none-stated",
    "page": "https://github.com/facebookresearch/detectron2/tree/main/projects/PointRend",
    "note": "reported by the authors of PointRend; their page states no licence for its files",
}
POINTREND_FILES = "https://dl.fbaipublicfiles.com/detectron2/PointRend/SemanticSegmentation/"
# neck, backbone -> location, reported mIoU, terms
RELEASE = {
    ("fapn", "resnet50"): ("gdrive:1R6af03eqnUufmYl7cf-eixbI_En8WN-8", 80.0, FAPN),
    ("fapn", "resnet101"): ("gdrive:1JSg9hweCIYZOhSceZAeF6CcbqIAiLKfr", 80.1, FAPN),
    ("fpn", "resnet101"): (
        f"{POINTREND_FILES}pointrend_semantic_R_101_FPN_1x_cityscapes/202576688/model_final_cf6ac1.pkl",
        78.9,
        POINTREND,
    ),
}


def _weights(neck: str, backbone: str) -> dict[str, WeightsSpec]:
    if (neck, backbone) not in RELEASE:
        return {}
    location, score, terms = RELEASE[neck, backbone]
    return {"paper": WeightsSpec("official", location, metrics={"Cityscapes val mIoU": score}, **terms)}


def _model(neck: str, backbone: str) -> ModelSpec:
    classes, short, long, _ = DATASETS["cityscapes"]
    images = {"mean": CAFFE_MEAN, "std": (1.0, 1.0, 1.0), "channel_order": "bgr"}
    return ModelSpec(
        name=f"pointrend_{neck}_{backbone}_cityscapes",
        head="pointrend",
        neck=neck,
        backbone=backbone,
        num_classes=classes,
        args={"backbone_norm": "frozen_bn", "backbone_stride_in_1x1": True},
        label_set="cityscapes",
        data=DataSpec(test_size=short, test_max_size=long, size_divisor=32, **images),
        weights=_weights(neck, backbone),
    )


_NAMED = [("fapn", "resnet50"), ("fapn", "resnet101"), *((row.neck, row.backbone) for row in ABLATION)]
MODELS = [_model(*parts) for parts in dict.fromkeys(_NAMED)]
