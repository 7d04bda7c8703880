"""From pixels to what a network takes: the resize, normalisation and padding that a `DataSpec` asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fapn_zoo._spec import DataSpec


def resize_for(data: DataSpec, pixels: Tensor) -> Tensor:
    """Resizes (C, H, W) pixels of 0..255 to the model's test size, keeping the type.

    The short side becomes ``test_size`` unless the long one would exceed ``test_max_size``; sides round half up.
    Bilinear with antialiasing by Pillow, for 8 bits to 8 bits: the resize the official models were scored with.
    """
    height, width = pixels.shape[1:]
    scale = 1.0 if data.test_size is None else data.test_size / min(height, width)
    if data.test_max_size is not None:
        scale = min(scale, data.test_max_size / max(height, width))
    size = (max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1))
    if size == (height, width):
        return pixels
    # Pillow resizes bands independently; "F" is its float mode.
    bands = [
        np.asarray(Image.fromarray(band).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        for band in pixels.numpy()
    ]
    return torch.from_numpy(np.stack(bands))


def padded_size(data: DataSpec, pixels: Tensor) -> tuple[int, int]:
    """(H, W) of an image (C, H, W) once padded to a multiple of the model's ``size_divisor``."""
    step = data.size_divisor
    return -(-pixels.shape[1] // step) * step, -(-pixels.shape[2] // step) * step


def network_input(data: DataSpec, pixels: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Images (C, H, W) of equal padded size -> normalised batch (N, C, H', W'), zero-padded at the bottom and right."""
    mean = torch.tensor(data.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(data.std, device=device).view(-1, 1, 1)
    height, width = padded_size(data, pixels[0])
    batch = torch.zeros(len(pixels), len(mean), height, width, device=device)
    for row, image in zip(batch, pixels, strict=True):
        image = image.to(device).float()
        if data.channel_order == "bgr" and len(image) == 3:
            image = image.flip(0)
        row[:, : image.shape[1], : image.shape[2]] = (image - mean) / std
    return batch.to(dtype)
