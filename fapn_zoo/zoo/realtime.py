"""Small per-pixel models for speed: a narrow FaPN with selection and batch norm, classified without further layers."""

from __future__ import annotations

from fapn_zoo.zoo.spec import DataSpec, ModelSpec

REALTIME = {
    "neck_out_channels": 128,
    "neck_select": "fsm",
    "neck_norm": "bn",
    "neck_deform_groups": 4,
    "head_mask_channels": 0,
}

MODELS = [
    ModelSpec(
        name=f"perpixel_fapn_{backbone}_{labels}",
        head="perpixel",
        neck="fapn",
        backbone=backbone,
        num_classes=num_classes,
        args=REALTIME,
        label_set=labels,
        data=DataSpec(test_size=short, test_max_size=long, size_divisor=32),
    )
    for backbone, labels, num_classes, short, long in [
        ("resnet18", "cityscapes", 19, 512, 1024),
        ("resnet34", "cityscapes", 19, 1024, 2048),
        ("resnet18", "cocostuff10k", 171, 640, 640),
        ("resnet34", "cocostuff10k", 171, 640, 640),
    ]
]
