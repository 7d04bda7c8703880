"""From pixels to what a network takes: the resize, normalisation and padding that a `DataSpec` asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fapn_zoo.zoo.spec import DataSpec


def height_and_width(value: int | Sequence[int], name: str, least: int = 1) -> tuple[int, int]:
    """(height, width), given as a pair or as one number for both; ValueError names the argument."""
    sides = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= least for side in sides):
        raise ValueError(f"{name}={value!r}; expected at least {least} pixels, one number or (height, width)")
    return sides


def fitted_size(size: tuple[int, int], short: float, longest: float | None) -> tuple[int, int]:
    """(H, W) with a short side of `short` pixels, or less where the long one would exceed `longest`; halves up."""
    scale = short / min(size)
    if longest is not None:
        scale = min(scale, longest / max(size))
    return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)


def input_size(data: DataSpec, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) that an image of this size is resized to.

    The short side becomes `test_size` unless the long one would exceed `test_max_size`; sides round half up.
    """
    return fitted_size(size, data.test_size or min(size), data.test_max_size)


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (C, H, W) pixels of 0..255 to (H, W), keeping the type.

    Bilinear with antialiasing by Pillow, for 8 bits to 8 bits: the resize the official models were scored with.
    """
    if size == tuple(pixels.shape[1:]):
        return pixels
    # Pillow resizes bands independently; "F" is its float mode.
    bands = [Image.fromarray(band).resize(size[::-1], Image.Resampling.BILINEAR) for band in pixels.numpy()]
    return torch.from_numpy(np.stack(bands))


def padded_size(data: DataSpec, size: Sequence[int]) -> tuple[int, int]:
    """(H, W) once padded to a multiple of the model's `size_divisor`."""
    step = data.size_divisor
    return -(-size[0] // step) * step, -(-size[1] // step) * step


def network_input(
    data: DataSpec,
    pixels: Sequence[Tensor],
    device: torch.device,
    dtype: torch.dtype,
    memory_format: torch.memory_format | None = None,
    training: bool = False,
    size: Sequence[int] | None = None,
) -> Tensor:
    """Images (C, H, W) -> normalised batch (N, C, H', W'), zero-padded at the bottom and right.

    H' and W' are `size`, or the largest padded sizes of them. On a CPU the batch is channels-last where no
    `memory_format` is named, and so will be all maps that are made of it: oneDNN's layout. Trainings have always
    multiplied by 1 / std where predictions divide by std; they still do, so that a recipe gives the bytes that it gave.
    """
    float32 = {"device": device, "dtype": torch.float32}
    mean, std = (torch.tensor(values, **float32).view(-1, 1, 1) for values in (data.mean, data.std))
    sizes = [padded_size(data, image.shape[1:]) for image in pixels]
    height, width = size or (max(side) for side in zip(*sizes, strict=True))
    batch = torch.zeros(len(pixels), len(mean), height, width, **float32)
    for row, image in zip(batch, pixels, strict=True):
        image = image.to(device)
        if data.channel_order == "bgr" and len(image) == 3:
            image = image.flip(0)
        torch.sub(image, mean, out=row[:, : image.shape[1], : image.shape[2]])
    layout = memory_format or (torch.channels_last if device.type == "cpu" else torch.contiguous_format)
    batch = batch.mul_(1 / std) if training else batch.div_(std)
    return batch.to(dtype, memory_format=layout)
