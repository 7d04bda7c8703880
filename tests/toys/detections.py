"""Two-stage models that find what they are told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fapn_zoo
from fapn_zoo.modules.heads.outputs import DetectionOutput, InstanceOutput

SMALL = {"backbone": "test_efficientnet", "neck_out_channels": 16, "head_hidden": 16}


class Known(nn.Module):
    """A head that finds what it is told, in pixels of the network input."""

    def __init__(self, kind: type, boxes: list[list[float]], classes: list[int], scores: list[float]) -> None:
        super().__init__()
        self.kind, self.classifier = kind, ()
        self.found = torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(classes, dtype=torch.int64)

    def forward(self, pyramid: list[Tensor], *_: object) -> DetectionOutput | InstanceOutput:
        fields = [(field,) * len(pyramid[0]) for field in self.found]
        masks = [(torch.full((len(self.found[0]), 28, 28), 5.0),) * len(pyramid[0])]
        return self.kind(*fields, *(masks if self.kind is InstanceOutput else []))


def known_model(head: str = "faster_rcnn", **found) -> nn.Module:
    """A two-stage model of 3 classes with that head: by default it is sure of one box, and not of another."""
    made = fapn_zoo.create_model(f"{head}_fpn", num_classes=3, **SMALL).eval()
    known = {"boxes": [[10, 20, 50, 40], [0, 0, 5, 5.5]], "classes": [2, 0], "scores": [0.9, 0.2]} | found
    made.head = Known(InstanceOutput if head == "mask_rcnn" else DetectionOutput, **known)
    return made
