"""Trains a detector on a folder with COCO's instance json; small enough for an evening on a CPU.

    fapn-zoo train finetune_objects data=DIR                             # boxes: Faster R-CNN
    fapn-zoo train finetune_objects data=DIR model=mask_rcnn_fpn         # boxes and masks: Mask R-CNN
    fapn-zoo train finetune_objects data=DIR pretrained_backbone=true    # from ImageNet weights, which want a network
    fapn-zoo train finetune_objects data=DIR backbone_weights=FILE       # the same from a file, see docs/models.md

DIR is what a labelling tool exports: `annotations_train.json` and `annotations_val.json`, or another of the layouts in
docs/own-data.md. Objects much smaller or larger than 30 to 500 pixels want other anchors, such as
`model_args.head_anchor_sides=16,32,64,128,256`. The result is OUT/model with its scores on val in OUT/eval.json;
docs/own-data.md says what such runs reached on blood cells and nuclei.
"""

from __future__ import annotations

from fapn_zoo.train.settings import Settings


def recipe() -> Settings:
    return Settings(
        model="faster_rcnn_fpn",
        backbone="efficientnet_lite0",
        model_args={"neck_out_channels": 128, "head_hidden": 512, "head_region_samples": 128},
        test_size=0,
        crop=(256, 320),
        scale=(0.6, 1.2),
        steps=1500,
        batch_size=4,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.01,
        warmup_steps=50,
        clip_norm=5.0,
        channels_last=True,
        checkpoint_every=200,
        log_every=10,
        out="runs/objects",
    )
