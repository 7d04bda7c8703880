"""PNG files of segments in COCO's panoptic format."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, UnidentifiedImageError


def read_ids(path: str | os.PathLike) -> np.ndarray:
    """The segment ids of a COCO panoptic PNG file, int32 (H, W): red + 256 green + 65536 blue.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or not one of 8-bit RGB (or RGBA, whose alpha is not read).
    """
    from torchvision.io import decode_png, read_file  # takes seconds

    path = os.fspath(path)
    try:
        pixels = decode_png(read_file(path)).numpy()  # a fifth faster than Pillow
    except RuntimeError:  # another format, a damaged file, or a torchvision without libpng: Pillow knows
        try:
            with Image.open(path) as image:
                pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
        except UnidentifiedImageError:
            raise ValueError(f"{path} is not an image") from None
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {path}") from None
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
    if pixels.dtype != np.uint8 or len(pixels) < 3:
        raise ValueError(f"{path} must be 8-bit RGB, got {len(pixels)} channels of {pixels.dtype}")
    red, green, blue = pixels[:3]
    ids = blue.astype(np.int32)
    for channel in (green, red):
        ids <<= 8
        ids |= channel
    return ids
