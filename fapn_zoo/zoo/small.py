"""Small per-pixel models, classified without further layers: for speed, and the one that ships in the package."""

from __future__ import annotations

from fapn_zoo.zoo.spec import DataSpec, ModelSpec, WeightsSpec

SMALL = {"neck_norm": "bn", "head_mask_channels": 0}
FAPN = SMALL | {"neck_select": "fsm", "neck_deform_groups": 4}
REALTIME = {"neck_out_channels": 128} | FAPN
# ResNet-18 with narrower stages, so that half-precision weights stay below 8 MB. There are no ImageNet weights of that
# shape: the embedded model and its FPN twin (trained the same way, not shipped) start from random values.
SLIM = {"backbone_channels": (48, 96, 160, 240), "neck_out_channels": 64}

# Scores and training are in the folder's own config.json and card, and in hub/results/semantic.csv.
CAMVID = WeightsSpec(
    source="embedded",
    location="perpixel_fapn_resnet18_slim_camvid",
    license="cc-by-nc-4.0",
    sha256="953145ef9572bbf39f306bad909536799a9faf48286e80b275b3a2fd6aab3108",
    note="CamVid train and val, and generated scenes",
)

MODELS = [
    ModelSpec(
        name=f"perpixel_{neck}_{backbone}_{labels}",
        head="perpixel",
        neck=neck,
        backbone=backbone.removesuffix("_slim"),
        num_classes=num_classes,
        args=args,
        label_set=labels,
        data=DataSpec(test_size=short, test_max_size=long, size_divisor=32),
        weights=weights,
    )
    for neck, backbone, labels, num_classes, short, long, args, weights in [
        ("fapn", "resnet18", "cityscapes", 19, 512, 1024, REALTIME, {}),
        ("fapn", "resnet34", "cityscapes", 19, 1024, 2048, REALTIME, {}),
        ("fapn", "resnet18", "cocostuff10k", 171, 640, 640, REALTIME, {}),
        ("fapn", "resnet34", "cocostuff10k", 171, 640, 640, REALTIME, {}),
        ("fapn", "resnet18_slim", "camvid", 11, None, None, SLIM | FAPN, {"zoo": CAMVID}),
        ("fpn", "resnet18_slim", "camvid", 11, None, None, SLIM | SMALL, {}),
    ]
]
