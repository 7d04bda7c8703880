"""FaPN against FPN under one recipe: CamVid's train split, small crops, an ImageNet backbone.

    fapn-zoo train recipes/claim/recipe.py data=CAMVID backbone_weights=FILE model=semantic_fpn_fapn seed=0
    python hub/train_all.py recipes/claim/detectron2.json --out OUT data=CAMVID backbone_weights=FILE

CAMVID is a folder with {train,val,test}/{images,labels} (480x360, 11 classes). The test split is scored once, by the
second line, which trains and compares all rows of a dialect (detectron2.json, maskformer.json). docs/models.md says
where FILE comes from.
"""

from __future__ import annotations

from fapn_zoo.train.settings import Settings


def recipe() -> Settings:
    return Settings(
        model="semantic_fpn_fapn",
        backbone="efficientnet_lite0",
        model_args={"neck_out_channels": 128},
        val_data="none",
        test_size=240,
        crop=(176, 224),
        scale=(0.45, 0.95),
        steps=900,
        batch_size=8,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.01,
        warmup_steps=30,
        clip_norm=1.0,
        cache=True,
        channels_last=True,
        amp="no",
        threads=1,
        checkpoint_every=300,
        out="runs/claim",
    )
