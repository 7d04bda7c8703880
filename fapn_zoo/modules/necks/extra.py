"""Levels beyond the coarsest map, as a neck's `extra_blocks` makes them; built for the channels of the pyramid."""

from __future__ import annotations

from torch import Tensor, nn


class SubsampledLevel(nn.Module):
    """One more level: every second row and column of the coarsest (p6 of the R-CNN family; FACTS section 3)."""

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()

    def forward(self, results: list[Tensor], inputs: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """(N, C, H, W), the last of `results` -> another one (N, C, ceil(H / 2), ceil(W / 2)), called "pool"."""
        return [*results, results[-1][:, :, ::2, ::2]], [*names, "pool"]


class ConvolvedLevels(nn.Module):
    """Two more levels by 3x3 convolutions of stride 2: of the coarsest, and of that one's ReLU (FACTS section 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p6, self.p7 = (nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))
        for conv in (self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, results: list[Tensor], inputs: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """(N, C, H, W), the last of `results` -> "p6" (N, C, ceil(H / 2), ceil(W / 2)), and "p7", half of that."""
        p6 = self.p6(results[-1])
        return [*results, p6, self.p7(p6.relu())], [*names, "p6", "p7"]
