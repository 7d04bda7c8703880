"""torchvision's Faster and Mask R-CNN beside ours with equal random weights."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList

import fapn_zoo

# their names -> ours
NAMES = [
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral.\1.conv."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"neck.output.\1.conv."),
    (r"^rpn\.head\.conv\.0\.0\.", "head.rpn.conv."),
    (r"^rpn\.head\.cls_logits\.", "head.rpn.objectness."),
    (r"^rpn\.head\.bbox_pred\.", "head.rpn.deltas."),
    (r"^roi_heads\.box_head\.fc6\.", "head.box.fc1."),
    (r"^roi_heads\.box_head\.fc7\.", "head.box.fc2."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "head.box.scores."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "head.box.deltas."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.", r"head.mask.convs.\1."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "head.mask.deconv."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "head.mask.predictor."),
]
WITHOUT_BACKGROUND = {"head.box.deltas.": 4, "head.mask.predictor.": 1}  # rows of a class


def carried_over(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, value in theirs.items():
        for pattern, ours_name in NAMES:
            name = re.sub(pattern, ours_name, name)
        if name.startswith("head.box.scores."):
            value = torch.cat([value[1:], value[:1]])
        for start, rows in WITHOUT_BACKGROUND.items():
            value = value[rows:] if name.startswith(start) else value
        ours[name] = value
    return ours


def twins(
    kind: str, classes: int, size: tuple[int, int], seed: int = 3, backbone: str = "resnet50"
) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs with a ResNet and FPN, both in evaluation mode; `kind` is "faster_rcnn" or "mask_rcnn".

    Theirs takes images of values around 0 and this (height, width) as they are.
    """
    torch.manual_seed(seed)
    make = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}[kind]
    sides = {"min_size": min(size), "max_size": max(size), "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    body = resnet_fpn_backbone(backbone_name=backbone, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)
    theirs = make(body, num_classes=classes + 1, **sides).eval()
    spread(theirs, size)
    ours = fapn_zoo.create_model(f"{kind}_fpn", backbone=backbone, num_classes=classes).eval()
    ours.load_state_dict(carried_over(theirs.state_dict()))
    return ours, theirs


@torch.no_grad()
def spread(model: nn.Module, size: tuple[int, int]) -> None:
    """Scales the last layers so that their outputs have these deviations: neither all alike, nor saturated."""
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    maps, heads = model.backbone(x), model.roi_heads
    for layer, wanted in ((model.rpn.head.cls_logits, 1.5), (model.rpn.head.bbox_pred, 0.3)):
        layer.weight *= wanted / torch.cat([layer(model.rpn.head.conv(m)).flatten() for m in maps.values()]).std()
    proposals, _ = model.rpn(ImageList(x, [size]), maps)
    hidden = heads.box_head(heads.box_roi_pool(maps, proposals, [size]))
    for layer, wanted in ((heads.box_predictor.cls_score, 1.5), (heads.box_predictor.bbox_pred, 1.5)):
        layer.weight *= wanted / layer(hidden).std()
    if heads.mask_roi_pool is not None:
        layer = heads.mask_predictor.mask_fcn_logits
        pooled = heads.mask_roi_pool(maps, [proposals[0][:20]], [size])
        layer.weight *= 2 / heads.mask_predictor(heads.mask_head(pooled)).std()
