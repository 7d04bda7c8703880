"""Models of the MaskFormer and FaPN papers, semantic and panoptic: settings of the official configs, and the released
checkpoints.

ResNets have frozen batch norms in all of them (FACTS section 1). The per-pixel baselines do not pad, because a bare
ResNet declares no size divisibility (FACTS section 2, padding quirk). `resnet101s` is the papers' R101c: DeepLab's
deep stem, and dilations 1, 2, 4 in the last stage.
"""

from __future__ import annotations

from fapn_zoo.zoo.spec import DataSpec, ModelSpec, WeightsSpec

# label set -> (classes, short and long side at test time, split that scores are reported on)
DATASETS = {
    "ade20k": (150, 512, 2048, "ADE20K val"),
    "cocostuff10k": (171, 640, 2560, "COCO-Stuff-10K test"),
    "ade20k_full": (847, 512, 2048, "ADE20K-Full val"),
    "cityscapes": (19, 1024, 2048, "Cityscapes val"),
    "mapillary_vistas": (65, 2048, 2048, "Mapillary Vistas val"),
}
# Swin-B and Swin-L see larger images on ADE20K.
TEST_SIZES = {("swin_b", "ade20k"): (640, 2560), ("swin_l", "ade20k"): (640, 2560)}
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the test size; every list of SCALES is this rule
# Multi-scale evaluation: (label set, short side at test time) -> short sides, limit of the long side (TEST.AUG)
SCALES = {
    ("ade20k", 512): ((256, 384, 512, 640, 768, 896), 3584),
    ("ade20k", 640): ((320, 480, 640, 800, 960, 1120), 4480),
    ("cocostuff10k", 640): ((320, 480, 640, 800, 960, 1120), 4480),
    ("cityscapes", 1024): ((512, 768, 1024, 1280, 1536, 1792), 4096),
}
# multi_grid is the official config's RES5_MULTI_GRID, which only the deep-stem ResNet reads.
BACKBONE_ARGS = {
    "resnet50": {"backbone_norm": "frozen_bn"},
    "resnet101": {"backbone_norm": "frozen_bn"},
    "resnet101s": {"backbone_norm": "frozen_bn", "backbone_multi_grid": (1, 2, 4)},
}

MASKFORMER_FILES = "https://dl.fbaipublicfiles.com/maskformer/{folder}/{run}/model_final_{md5}.pkl"
MASKFORMER = {
    "license": "cc-by-nc-4.0",
    "page": "https://github.com/facebookresearch/MaskFormer/blob/main/MODEL_ZOO.md",
    "note": "reported by the authors of MaskFormer",
}
FAPN = {
    "license": "none-stated",
    "page": "https://github.com/ShihuaHuang95/FaPN-full",
    "note": "reported by the authors of FaPN; their repository states no licence",
}

