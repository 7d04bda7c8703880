"""Short backbone names and the timm models, with pretrained tags, that they stand for: no torch, no logic.

Every other timm model is reachable by its own timm name. The tag decides only which ImageNet weights
`pretrained=True` fetches; architectures are the same for all tags of one timm name.
"""

from __future__ import annotations

# The ResNets carry torchvision's first weights and the Swins Microsoft's, because the official recipes start from them.
BACKBONES: dict[str, str] = {
    "resnet10t": "resnet10t.c3_in1k",
    "resnet18": "resnet18.tv_in1k",
    "resnet26": "resnet26.bt_in1k",
    "resnet34": "resnet34.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    # Three 3x3 convolutions (64, 64, 128) instead of one 7x7 in the stem: what DeepLab and MaskFormer call R-50c and
    # R-101c. Those names are not used here, because timm has given them to a narrower stem (32, 32, 64).
    "resnet50s": "resnet50s.gluon_in1k",
    "resnet101s": "resnet101s.gluon_in1k",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in1k",
    "swin_b": "swin_base_patch4_window12_384.ms_in22k",
    "swin_l": "swin_large_patch4_window12_384.ms_in22k",
    # Apache-2.0, and to be had without the Hub: a file for `backbone_weights=` (docs/models.md).
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
    "efficientnet_lite1": "tf_efficientnet_lite1.in1k",
    "efficientnet_lite2": "tf_efficientnet_lite2.in1k",
    "mobilenetv4_s": "mobilenetv4_conv_small.e2400_r224_in1k",
    "mobilenetv4_m": "mobilenetv4_conv_medium.e500_r256_in1k",
    "convnextv2_a": "convnextv2_atto.fcmae_ft_in1k",
    "convnextv2_n": "convnextv2_nano.fcmae_ft_in22k_in1k",
    "convnextv2_t": "convnextv2_tiny.fcmae_ft_in22k_in1k",
    "convnextv2_b": "convnextv2_base.fcmae_ft_in22k_in1k",
    "convnextv2_l": "convnextv2_large.fcmae_ft_in22k_in1k",
}

# What rehearsing a timm architecture on the meta device finds (`fapn_zoo.modules.backbones`): the levels at strides 4
# to 32, and the divisor that images are padded to. Swins and deep ResNets take up to a second to rehearse, in every
# process; a test compares the table with the rehearsal. What is not listed is rehearsed.
REHEARSED: dict[str, tuple[tuple[int, ...], int]] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet101s"), ((1, 2, 3, 4), 1)),
    "swin_tiny_patch4_window7_224": ((0, 1, 2, 3), 4),
    "swin_small_patch4_window7_224": ((0, 1, 2, 3), 4),
    "swin_base_patch4_window12_384": ((0, 1, 2, 3), 4),
    "swin_large_patch4_window12_384": ((0, 1, 2, 3), 4),
}
