"""ResNets and Swins of the releases -> timm's (FACTS section 1). Templates go after the backbone's prefixes.

The norms of ResNets are frozen: four tensors each, and no count of batches. A stage of a Swin ends with its
downsampling there and begins with it here; the norms of its outputs are this package's own.
"""

from __future__ import annotations

_STAT = "{stat:weight|bias|running_mean|running_var}"

STAGES = [
    ("res{stage}.{block}.conv{conv}.weight", "layer{stage-1}.{block}.conv{conv}.weight"),
    ("res{stage}.{block}.conv{conv}.norm." + _STAT, "layer{stage-1}.{block}.bn{conv}.{stat}"),
    ("res{stage}.{block}.shortcut.weight", "layer{stage-1}.{block}.downsample.0.weight"),
    ("res{stage}.{block}.shortcut.norm." + _STAT, "layer{stage-1}.{block}.downsample.1.{stat}"),
]

# one 7x7 convolution
PLAIN_STEM = [("stem.conv1.weight", "conv1.weight"), ("stem.conv1.norm." + _STAT, "bn1.{stat}")]

# DeepLab's three 3x3 convolutions; timm keeps them and the first two norms in one sequence, with ReLUs between
DEEP_STEM = [
    ("stem.conv1.weight", "conv1.0.weight"),
    ("stem.conv1.norm." + _STAT, "conv1.1.{stat}"),
    ("stem.conv2.weight", "conv1.3.weight"),
    ("stem.conv2.norm." + _STAT, "conv1.4.{stat}"),
    ("stem.conv3.weight", "conv1.6.weight"),
    ("stem.conv3.norm." + _STAT, "bn1.{stat}"),
]

_THERE, _HERE = "layers.{stage}.blocks.{block}.", "body.layers_{stage}.blocks.{block}."

SWIN = [
    ("patch_embed.{part:proj|norm}.{what:weight|bias}", "body.patch_embed.{part}.{what}"),
    (_THERE + "norm{n:1..2}.{what:weight|bias}", _HERE + "norm{n}.{what}"),
    (_THERE + "attn.{part:qkv|proj}.{what:weight|bias}", _HERE + "attn.{part}.{what}"),
    (_THERE + "attn.relative_position_bias_table", _HERE + "attn.relative_position_bias_table"),
    (_THERE + "mlp.fc{n:1..2}.{what:weight|bias}", _HERE + "mlp.fc{n}.{what}"),
    ("layers.{stage}.downsample.norm.{what:weight|bias}", "body.layers_{stage+1}.downsample.norm.{what}"),
    ("layers.{stage}.downsample.reduction.weight", "body.layers_{stage+1}.downsample.reduction.weight"),
    ("norm{level:0..3}.{what:weight|bias}", "norm{level}.{what}"),
]