# head, backbone, label set, run and md5 of MASKFORMER_FILES, reported mIoU at one scale and (where given) at several
MASKFORMER_RELEASE = [
    ("perpixel", "resnet50", "ade20k", "per_pixel_baseline_R50_bs16_160k/1043f3", 39.2, 40.9),
    ("perpixel_plus", "resnet50", "ade20k", "per_pixel_baseline_plus_R50_bs16_160k/833630", 41.9, 42.9),
    ("maskformer", "resnet50", "ade20k", "maskformer_R50_bs16_160k/d8dbeb", 44.5, 46.7),
    ("maskformer", "resnet101", "ade20k", "maskformer_R101_bs16_160k/1aeb94", 45.5, 47.2),
    ("maskformer", "resnet101s", "ade20k", "maskformer_R101c_bs16_160k/b432ea", 46.0, 48.1),
    ("maskformer", "swin_t", "ade20k", "maskformer_swin_tiny_bs16_160k/8657a5", 46.7, 48.8),
    ("maskformer", "swin_s", "ade20k", "maskformer_swin_small_bs16_160k/528157", 49.8, 51.0),
    ("maskformer", "swin_b", "ade20k", "maskformer_swin_base_IN21k_384_bs16_160k_res640/45388b", 52.7, 53.9),
    ("maskformer", "swin_l", "ade20k", "maskformer_swin_large_IN21k_384_bs16_160k_res640/aefa3b", 54.1, 55.6),
    ("perpixel", "resnet50", "cocostuff10k", "per_pixel_baseline_R50_bs32_60k/275ab0", 32.4, 34.4),
    ("perpixel_plus", "resnet50", "cocostuff10k", "per_pixel_baseline_plus_R50_bs32_60k/1fa920", 34.2, 35.8),
    ("maskformer", "resnet50", "cocostuff10k", "maskformer_R50_bs32_60k/cb03eb", 37.1, 38.9),
    ("maskformer", "resnet101", "cocostuff10k", "maskformer_R101_bs32_60k/eb19bb", 38.1, 39.8),
    ("maskformer", "resnet101s", "cocostuff10k", "maskformer_R101c_bs32_60k/bffd25", 38.0, 39.3),
    ("perpixel", "resnet50", "ade20k_full", "per_pixel_baseline_R50_bs16_200k/9f66a9", 12.4, None),
    ("perpixel_plus", "resnet50", "ade20k_full", "per_pixel_baseline_plus_R50_bs16_200k/4d31f2", 13.9, None),
    ("maskformer", "resnet50", "ade20k_full", "maskformer_R50_bs16_200k/f4e3f6", 16.0, None),
    ("maskformer", "resnet101", "ade20k_full", "maskformer_R101_bs16_200k/88df33", 16.8, None),
    ("maskformer", "resnet101s", "ade20k_full", "maskformer_R101c_bs16_200k/75d34e", 17.4, None),
    ("maskformer", "resnet101", "cityscapes", "maskformer_R101_bs16_90k/38c00c", 78.5, 80.3),
    ("maskformer", "resnet101s", "cityscapes", "maskformer_R101c_bs16_90k/4f8ff9", 79.7, 81.4),
    ("maskformer", "resnet50", "mapillary_vistas", "maskformer_R50_bs16_300k/f3fc73", 53.1, 55.4),
]
# backbone, data set, run and md5, reported PQ
PANOPTIC_RELEASE = [
    ("resnet50", "coco_panoptic", "maskformer_panoptic_R50_bs64_554k/6f60dc", 46.5),
    ("resnet101", "coco_panoptic", "maskformer_panoptic_R101_bs64_554k/57b049", 47.6),
    ("swin_t", "coco_panoptic", "maskformer_panoptic_swin_tiny_bs64_554k/539394", 47.7),
    ("swin_s", "coco_panoptic", "maskformer_panoptic_swin_small_bs64_554k/5bf6b1", 49.7),
    ("swin_b", "coco_panoptic", "maskformer_panoptic_swin_base_IN21k_384_bs64_554k/4b7f49", 51.8),
    ("swin_l", "coco_panoptic", "maskformer_panoptic_swin_large_IN21k_384_bs64_554k/7505c4", 52.7),
    ("resnet50", "ade20k_panoptic", "maskformer_panoptic_R50_bs16_720k/7aa977", 34.7),
    ("resnet101", "ade20k_panoptic", "maskformer_panoptic_R101_bs16_720k/0b3cc8", 35.7),
]
# data set -> label set, classes, folder of the files, split, short and long side at test time, divisor of the sides,
# threshold of objects; COCO's images are not padded
PANOPTIC = {
    "coco_panoptic": ("coco_panoptic", 133, "panoptic-coco", "COCO val2017", (800, 1333, 1), 0.8),
    "ade20k_panoptic": ("ade20k", 150, "panoptic-ade20k", "ADE20K val", (640, 2560, 32), 0.7),
}
# Of ResNets a transformer encoder reads the coarsest map, and the queries read what it makes.
ENCODER_ARGS = {"encoder_layers": 6, "head_input_proj": False}
# head, backbone, label set, Google Drive id, reported mIoU at one scale and at several
FAPN_RELEASE = [
    ("maskformer", "swin_l", "ade20k", "1MGE6INbMhzXW6f9_eFejJtqlYEKYxTQM", 55.2, 56.7),
    ("maskformer", "resnet101", "cocostuff10k", "1UvK8XOwqfIrGVQGdT84bkehU72cHSeXO", 39.6, 40.6),
]
# Structures of the papers that nobody has released weights for: they make every head, neck and backbone comparable.
WITHOUT_WEIGHTS = [
    (head, neck, backbone, "ade20k")
    for head in ("maskformer", "perpixel")
    for neck in ("fapn", "fpn")
    for backbone in ("resnet50", "resnet101", "swin_t", "swin_s", "swin_b", "swin_l")
]


