"""From prepared images to class maps: what `predict` answers in full precision, without its scores and segments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fapn_zoo.data.images import load_image
from fapn_zoo.predict.predict import inference, raw_output
from fapn_zoo.predict.views import Views, merged_labels, score_sources
from fapn_zoo.runtime.precision import check_amp


def label_maps(
    model: nn.Module,
    images: Sequence[list[Tensor]],
    sizes: Sequence[tuple[int, int]],
    views: Views,
    amp: str = "no",
    batch_size: int = 1,
) -> list[Tensor]:
    """The best class per pixel, for each image at its size. To be called inside `inference`.

    Args:
        images: what `Views.prepare` made of each; of equal padded sizes.
        sizes: (H, W) of each answer.
        amp: as in `evaluate`.
        batch_size: windows that are run together.

    Returns:
        (H, W) each, on the model's device: uint8 for up to 256 classes, else int64.
    """
    dtype = torch.uint8 if model.num_classes <= 256 else torch.int64
    merged = score_sources(model, partial(raw_output, model, amp=amp), views, images, batch_size)
    return [merged_labels(sources, size).to(dtype) for sources, size in zip(merged, sizes, strict=True)]


def class_maps(model: nn.Module, images: Sequence[np.ndarray], amp: str = "no") -> Tensor:
    """What `predict` answers in the same precision for images of equal size, without its scores and segments.

    Args:
        images: (H, W, 3) uint8 RGB each.
        amp: as in `evaluate`.

    Returns:
        Class ids (N, H, W) int64 on the model's device.
    """
    check_amp(amp)
    views = Views()
    pixels = [load_image(image, len(model.data.mean)).pixels for image in images]
    prepared = [views.prepare(model.data, one) for one in pixels]
    with inference(model):
        found = label_maps(model, prepared, [tuple(one.shape[1:]) for one in pixels], views, amp)
    return torch.stack(found).long()
