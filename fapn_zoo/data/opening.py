"""Opening a picture without decoding it: how many pixels it may have, and how EXIF says that it lies."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

MAX_PIXELS = "FAPN_ZOO_MAX_PIXELS"  # environment variable: larger pictures are refused
ORIENTATION = 0x0112  # EXIF tag
PNG = b"\x89PNG\r\n\x1a\n"
FACTS = (b"eXIf", b"iTXt")  # chunks of a PNG that may hold an orientation
END = 1 << 16  # bytes


class ImageError(ValueError):
    """An image that cannot be read or used; the message names the file, the URL or the array's shape."""


def pixel_limit() -> float:
    """The most pixels that a picture may have: `FAPN_ZOO_MAX_PIXELS`, or where Pillow takes it for a bomb."""
    text = os.environ.get(MAX_PIXELS)
    if not text:
        return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else float("inf")
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ImageError(f"{MAX_PIXELS}={text!r}; expected a number of pixels, such as 500000000")
    limit = int(text)
    Image.MAX_IMAGE_PIXELS = max(limit, Image.MAX_IMAGE_PIXELS or limit)  # Pillow's own guard has no other knob
    return limit


def check_pixels(width: int, height: int, shown: str) -> None:
    """ImageError for more pixels than `pixel_limit`; the message says how to allow them."""
    if width * height > pixel_limit():
        raise ImageError(_too_many(shown, width * height))


def _too_many(shown: str, pixels: int) -> str:
    way = f"set the environment variable {MAX_PIXELS}={pixels}, or in Python PIL.Image.MAX_IMAGE_PIXELS"
    return f"{shown}: {pixels} pixels, the limit is {int(pixel_limit())}; {way} if you trust it"


@contextmanager
def opened(source: Path | BinaryIO, shown: str) -> Iterator[Image.Image]:
    """A file as Pillow knows it, nothing decoded yet. ImageError for more pixels than allowed."""
    pixel_limit()
    try:
        image = Image.open(source)
    except Image.DecompressionBombError as error:
        found = re.search(r"(\d+) pixels", str(error))
        raise ImageError(_too_many(shown, int(found[1])) if found else f"{shown}: {error}") from None
    with image:
        check_pixels(*image.size, shown)
        yield image


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1..8, of an opened file, read without decoding it where that is possible."""
    late = image.format == "PNG" and getattr(image, "tile", None) and _facts_at_end(image.fp)
    try:  # Pillow's PNGs decode themselves to answer; the method that they inherit does not.
        found = image.getexif() if late else Image.Image.getexif(image)
    except SyntaxError:  # damaged facts beside good pixels
        return 1
    value = found.get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _facts_at_end(file: BinaryIO) -> bool:
    """Whether the last bytes of a PNG seem to hold EXIF or text, as where a tool has added them behind the pixels."""
    place = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) - END))
    found = file.read()
    file.seek(place)
    return any(kind in found for kind in FACTS)


def upright(values: np.ndarray, turned: int) -> np.ndarray:
    """An array (..., H, W) turned as an EXIF orientation says."""
    if turned > 4:
        values = values.swapaxes(-1, -2)
    if turned in (3, 4, 7, 8):
        values = values[..., ::-1, :]
    if turned in (2, 3, 6, 7):
        values = values[..., ::-1]
    return values


def upright_size(size: tuple[int, int], turned: int) -> tuple[int, int]:
    """(height, width) after turning."""
    return size[::-1] if turned > 4 else size
