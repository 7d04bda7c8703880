"""Accumulators that add up over images, merge over processes, and end in one table of numbers."""

from __future__ import annotations

from fapn_zoo.metrics.semantic import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
