"""Models of the MaskFormer and FaPN papers on ADE20K and COCO-Stuff-10K, with the settings of the official configs.

ResNets have frozen batch norms in all of them (FACTS section 1). The per-pixel baseline pads only for Swin, because a
bare ResNet declares no size divisibility (FACTS section 2, padding quirk).
"""

from __future__ import annotations

from fapn_zoo._spec import DataSpec, ModelSpec

# backbone -> (constructor arguments, short and long side at test time on ADE20K)
ADE20K_BACKBONES = {
    "resnet50": ({"backbone_norm": "frozen_bn"}, 512, 2048),
    "resnet101": ({"backbone_norm": "frozen_bn"}, 512, 2048),
    "swin_t": ({}, 512, 2048),
    "swin_s": ({}, 512, 2048),
    "swin_b": ({}, 640, 2560),
    "swin_l": ({}, 640, 2560),
}

MODELS = [
    ModelSpec(
        name=f"{head}_{neck}_{backbone}_ade20k", head=head, neck=neck, backbone=backbone, num_classes=150, args=args,
        label_set="ade20k",
        data=DataSpec(
            test_size=short, test_max_size=long,
            size_divisor=1 if head == "perpixel" and backbone.startswith("resnet") else 32,
        ),
    )
    for head in ("maskformer", "perpixel")
    for neck in ("fapn", "fpn")
    for backbone, (args, short, long) in ADE20K_BACKBONES.items()
] + [
    ModelSpec(
        name="maskformer_fapn_resnet101_cocostuff10k", head="maskformer", neck="fapn", backbone="resnet101",
        num_classes=171, args={"backbone_norm": "frozen_bn"}, label_set="cocostuff10k",
        data=DataSpec(test_size=640, test_max_size=2560, size_divisor=32),
    ),
]