def _released(labels: str, location: str, single: float, several: float | None, **terms: str) -> dict[str, WeightsSpec]:
    split = DATASETS[labels][3]
    metrics = {f"{split} mIoU": single} | ({} if several is None else {f"{split} mIoU multi-scale": several})
    return {"paper": WeightsSpec("official", location, metrics=metrics, **terms)}


def _official_weights() -> dict[tuple[str, str, str, str], dict[str, WeightsSpec]]:
    """(head, neck, backbone, label set) -> the official weights."""
    table = {}
    for head, backbone, labels, file, *scores in MASKFORMER_RELEASE:
        folder = "coco-stuff-10k" if labels == "cocostuff10k" else labels.replace("_", "-")
        run, md5 = file.split("/")
        location = MASKFORMER_FILES.format(folder=f"semantic-{folder}", run=run, md5=md5)
        table[head, "fpn", backbone, labels] = _released(labels, location, *scores, **MASKFORMER)
    for head, backbone, labels, drive_id, *scores in FAPN_RELEASE:
        table[head, "fapn", backbone, labels] = _released(labels, f"gdrive:{drive_id}", *scores, **FAPN)
    return table


def _model(head: str, neck: str, backbone: str, labels: str, weights: dict[str, WeightsSpec]) -> ModelSpec:
    classes, short, long, _ = DATASETS[labels]
    short, long = TEST_SIZES.get((backbone, labels), (short, long))
    bare = head.startswith("perpixel") and backbone.startswith("resnet")
    return ModelSpec(
        name=f"{head}_{neck}_{backbone}_{labels}",
        head=head,
        neck=neck,
        backbone=backbone,
        num_classes=classes,
        args=BACKBONE_ARGS.get(backbone, {}),
        label_set=labels,
        data=DataSpec(test_size=short, test_max_size=long, size_divisor=1 if bare else 32),
        weights=weights,
    )


def _panoptic_model(backbone: str, data_set: str, file: str, score: float) -> ModelSpec:
    labels, classes, folder, split, (short, long, divisor), threshold = PANOPTIC[data_set]
    run, md5 = file.split("/")
    location = MASKFORMER_FILES.format(folder=folder, run=run, md5=md5)
    encoder = ENCODER_ARGS if backbone.startswith("resnet") else {}
    return ModelSpec(
        name=f"maskformer_fpn_{backbone}_{data_set}",
        head="maskformer",
        neck="fpn",
        backbone=backbone,
        num_classes=classes,
        args=BACKBONE_ARGS.get(backbone, {}) | encoder | {"head_object_threshold": threshold},
        label_set=labels,
        data=DataSpec(test_size=short, test_max_size=long, size_divisor=divisor),
        weights={"paper": WeightsSpec("official", location, metrics={f"{split} PQ": score}, **MASKFORMER)},
        task="panoptic",
    )


_WEIGHTS = _official_weights()
MODELS = [_model(*key, _WEIGHTS.get(key, {})) for key in dict.fromkeys([*_WEIGHTS, *WITHOUT_WEIGHTS])]
MODELS += [_panoptic_model(*row) for row in PANOPTIC_RELEASE]
