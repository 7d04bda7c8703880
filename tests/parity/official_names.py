"""Official parameter names -> ours, for the golden models of semantic segmentation."""

from __future__ import annotations

import re

from torch import Tensor

RESNET = [
    (r"stem\.conv1\.norm\.", r"bn1."),
    (r"stem\.conv1\.", r"conv1."),
    (r"res(\d)\.", lambda m: f"layer{int(m[1]) - 1}."),
    (r"conv(\d)\.norm\.", r"bn\1."),
    (r"shortcut\.norm\.", r"downsample.1."),
    (r"shortcut\.", r"downsample.0."),
]
SWIN = [
    (r"layers\.(\d)\.downsample\.", lambda m: f"layers_{int(m[1]) + 1}.downsample."),
    (r"layers\.(\d)\.", r"layers_\1."),
]
MASKFORMER = [
    (r"^sem_seg_head\.pixel_decoder\.mask_features\.", r"head.mask_features.conv."),
    (r"^sem_seg_head\.pixel_decoder\.layer_4\.norm\.", r"neck.top.norm."),
    (r"^sem_seg_head\.pixel_decoder\.layer_4\.", r"neck.top.conv."),
    (r"^sem_seg_head\.pixel_decoder\.align_(\d)\.offset\.", lambda m: f"neck.align.{int(m[1]) - 1}.guide.conv."),
    (r"^sem_seg_head\.pixel_decoder\.align_(\d)\.dcpack_L2\.", lambda m: f"neck.align.{int(m[1]) - 1}.dcn."),
    (r"^sem_seg_head\.pixel_decoder\.adapter_(\d)\.norm\.", lambda m: f"neck.lateral.{int(m[1]) - 1}.norm."),
    (r"^sem_seg_head\.pixel_decoder\.adapter_(\d)\.", lambda m: f"neck.lateral.{int(m[1]) - 1}.conv."),
    (r"^sem_seg_head\.pixel_decoder\.layer_(\d)\.norm\.", lambda m: f"neck.output.{int(m[1]) - 1}.norm."),
    (r"^sem_seg_head\.pixel_decoder\.layer_(\d)\.", lambda m: f"neck.output.{int(m[1]) - 1}.conv."),
    (r"conv_offset_mask\.", r"offset_mask."),
    (r"^sem_seg_head\.predictor\.transformer\.decoder\.", r"head.decoder."),
    (r"multihead_attn", r"cross_attn"),
    (r"^sem_seg_head\.predictor\.query_embed\.", r"head.decoder.query_embed."),
    (r"^sem_seg_head\.predictor\.input_proj\.", r"head.decoder.input_proj.conv."),
    (r"^sem_seg_head\.predictor\.class_embed\.", r"head.class_embed."),
    (r"^sem_seg_head\.predictor\.mask_embed\.layers\.(\d)\.", lambda m: f"head.mask_embed.{2 * int(m[1])}."),
    (r"^sem_seg_head\.predictor\.(weight|bias)$", r"head.predictor.\1"),
]
# MaskFormer's FPN has no alignment and counts the coarsest level among the outputs.
MASKFORMER_FPN = [(r"^sem_seg_head\.pixel_decoder\.layer_4\.norm\.", r"neck.output.3.norm."),
                  (r"^sem_seg_head\.pixel_decoder\.layer_4\.", r"neck.output.3.conv."), *MASKFORMER]
DETECTRON2 = [
    (r"^backbone\.fan_align5\.", r"neck.top."),
    (r"^backbone\.fan_align(\d)\.lateral_conv\.conv_atten\.", lambda m: f"neck.lateral.{int(m[1]) - 2}.gate.conv."),
    (r"^backbone\.fan_align(\d)\.lateral_conv\.conv\.", lambda m: f"neck.lateral.{int(m[1]) - 2}.reduce.conv."),
    (r"^backbone\.fan_align(\d)\.offset\.", lambda m: f"neck.align.{int(m[1]) - 2}.guide.conv."),
    (r"^backbone\.fan_align(\d)\.dcpack_L2\.", lambda m: f"neck.align.{int(m[1]) - 2}.dcn."),
    (r"conv_offset_mask\.", r"offset_mask."),
    (r"^backbone\.fpn_output(\d)\.", lambda m: f"neck.output.{int(m[1]) - 2}.conv."),
    (r"^sem_seg_head\.coarse_sem_seg_head\.predictor\.", r"head.predictor."),
    (r"^sem_seg_head\.coarse_sem_seg_head\.p(\d)\.(\d)\.norm\.",
     lambda m: f"head.branches.{int(m[1]) - 2}.{int(m[2]) // 2}.norm."),
    (r"^sem_seg_head\.coarse_sem_seg_head\.p(\d)\.(\d)\.",
     lambda m: f"head.branches.{int(m[1]) - 2}.{int(m[2]) // 2}.conv."),
]
DROPPED = re.compile(r"criterion\.|relative_position_index|align_\d\.offset\.norm\.|sem_seg_head\.point_head\.")


def rename(state: dict[str, Tensor], rules: list, backbone: list, prefix: str = "backbone.") -> dict[str, Tensor]:
    """Our names for an official state dict; ``prefix`` is that of its backbone."""
    renamed = {}
    for key, value in state.items():
        if DROPPED.search(key):
            continue
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if key.startswith(prefix):
            inner = key.removeprefix(prefix)
            for pattern, replacement in backbone:
                inner = re.sub(pattern, replacement, inner)
            # the norms of Swin's outputs are the backbone's own, everything else is timm's
            key = f"backbone.{inner}" if re.match(r"norm\d\.", inner) else f"backbone.body.{inner}"
        assert key not in renamed, key
        renamed[key] = value
    return renamed
