"""Losses: (output, targets) -> a dict of scalars whose `"loss"` is the weighted total."""

from fapn_zoo.modules.losses.loss import Loss
from fapn_zoo.modules.losses.panoptic_fcn import PanopticFCNLoss
from fapn_zoo.modules.losses.per_pixel import PerPixelLoss, PointRendLoss
from fapn_zoo.modules.losses.rcnn import PanopticFPNLoss, RCNNLoss
from fapn_zoo.modules.losses.set_criterion import SetCriterion

__all__ = ["Loss", "PanopticFCNLoss", "PanopticFPNLoss", "PerPixelLoss", "PointRendLoss", "RCNNLoss", "SetCriterion"]
