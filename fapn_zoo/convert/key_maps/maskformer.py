"""MaskFormer's pixel decoders and predictors (FACTS section 2). Templates are whole names.

Level 1 is the finest there, level 0 here.
"""

from __future__ import annotations

PIXEL_DECODER = [
    ("sem_seg_head.pixel_decoder.adapter_{level:1..3}.weight", "neck.lateral.{level-1}.conv.weight"),
    ("sem_seg_head.pixel_decoder.adapter_{level:1..3}.norm.{what:weight|bias}", "neck.lateral.{level-1}.norm.{what}"),
    ("sem_seg_head.pixel_decoder.mask_features.{what:weight|bias}", "head.mask_features.conv.{what}"),
]

# the coarsest level counts among the outputs
FPN = [
    ("sem_seg_head.pixel_decoder.layer_{level:1..4}.weight", "neck.output.{level-1}.conv.weight"),
    ("sem_seg_head.pixel_decoder.layer_{level:1..4}.norm.{what:weight|bias}", "neck.output.{level-1}.norm.{what}"),
]

FAPN = [
    ("sem_seg_head.pixel_decoder.layer_{level:1..3}.weight", "neck.output.{level-1}.conv.weight"),
    ("sem_seg_head.pixel_decoder.layer_{level:1..3}.norm.{what:weight|bias}", "neck.output.{level-1}.norm.{what}"),
    ("sem_seg_head.pixel_decoder.layer_4.weight", "neck.top.conv.weight"),
    ("sem_seg_head.pixel_decoder.layer_4.norm.{what:weight|bias}", "neck.top.norm.{what}"),
    ("sem_seg_head.pixel_decoder.align_{level:1..3}.offset.weight", "neck.align.{level-1}.guide.conv.weight"),
    ("sem_seg_head.pixel_decoder.align_{level:1..3}.dcpack_L2.{what:weight|bias}", "neck.align.{level-1}.dcn.{what}"),
    (
        "sem_seg_head.pixel_decoder.align_{level:1..3}.dcpack_L2.conv_offset_mask.{what:weight|bias}",
        "neck.align.{level-1}.dcn.offset_mask.{what}",
    ),
]

# a second name of one norm, with the same values
FAPN_ALIASES = [
    (
        "sem_seg_head.pixel_decoder.align_{level:1..3}.offset.norm.{what:weight|bias}",
        "sem_seg_head.pixel_decoder.layer_{level}.norm.{what}",
    )
]

PER_PIXEL = [("sem_seg_head.predictor.{what:weight|bias}", "head.predictor.{what}")]

TRANSFORMER = [
    ("sem_seg_head.predictor.input_proj.{what:weight|bias}", "head.decoder.input_proj.conv.{what}"),
    ("sem_seg_head.predictor.query_embed.weight", "head.decoder.query_embed.weight"),
    (
        "sem_seg_head.predictor.transformer.decoder.layers.{layer}.self_attn.in_proj_{what:weight|bias}",
        "head.decoder.layers.{layer}.self_attn.in_proj_{what}",
    ),
    (
        "sem_seg_head.predictor.transformer.decoder.layers.{layer}.self_attn.out_proj.{what:weight|bias}",
        "head.decoder.layers.{layer}.self_attn.out_proj.{what}",
    ),
    (
        "sem_seg_head.predictor.transformer.decoder.layers.{layer}.multihead_attn.in_proj_{what:weight|bias}",
        "head.decoder.layers.{layer}.cross_attn.in_proj_{what}",
    ),
    (
        "sem_seg_head.predictor.transformer.decoder.layers.{layer}.multihead_attn.out_proj.{what:weight|bias}",
        "head.decoder.layers.{layer}.cross_attn.out_proj.{what}",
    ),
    (
        "sem_seg_head.predictor.transformer.decoder.layers.{layer}.linear{n:1..2}.{what:weight|bias}",
        "head.decoder.layers.{layer}.linear{n}.{what}",
    ),
    (
        "sem_seg_head.predictor.transformer.decoder.layers.{layer}.norm{n:1..3}.{what:weight|bias}",
        "head.decoder.layers.{layer}.norm{n}.{what}",
    ),
    ("sem_seg_head.predictor.transformer.decoder.norm.{what:weight|bias}", "head.decoder.norm.{what}"),
    # activations between the linear layers count here
    ("sem_seg_head.predictor.mask_embed.layers.{layer}.{what:weight|bias}", "head.mask_embed.{2*layer}.{what}"),
]

CLASSES = [("sem_seg_head.predictor.class_embed.{what:weight|bias}", "head.class_embed.{what}")]
