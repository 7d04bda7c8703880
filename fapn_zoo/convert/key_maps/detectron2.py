"""Detectron2's FPN and FAN necks, its semantic FPN and PointRend heads and its two-stage heads (FACTS section 3).

Levels are called by the logarithm of their stride there (2 to 5) and counted from 0 here.
"""

from __future__ import annotations

from fapn_zoo.convert.key_maps.template import below

FPN = [
    ("backbone.fpn_lateral{level:2..5}.{what:weight|bias}", "neck.lateral.{level-2}.conv.{what}"),
    ("backbone.fpn_output{level:2..5}.{what:weight|bias}", "neck.output.{level-2}.conv.{what}"),
]

_ALIGN = "backbone.fan_align{level:2..4}."
FAN = [
    (_ALIGN + "lateral_conv.conv_atten.weight", "neck.lateral.{level-2}.gate.conv.weight"),
    (_ALIGN + "lateral_conv.conv.weight", "neck.lateral.{level-2}.reduce.conv.weight"),
    (_ALIGN + "offset.weight", "neck.align.{level-2}.guide.conv.weight"),
    (_ALIGN + "dcpack_L2.{what:weight|bias}", "neck.align.{level-2}.dcn.{what}"),
    (_ALIGN + "dcpack_L2.conv_offset_mask.{what:weight|bias}", "neck.align.{level-2}.dcn.offset_mask.{what}"),
    ("backbone.fan_align5.{what:weight|bias}", "neck.top.{what}"),
    ("backbone.fpn_output{level:2..4}.{what:weight|bias}", "neck.output.{level-2}.conv.{what}"),
]

# convolutions take every other place there, with upsamplers between them
_SEMANTIC_FPN = [
    ("p{level:2..5}.{2*step}.weight", "branches.{level-2}.{step}.conv.weight"),
    ("p{level:2..5}.{2*step}.norm.{what:weight|bias}", "branches.{level-2}.{step}.norm.{what}"),
    ("predictor.{what:weight|bias}", "predictor.{what}"),
]
SEMANTIC_FPN = below("sem_seg_head.", "head.", _SEMANTIC_FPN)

_POINTS = [
    ("fc{layer}.{what:weight|bias}", "layers.{layer-1}.{what}"),
    ("predictor.{what:weight|bias}", "predictor.{what}"),
]
POINTREND = below("sem_seg_head.coarse_sem_seg_head.", "head.coarse.", _SEMANTIC_FPN) + below(
    "sem_seg_head.point_head.", "head.points.", _POINTS
)

_RPN, _ROI = "proposal_generator.rpn_head.", "roi_heads."
FASTER_RCNN = [
    (_RPN + "conv.{what:weight|bias}", "head.rpn.conv.{what}"),
    (_RPN + "objectness_logits.{what:weight|bias}", "head.rpn.objectness.{what}"),
    (_RPN + "anchor_deltas.{what:weight|bias}", "head.rpn.deltas.{what}"),
    (_ROI + "box_head.fc{n:1..2}.{what:weight|bias}", "head.box.fc{n}.{what}"),
    (_ROI + "box_predictor.cls_score.{what:weight|bias}", "head.box.scores.{what}"),
    (_ROI + "box_predictor.bbox_pred.{what:weight|bias}", "head.box.deltas.{what}"),
]
MASKS = [
    (_ROI + "mask_head.mask_fcn{n:1..4}.{what:weight|bias}", "head.mask.convs.{n-1}.{what}"),
    (_ROI + "mask_head.{layer:deconv|predictor}.{what:weight|bias}", "head.mask.{layer}.{what}"),
]
_COARSE = [
    ("reduce_spatial_dim_conv.{what:weight|bias}", "reduce.{what}"),
    ("fc{n:1..2}.{what:weight|bias}", "fc{n}.{what}"),
    ("prediction.{what:weight|bias}", "prediction.{what}"),
]
POINTREND_RCNN = below(_ROI + "mask_head.coarse_head.", "head.mask.", _COARSE) + below(
    _ROI + "mask_head.point_head.", "head.mask.points.", _POINTS
)
# what names of PointRend began with before its second version (FACTS section 1)
FIRST_VERSION = {
    _ROI + "mask_point_head.": _ROI + "mask_head.point_head.",
    _ROI + "mask_coarse_head.coarse_mask_fc": _ROI + "mask_head.coarse_head.fc",
    _ROI + "mask_head.coarse_head.coarse_mask_fc": _ROI + "mask_head.coarse_head.fc",
    _ROI + "mask_coarse_head.": _ROI + "mask_head.coarse_head.",
}
PANOPTIC_FPN = FASTER_RCNN + MASKS + below("sem_seg_head.", "head.semantic.", _SEMANTIC_FPN)

EXTRA_CONVS = [("backbone.top_block.{level:p6|p7}.{what:weight|bias}", "neck.extra_blocks.{level}.{what}")]
_DEFORMED = [
    ("offset_mask_conv.{what:weight|bias}", "conv.offset_mask.{what}"),
    ("dcnv2.weight", "conv.weight"),
    ("dcnv2.norm.{what:weight|bias}", "norm.{what}"),
]
_POSITION, _KERNEL = "position_head.position_head.position_head_head_", "kernel_head.kernel_head.kernel_head_head_"
_ENCODER = "feature_encoder.encode_head.encode_head_head_"
PANOPTIC_FCN = [
    *below("semantic_fpn.", "head.semantic.", _SEMANTIC_FPN[:2]),
    *below(_POSITION + "{layer:1..3}.", "head.position.layers.{layer-1}.", _DEFORMED),
    ("position_head.out_inst.{what:weight|bias}", "head.position.centres.{what}"),
    ("position_head.out_sem.{what:weight|bias}", "head.position.regions.{what}"),
    (_KERNEL + "{layer:1..3}.weight", "head.kernels.{layer-1}.conv.weight"),
    (_KERNEL + "{layer:1..3}.norm.{what:weight|bias}", "head.kernels.{layer-1}.norm.{what}"),
    ("kernel_head.out_conv.{what:weight|bias}", "head.kernel_out.{what}"),
    (_ENCODER + "{layer:1..3}.{what:weight|bias}", "head.encoder.{layer-1}.conv.{what}"),
    ("{kind:thing|stuff}_generator.embed_extractor.{what:weight|bias}", "head.{kind}_embed.{what}"),
]
