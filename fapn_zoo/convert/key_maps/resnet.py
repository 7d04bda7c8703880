"""Detectron2's ResNets -> timm's (FACTS section 1). Templates go after the prefixes `backbone.` or
`backbone.bottom_up.` there and `backbone.body.` here.

Their norms are frozen: four tensors each, and no count of batches.
"""

from __future__ import annotations

STAGES = [
    ("res{stage}.{block}.conv{conv}.weight", "layer{stage-1}.{block}.conv{conv}.weight"),
    (
        "res{stage}.{block}.conv{conv}.norm.{stat:weight|bias|running_mean|running_var}",
        "layer{stage-1}.{block}.bn{conv}.{stat}",
    ),
    ("res{stage}.{block}.shortcut.weight", "layer{stage-1}.{block}.downsample.0.weight"),
    (
        "res{stage}.{block}.shortcut.norm.{stat:weight|bias|running_mean|running_var}",
        "layer{stage-1}.{block}.downsample.1.{stat}",
    ),
]

# one 7x7 convolution
PLAIN_STEM = [
    ("stem.conv1.weight", "conv1.weight"),
    ("stem.conv1.norm.{stat:weight|bias|running_mean|running_var}", "bn1.{stat}"),
]

# DeepLab's three 3x3 convolutions; timm keeps them and the first two norms in one sequence, with ReLUs between
DEEP_STEM = [
    ("stem.conv1.weight", "conv1.0.weight"),
    ("stem.conv1.norm.{stat:weight|bias|running_mean|running_var}", "conv1.1.{stat}"),
    ("stem.conv2.weight", "conv1.3.weight"),
    ("stem.conv2.norm.{stat:weight|bias|running_mean|running_var}", "conv1.4.{stat}"),
    ("stem.conv3.weight", "conv1.6.weight"),
    ("stem.conv3.norm.{stat:weight|bias|running_mean|running_var}", "bn1.{stat}"),
]
