"""Training: settings, parameter groups, checkpoints, and one loop that reads top to bottom."""

from __future__ import annotations

from fapn_zoo.train.settings import Settings, load_recipe, parse_overrides

__all__ = ["Settings", "load_recipe", "parse_overrides"]
