"""PointRend on Cityscapes: the FaPN paper's models, their FPN twins, and the rows of its ablation table.

Settings are those of the official configs (FACTS section 3): ResNets with frozen norms whose stride is in the 1x1,
BGR images without division, padded to multiples of 32. All are R50 but where the name says otherwise.

The ablation table by parameters (FACTS section 5). The code of the ablations was not released: only the rows of FPN
and FaPN are certain, the others are readings whose count fits.

| row, as printed | neck | reading | parameters |
|---|---|---|---|
| FPN, 28.6 M | `fpn` | the official model | 28,632,678 |
| FPN R101, 47.6 M | `fpn` | the official model | 47,572,582 |
| FPN + extra 3x3, 33.4 M | `fpn_extra3x3` | two more 3x3 per level (four of 512 channels fit too) | 33,353,318 |
| FPN + FAM, 31.7 M | `fam` | plain 1x1 laterals with bias, no output convolution on p5 | 31,699,694 |
| FPN + FAM + SE, 33.1 M | `fam_se` | selection without its skip, no reduction | 33,075,182 |
| FPN + FAM' + FSM, 32.7 M | `fam_noref_fsm` | offsets are read from the coarse map alone | 32,681,966 |
| FPN + deconv + FSM, 32.7 M | `deconv_fsm` | transposed 4x4; **no reading gives 32.7 M** | 32,564,582 |
| FaPN, 33.1 M | `fapn` | the official model | 33,075,182 |
"""

from __future__ import annotations

from fapn_zoo.zoo.official import DATASETS, FAPN
from fapn_zoo.zoo.spec import DataSpec, ModelSpec, WeightsSpec

CAFFE_MEAN = (103.53, 116.28, 123.675)  # BGR
ABLATION = ("fpn_extra3x3", "fam", "fam_se", "fam_noref_fsm", "deconv_fsm")

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


MODELS = [_model(neck, backbone) for neck in ("fapn", "fpn") for backbone in ("resnet50", "resnet101")]
MODELS += [_model(neck, "resnet50") for neck in ABLATION]
