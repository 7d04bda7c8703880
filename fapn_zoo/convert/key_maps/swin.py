"""The segmentation Swin -> timm's (FACTS section 1). Templates go after the prefix `backbone.` on both sides.

A stage ends with its downsampling there and begins with it here. The norms of the outputs are this package's own.
"""

from __future__ import annotations

BACKBONE = [
    ("patch_embed.{part:proj|norm}.{what:weight|bias}", "body.patch_embed.{part}.{what}"),
    (
        "layers.{stage}.blocks.{block}.norm{n:1..2}.{what:weight|bias}",
        "body.layers_{stage}.blocks.{block}.norm{n}.{what}",
    ),
    (
        "layers.{stage}.blocks.{block}.attn.{part:qkv|proj}.{what:weight|bias}",
        "body.layers_{stage}.blocks.{block}.attn.{part}.{what}",
    ),
    (
        "layers.{stage}.blocks.{block}.attn.relative_position_bias_table",
        "body.layers_{stage}.blocks.{block}.attn.relative_position_bias_table",
    ),
    (
        "layers.{stage}.blocks.{block}.mlp.fc{n:1..2}.{what:weight|bias}",
        "body.layers_{stage}.blocks.{block}.mlp.fc{n}.{what}",
    ),
    ("layers.{stage}.downsample.norm.{what:weight|bias}", "body.layers_{stage+1}.downsample.norm.{what}"),
    ("layers.{stage}.downsample.reduction.weight", "body.layers_{stage+1}.downsample.reduction.weight"),
    ("norm{level:0..3}.{what:weight|bias}", "norm{level}.{what}"),
]
