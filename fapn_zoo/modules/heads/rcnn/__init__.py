"""The two-stage family: regions are proposed, classified, refined and given masks."""

from fapn_zoo.modules.heads.rcnn.head import FasterRCNNHead, MaskRCNNHead

__all__ = ["FasterRCNNHead", "MaskRCNNHead"]
