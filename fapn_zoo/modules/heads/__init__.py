"""Heads: from a neck's pyramid and the backbone's features to raw outputs."""

from fapn_zoo.modules.heads.maskformer import MaskFormerHead, PerPixelPlusHead
from fapn_zoo.modules.heads.panoptic_fcn import PanopticFCNHead
from fapn_zoo.modules.heads.per_pixel import PerPixelHead, SemanticFPNHead
from fapn_zoo.modules.heads.pointrend import PointRendHead

__all__ = ["MaskFormerHead", "PanopticFCNHead", "PerPixelHead", "PerPixelPlusHead", "PointRendHead", "SemanticFPNHead"]
