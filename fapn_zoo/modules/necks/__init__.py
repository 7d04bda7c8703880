"""Necks: maps from a backbone, fine to coarse, to maps of equal width, fine to coarse."""

from fapn_zoo.modules.necks.fapn import FaPN
from fapn_zoo.modules.necks.fpn import FPN, ConvolvedLevels, NoNeck, SubsampledLevel

__all__ = ["ConvolvedLevels", "FPN", "FaPN", "NoNeck", "SubsampledLevel"]
