"""Levels beyond the coarsest map, as a neck's `extra_blocks` makes them."""

from __future__ import annotations

from torch import Tensor, nn


class SubsampledLevel(nn.Module):
    """One more level: every second row and column of the coarsest (p6 of the R-CNN family; FACTS section 3)."""

    def forward(self, results: list[Tensor], inputs: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """(N, C, H, W), the last of `results` -> another one (N, C, ceil(H / 2), ceil(W / 2)), called "pool"."""
        return [*results, results[-1][:, :, ::2, ::2]], [*names, "pool"]
