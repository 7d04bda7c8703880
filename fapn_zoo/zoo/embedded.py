"""The model whose weights ship inside the package, and its FPN twin (trained the same way, not shipped).

The backbone is ResNet-18 with narrower stages, so that half-precision weights stay below 8 MB. There are no ImageNet
weights of that shape: both start from random values.
"""

from __future__ import annotations

from fapn_zoo.zoo.spec import DataSpec, ModelSpec, WeightsSpec

SLIM = {"backbone_channels": (48, 96, 160, 240), "neck_out_channels": 64, "neck_norm": "bn", "head_mask_channels": 0}

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
        name=f"perpixel_{neck}_resnet18_slim_camvid",
        head="perpixel",
        neck=neck,
        backbone="resnet18",
        num_classes=11,
        args=SLIM | args,
        label_set="camvid",
        data=DataSpec(size_divisor=32),
        weights=weights,
    )
    for neck, args, weights in [
        ("fapn", {"neck_select": "fsm", "neck_deform_groups": 4}, {"zoo": CAMVID}),
        ("fpn", {}, {}),
    ]
]
