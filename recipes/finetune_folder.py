"""Fine-tunes a model on a folder of pictures and label images.

    fapn-zoo train finetune_folder data=DIR                      # DIR/{train,val}/{images,labels}/NAME.*, classes.json
    fapn-zoo train finetune_folder data=DIR model=perpixel_fapn_resnet50 pretrained_backbone=true steps=5000

The defaults are small enough for a try on a CPU: about two minutes on two cores for a data set of 240x320 pictures.
`classes.json` names the classes; without it give num_classes=K. The result is OUT/model, ready for
`create_model("local-dir:OUT/model")`, with the scores on the val split in OUT/eval.json.
"""

from __future__ import annotations

from fapn_zoo.train.settings import Settings


def recipe() -> Settings:
    return Settings(
        model="perpixel_fapn",
        backbone="resnet18",
        data="",
        crop=(256, 320),
        scale=(0.5, 2.0),
        steps=150,
        batch_size=8,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=0.01,
        warmup_steps=20,
        clip_norm=1.0,
        checkpoint_every=50,
        log_every=10,
        cache=True,
        out="runs/finetune",
    )
