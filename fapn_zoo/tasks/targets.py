"""Batches of training: images, their sizes and names, and the truth as losses take it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import Sample
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.tasks.protocol import Task


class Batch(NamedTuple):
    """N training samples.

    Attributes:
        images: (N, C, H, W) float32, 0..255; smaller ones lie at the top left.
        sizes: (N, 2), the height and width of each within `images`.
        targets: the truth, of the size (H, W).
        names: of the samples.
    """

    images: Tensor
    sizes: Tensor
    targets: Targets
    names: tuple[str, ...]

    def parts(self, size: int) -> Iterator[Batch]:
        """The batch in pieces of at most so many samples."""
        for first in range(0, len(self.names), size):
            last = min(first + size, len(self.names))
            targets = self.targets.part(first, last)
            yield Batch(self.images[first:last], self.sizes[first:last], targets, self.names[first:last])

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        images, sizes = (tensor.to(device, non_blocking=True) for tensor in (self.images, self.sizes))
        return self._replace(images=images, sizes=sizes, targets=self.targets.to(device))

    def padded(self, height: int, width: int) -> Batch:
        """Grown at the bottom and right to (height, width)."""
        if (height, width) == tuple(self.images.shape[-2:]):
            return self
        right, bottom = width - self.images.shape[-1], height - self.images.shape[-2]
        images = F.pad(self.images, (0, right, 0, bottom))
        return self._replace(images=images, targets=self.targets.padded(height, width))

    def pixels(self) -> list[Tensor]:
        """Every image (C, h, w) without what it lies in, as `network_input` takes them."""
        return [image[:, :h, :w] for image, (h, w) in zip(self.images, self.sizes.tolist(), strict=True)]


def collate(samples: Sequence[Sample], task: Task, labels: LabelMap, divisor: int) -> Batch:
    """One batch, padded at the bottom and right to multiples of `divisor`, as `predict` pads: truth is void there."""
    sizes = torch.tensor([sample.size for sample in samples])
    height, width = (-(-side // divisor) * divisor for side in sizes.amax(0).tolist())
    images = torch.zeros(len(samples), samples[0].image.shape[0], height, width)
    for row, sample in zip(images, samples, strict=True):
        row[:, : sample.size[0], : sample.size[1]] = sample.image
    targets = Targets.joined([task.targets(sample, labels).padded(height, width) for sample in samples])
    return Batch(images, sizes, targets, tuple(sample.name for sample in samples))
