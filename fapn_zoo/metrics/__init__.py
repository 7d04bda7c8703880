"""Accumulators that add up over images, merge over processes, and end in one table of numbers."""

from __future__ import annotations

from fapn_zoo.metrics.boundary import BoundaryBands, BoundaryFScore, BoundaryIoU
from fapn_zoo.metrics.detection import AveragePrecision
from fapn_zoo.metrics.panoptic import PanopticQuality
from fapn_zoo.metrics.semantic import ConfusionMatrix

__all__ = ["AveragePrecision", "BoundaryBands", "BoundaryFScore", "BoundaryIoU", "ConfusionMatrix", "PanopticQuality"]
