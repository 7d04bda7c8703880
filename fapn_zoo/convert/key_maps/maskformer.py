"""MaskFormer's pixel decoders and predictors (FACTS section 2).

Level 1 is the finest there, level 0 here.
"""

from __future__ import annotations

from fapn_zoo.convert.key_maps.template import below

_DECODER, _PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."

_SHARED = [
    ("adapter_{level:1..3}.weight", "neck.lateral.{level-1}.conv.weight"),
    ("adapter_{level:1..3}.norm.{what:weight|bias}", "neck.lateral.{level-1}.norm.{what}"),
    ("mask_features.{what:weight|bias}", "head.mask_features.conv.{what}"),
]
# the coarsest level counts among the outputs
_OUTPUTS = [
    ("layer_{level:1..4}.weight", "neck.output.{level-1}.conv.weight"),
    ("layer_{level:1..4}.norm.{what:weight|bias}", "neck.output.{level-1}.norm.{what}"),
]
_ALIGNED = [
    ("layer_{level:1..3}.weight", "neck.output.{level-1}.conv.weight"),
    ("layer_{level:1..3}.norm.{what:weight|bias}", "neck.output.{level-1}.norm.{what}"),
    ("layer_4.weight", "neck.top.conv.weight"),
    ("layer_4.norm.{what:weight|bias}", "neck.top.norm.{what}"),
    ("align_{level:1..3}.offset.weight", "neck.align.{level-1}.guide.conv.weight"),
    ("align_{level:1..3}.dcpack_L2.{what:weight|bias}", "neck.align.{level-1}.dcn.{what}"),
    ("align_{level:1..3}.dcpack_L2.conv_offset_mask.{what:weight|bias}", "neck.align.{level-1}.dcn.offset_mask.{what}"),
]
FPN, FAPN = (below(_DECODER, "", _SHARED + pairs) for pairs in (_OUTPUTS, _ALIGNED))
# a second name of one norm, with the same values
FAPN_ALIASES = below(
    _DECODER, _DECODER, [("align_{level:1..3}.offset.norm.{what:weight|bias}", "layer_{level}.norm.{what}")]
)

PER_PIXEL = below(_PREDICTOR, "head.", [("{what:weight|bias}", "predictor.{what}")])

_LAYER = [
    ("self_attn.in_proj_{what:weight|bias}", "self_attn.in_proj_{what}"),
    ("self_attn.out_proj.{what:weight|bias}", "self_attn.out_proj.{what}"),
    ("multihead_attn.in_proj_{what:weight|bias}", "cross_attn.in_proj_{what}"),
    ("multihead_attn.out_proj.{what:weight|bias}", "cross_attn.out_proj.{what}"),
    ("linear{n:1..2}.{what:weight|bias}", "linear{n}.{what}"),
    ("norm{n:1..3}.{what:weight|bias}", "norm{n}.{what}"),
]
_QUERIES = [
    ("input_proj.{what:weight|bias}", "decoder.input_proj.conv.{what}"),
    ("query_embed.weight", "decoder.query_embed.weight"),
    *below("transformer.decoder.layers.{layer}.", "decoder.layers.{layer}.", _LAYER),
    ("transformer.decoder.norm.{what:weight|bias}", "decoder.norm.{what}"),
    # activations between the linear layers count here
    ("mask_embed.layers.{layer}.{what:weight|bias}", "mask_embed.{2*layer}.{what}"),
]
TRANSFORMER = below(_PREDICTOR, "head.", _QUERIES)
# between the backbone and the pyramid; only some panoptic models have it
_ENCODED = [pair for pair in _LAYER if not pair[0].startswith("multihead_attn")]
_ENCODER = [
    ("input_proj.{what:weight|bias}", "input_proj.conv.{what}"),
    *below("transformer.encoder.layers.{layer}.", "layers.{layer}.", _ENCODED),
]
ENCODER = below(_DECODER, "encoder.", _ENCODER)
CLASSES = below(_PREDICTOR, "head.", [("class_embed.{what:weight|bias}", "class_embed.{what}")])
