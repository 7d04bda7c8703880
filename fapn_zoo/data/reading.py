"""Reading the files of a data set: images, PNGs of labels and of segments, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fapn_zoo.data.hints import id_hint
from fapn_zoo.data.images import ImageError, load_image
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.tables import some


class UnreadableFile(DataError):
    """An image or label file that cannot be decoded at all."""


def read_image(path: Path) -> Tensor:
    """An image file as (3, H, W) of 0..255 RGB, read as `predict` reads it. Raises UnreadableFile, naming the file."""
    try:
        return load_image(path).pixels
    except (ImageError, FileNotFoundError) as error:
        raise UnreadableFile(str(error)) from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise _unreadable(path, "image", error) from error


def read_labels(path: Path) -> np.ndarray:
    """A label PNG as (H, W) class ids: the stored pixel values, uint8, or int32 for 16-bit files.

    Raises:
        DataError: naming the file; colour pictures are refused, since a colour is no class id.
    """
    try:
        with Image.open(path) as file:
            file.load()
            mode, kind, values = file.mode, file.format, np.asarray(file)
        depth = _grey_depth(path) if mode == "L" and kind == "PNG" else 8
    except Exception as error:
        raise _unreadable(path, "label file", error) from error
    if kind != "PNG":
        raise DataError(f"{path} is a {kind} file with another ending; only PNG keeps class ids as they are")
    if mode in ("L", "P", "1"):
        # Pillow stretches 2- and 4-bit greys to 0..255 (3 -> 255, 15 -> 255); take the stored values back.
        return values.astype(np.uint8) // (255 // (2**depth - 1))
    if mode.startswith("I"):
        return values.astype(np.int32)
    hint = "save labels as 8-bit grey or palette PNG whose pixel value is the class id"
    raise DataError(f"{path} holds colours (mode {mode}), not class ids; {hint}")


def _grey_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]  # the bit depth byte of a PNG's IHDR chunk


def _unreadable(path: Path, what: str, error: Exception) -> UnreadableFile:
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "not a picture in a known format" if unknown else (str(error) or type(error).__name__).splitlines()[0]
    return UnreadableFile(f"cannot read {what} {path}: {reason}")


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


def check_ids(labels: np.ndarray, label_map: LabelMap, where: str = "") -> None:
    """DataError, which begins with `where`, for values that are neither a class id nor the ignore index."""
    if labels.min(initial=0) < 0:
        values, number = np.unique(labels, return_counts=True)
    else:  # takes a fraction of the time
        counts = np.bincount(labels.ravel())
        values, number = np.flatnonzero(counts), counts[counts > 0]
    known = {*range(label_map.num_classes), label_map.ignore_index}
    found = [f"{v} ({n} pixels)" for v, n in zip(values.tolist(), number.tolist(), strict=True) if v not in known]
    if found:
        allowed = f"allowed: 0..{label_map.num_classes - 1}, ignore_index {label_map.ignore_index}"
        hint = f"; {hint}" if (hint := id_hint(values.tolist(), label_map)) else ""
        raise DataError(f"{where}class ids out of range: {some(found, 8)}; {allowed}{hint}")


def label_size(path: Path) -> tuple[int, int]:
    """(height, width) of a label file, which is not decoded for it."""
    try:
        with Image.open(path) as file:
            return file.size[1], file.size[0]
    except Exception as error:
        raise _unreadable(path, "label file", error) from error


def check_sizes(image: Sequence[int], labels: Sequence[int], image_path: Path, label_path: Path) -> None:
    """DataError with both files where the sizes (height, width) of image and labels differ."""
    if tuple(image) == tuple(labels):
        return
    (h, w), (lh, lw) = image, labels
    turned = (w, h) == (lh, lw)
    hint = " (a picture is turned as its EXIF orientation says; its labels must be turned alike)" if turned else ""
    raise DataError(f"sizes differ: {label_path} is {lw}x{lh}, {image_path} is {w}x{h}{hint}")
