"""Small models and data sets for the tests of evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from fapn_zoo import create_model
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import LABELS, Sample
from fapn_zoo.predict import predict

NAMES = ("ground", "tree", "sign")
SIZES = ((40, 56), (33, 47), (40, 56), (56, 40))


class Noise:
    """Random pictures of several sizes with random labels, some of them unlabelled. Remembers what was asked for."""

    name, holds = "noise", LABELS

    def __init__(self, count: int = 5, names: tuple[str, ...] = NAMES, **labels):
        self.labels = LabelMap(names, **labels)
        self.count = count
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def size(self, index: int) -> tuple[int, int]:
        return SIZES[index % len(SIZES)]

    def files(self, index: int) -> tuple[Path, ...]:
        return ()

    def sample(self, index: int) -> Sample:
        self.asked.append(index)
        rng = np.random.default_rng(index)
        size = self.size(index)
        coarse = rng.choice(len(self.labels.names) + 1, (8, 8))
        labels = np.array([*range(len(self.labels.names)), self.labels.ignore_index])[coarse].astype(np.uint8)
        labels = labels[np.arange(size[0]) * 8 // size[0]][:, np.arange(size[1]) * 8 // size[1]]
        noise = rng.integers(0, 100, (*size, 3), dtype=np.uint8)
        image = noise + (labels[..., None] * np.uint8([50, 20, 40]) % 150).astype(np.uint8)
        return Sample(torch.from_numpy(image).permute(2, 0, 1), f"noise_{index}", labels)


def small_model(seed: int = 0, names: tuple[str, ...] = NAMES) -> torch.nn.Module:
    torch.manual_seed(seed)
    net = create_model(
        "perpixel_fpn",
        backbone="test_efficientnet",
        num_classes=len(names),
        neck_out_channels=16,
        head_mask_channels=16,
    )
    with torch.no_grad():
        net.head.predictor.weight.mul_(30)  # make the untrained net choose several classes
    net.spec = dataclasses.replace(net.spec, data=dataclasses.replace(net.spec.data, labels=names))
    return net


def class_maps(model: torch.nn.Module, images: list[np.ndarray], amp: str = "no") -> torch.Tensor:
    """What `predict` answers for images of equal size: class ids (N, H, W)."""
    return torch.from_numpy(np.stack([result.labels for result in predict(model, images, amp=amp)]))
