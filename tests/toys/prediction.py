"""Tiny models with known answers, for the tests of prediction."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec, ModelSpec

PLAIN = DataSpec(
    labels=("ground", "square"), palette=((20, 20, 200), (220, 30, 30)), mean=(127.5,) * 3, std=(50.0,) * 3
)


def square(height=135, width=203, top=40, left=60, side=40) -> np.ndarray:
    """A dark image with a bright square."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[top : top + side, left : left + side] = 235
    return image


def box(result: Result) -> list[int]:
    """Left, top, width and height of what was found to be of class 1."""
    return next(s["bbox"] for s in result.segments if s["category_id"] == 1)


class Toy(nn.Module):
    """A model with a description, and nothing in it."""

    def __init__(self, head: str, data: DataSpec):
        super().__init__()
        self.spec = ModelSpec(f"{head}_toy", head, "fpn", "toy", 2, data=data)

    @property
    def data(self) -> DataSpec:
        return self.spec.data

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes


class BrightSquare(Toy):
    """Class 1 where the image is brighter than the mean of its `DataSpec`, at stride 4. Remembers its inputs."""

    def __init__(self, data: DataSpec = PLAIN):
        super().__init__("perpixel", data)
        self.cell = nn.Conv2d(len(data.mean), 1, 4, stride=4, bias=False)
        nn.init.constant_(self.cell.weight, 1 / (16 * len(data.mean)))
        self.inputs: list[torch.Tensor] = []

    def forward(self, x, sizes=None, targets=None):
        assert not self.training and not torch.is_grad_enabled()
        self.inputs.append(x)
        grey = self.cell(F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4), mode="replicate"))
        return SemanticOutput(torch.cat([-grey, grey], dim=1))


class TwoSquares(Toy):
    """A mask classifier whose queries are: ground, the left bright square, the right one, and two for nothing."""

    def __init__(self, data: DataSpec):
        super().__init__("maskformer", data)

    def forward(self, x, sizes=None, targets=None):
        bright = F.avg_pool2d(x.mean(1), 4) * 20
        left = torch.arange(bright.shape[2]) < bright.shape[2] / 2
        far = torch.full_like(bright, -20.0)
        masks = [-bright, torch.where(left, bright, far), torch.where(left, far, bright), far, bright]
        classes = torch.full((len(x), 5, 3), -5.0)
        for query, label in enumerate((0, 1, 1, 2, 2)):
            classes[:, query, label] = 5.0
        return MaskFormerOutput(classes, torch.stack(masks, dim=1))
