"""The embedded model: CamVid's train and val splits with 100 generated scenes, from random weights, on a CPU.

    fapn-zoo train perpixel_fapn_resnet18_slim_camvid data=CAMVID,scenes:100 model_args.neck_init=official
    fapn-zoo train perpixel_fapn_resnet18_slim_camvid data=CAMVID,scenes:100 model=perpixel_fpn_resnet18_slim_camvid

The second line trains the FPN twin. CAMVID is a folder with {train,val,test}/{images,labels} (480x360, 11 classes);
the test split is never trained on and nothing was tuned on it. Half of the crops are drawn around a rare class.
"""

from __future__ import annotations

from fapn_zoo.train.settings import Settings


def recipe() -> Settings:
    return Settings(
        model="perpixel_fapn_resnet18_slim_camvid",
        offset_lr_mult=1.0,
        train_split="train+val",
        val_split="test",
        crop=(256, 320),
        scale=(0.5, 2.0),
        rare_classes=(2, 6, 7, 9, 10),
        rare_prob=0.5,
        steps=4500,
        batch_size=8,
        optimizer="adamw",
        lr=1.5e-3,
        weight_decay=0.05,
        decay_bias=False,
        warmup_steps=200,
        clip_norm=1.0,
        ema=0.998,
        amp="bf16",
        channels_last=True,
        threads=1,
        cache=True,
        checkpoint_every=250,
        out="runs/perpixel_fapn_resnet18_slim_camvid",
    )
