"""A model and a data set whose exact answers are known at every size, mirrored or not, whole or in windows.

Pictures are ramps: red grows by one per picture width to the right, green per height downwards (both times a scale
that keeps them below 1). Resizing, mirroring and cutting out keep such values exact away from the borders, so a model
that compares them with thresholds finds class boundaries at known positions of the original, to a tenth of a pixel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fapn_zoo.data.images import load_image
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import LABELS, Sample
from fapn_zoo.modules.heads.outputs import SemanticOutput
from fapn_zoo.zoo.spec import DataSpec, ModelSpec

NAMES = tuple(f"{row}{column}" for row in "abcd" for column in "1234")
SLOPE = 0.5  # the ramps end here, so that a shift stays below 1
# Class boundaries, alternately a tenth of a pixel after and before a pixel's middle: a drift to either side shows.
ACROSS, DOWN = (17.6, 40.4, 64.6), (13.4, 29.6, 41.4)


def picture(size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) float32: red grows to the right, green downwards, blue is 1 (and 0 in the padding)."""
    rows, columns = ((np.arange(n) + 0.5) / n * SLOPE for n in size)
    green, red = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([red, green, np.ones(size)], axis=2).astype(np.float32)


def truth(size: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The class map (H, W) uint8: the grid moved down and to the right by ``shift`` pixels."""
    rows, columns = ((np.arange(n) + 0.5) - move for n, move in zip(size, shift, strict=True))
    return (len(DOWN) + 1) * np.searchsorted(DOWN, rows)[:, None].astype(np.uint8) + np.searchsorted(ACROSS, columns)


class Grid(nn.Module):
    """Class by position, from the colours; the answer is moved by ``shift`` pixels of the original picture.

    Maps have the given stride; what the image lacks to a multiple of it is repeated from its border.
    """

    def __init__(self, size: tuple[int, int], shift: tuple[int, int] = (0, 0), stride: int = 4, **data):
        super().__init__()
        plain = {"mean": (0.0,) * 3, "std": (255.0,) * 3, "labels": NAMES}
        self.spec = ModelSpec("perpixel_toy", "perpixel", "fpn", "toy", len(NAMES), data=DataSpec(**plain | data))
        self.num_classes = len(NAMES)
        self.stride = stride
        self.gain = nn.Parameter(torch.ones(()))
        axes = zip((DOWN, ACROSS), shift, size, strict=True)
        limits = [(np.array(line) + move) / length * SLOPE for line, move, length in axes]
        steps = torch.arange(len(DOWN) + 1.0)
        # straight lines of slopes 0, 1, 2, ... that cross where they should
        self.lines = [(steps, torch.tensor([0.0, *np.cumsum(limit)])) for limit in limits]
        self.inputs: list[tuple[int, ...]] = []

    @property
    def data(self) -> DataSpec:
        return self.spec.data

    def forward(self, x: torch.Tensor, sizes: object = None, targets: object = None) -> SemanticOutput:
        self.inputs.append(tuple(x.shape))
        stride = self.stride
        height, width = ((x[:, 2].amax((0, axis)) > 0.5).sum() for axis in (2, 1))
        x = x[:, :, :height, :width]  # without the padding
        x = F.pad(x, (0, -x.shape[3] % stride, 0, -x.shape[2] % stride), mode="replicate")
        cells = F.avg_pool2d(x.double(), stride) * self.gain
        scores = [
            slope[:, None, None] * cells[:, None, channel] - base[:, None, None]
            for channel, (slope, base) in zip((1, 0), self.lines, strict=True)
        ]
        both = scores[0][:, :, None] + scores[1][:, None]
        return SemanticOutput(both.flatten(1, 2).float(), stride=stride)


class Pictures:
    """Ramps of the given sizes, with the truth of `Grid` moved by ``shift``."""

    name, holds = "ramps", LABELS

    def __init__(self, sizes: list[tuple[int, int]], shift: tuple[int, int] = (0, 0)):
        self.labels = LabelMap(NAMES)
        self.sizes, self.shift = sizes, shift

    def __len__(self) -> int:
        return len(self.sizes)

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def files(self, index: int) -> tuple[Path, ...]:
        return ()

    def sample(self, index: int) -> Sample:
        size = self.sizes[index]
        pixels = load_image(picture(size)).pixels
        return Sample(pixels, f"ramp_{index}", truth(size, self.shift))
