"""Trains on masks of a folder with COCO json files, as labelling tools export them; small enough for a CPU.

    fapn-zoo train finetune_instances data=DIR backbone_weights=FILE      # docs/models.md says where FILE is
    fapn-zoo train finetune_instances data=DIR crop=512 batch_size=8 steps=5000 lr=1e-3      # larger, on a GPU

Anchors are half as large as COCO's: for larger objects give `model_args.head_anchor_sides=32,64,128,256,512`. The norms
of the backbone are frozen, because a batch is small; without `backbone_weights` they should not be:
`model_args.backbone_norm=none`. A step takes 2.5 s on one thread of a CPU, and all of them an hour. The result is
OUT/model, with the scores on the val split in OUT/eval.json.
"""

from __future__ import annotations

from fapn_zoo.train.settings import Settings

SMALL = {"neck_out_channels": 128, "head_hidden": 256, "head_mask_hidden": 64}


def recipe() -> Settings:
    return Settings(
        model="mask_rcnn_fapn",
        backbone="efficientnet_lite0",
        model_args=SMALL | {"backbone_norm": "frozen_bn", "head_anchor_sides": (16, 32, 64, 128, 256)},
        crop=(256, 256),
        scale=(0.6, 1.6),
        steps=1500,
        batch_size=4,
        optimizer="adamw",
        lr=5e-4,
        backbone_lr_mult=0.3,
        weight_decay=0.01,
        schedule="cosine",
        warmup_steps=100,
        clip_norm=5.0,
        cache=True,
        checkpoint_every=250,
        out="runs/finetune_instances",
    )
