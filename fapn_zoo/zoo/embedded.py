"""The models whose weights ship inside the package, and their FPN twins (trained the same way, not shipped)."""

from __future__ import annotations

from fapn_zoo._spec import DataSpec, ModelSpec

SMALL = {"neck_out_channels": 64, "neck_norm": "bn", "head_mask_channels": 0}

MODELS = [
    ModelSpec(
        name="perpixel_fapn_mobilenetv4_s_camvid", head="perpixel", neck="fapn", backbone="mobilenetv4_s",
        num_classes=11, args=SMALL | {"neck_select": "fsm", "neck_deform_groups": 4}, label_set="camvid",
        data=DataSpec(size_divisor=32),
    ),
    ModelSpec(
        name="perpixel_fpn_mobilenetv4_s_camvid", head="perpixel", neck="fpn", backbone="mobilenetv4_s",
        num_classes=11, args=SMALL, label_set="camvid", data=DataSpec(size_divisor=32),
    ),
]
