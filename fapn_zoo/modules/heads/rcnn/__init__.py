"""The two-stage family: regions are proposed, classified, refined and given masks."""

from fapn_zoo.modules.heads.rcnn.head import FasterRCNNHead, MaskRCNNHead
from fapn_zoo.modules.heads.rcnn.pointrend import PointRendRCNNHead

__all__ = ["FasterRCNNHead", "MaskRCNNHead", "PointRendRCNNHead"]
