"""Trains on a folder of pictures and label images; small enough for a try on a CPU.

    fapn-zoo train finetune_folder data=DIR                      # DIR/{train,val}/{images,labels}/NAME.*, classes.json
    fapn-zoo train finetune_folder data=DIR pretrained=true      # from the embedded street-scene weights, see below
    fapn-zoo train finetune_folder data=DIR model=perpixel_fapn_resnet50 pretrained_backbone=true crop=512 steps=5000

`classes.json` names the classes; without it give num_classes=K. The result is OUT/model, ready for
`create_model("local-dir:OUT/model", pretrained=True)`, with the scores on the val split in OUT/eval.json.

The first line starts from random weights and takes about two minutes on two free cores. On 40 generated scenes it
reached 35 mIoU on 20 others, the second line 61 (single runs, scenes of 240x320, seed 0). The second starts from
weights trained on CamVid and scenes, which are for non-commercial use (CC BY-NC 4.0), and so is what comes out of it; a
classifier for other classes than CamVid's eleven starts anew. The third starts from ImageNet weights and wants a GPU.
"""

from __future__ import annotations

from fapn_zoo.train.settings import Settings


def recipe() -> Settings:
    return Settings(
        model="perpixel_fapn_resnet18_slim_camvid",
        data="",
        crop=(256, 320),
        scale=(0.5, 2.0),
        steps=150,
        batch_size=8,
        optimizer="adamw",
        lr=1.5e-3,
        weight_decay=0.01,
        warmup_steps=20,
        clip_norm=1.0,
        channels_last=True,
        cache=True,
        checkpoint_every=50,
        log_every=10,
        out="runs/finetune",
    )
