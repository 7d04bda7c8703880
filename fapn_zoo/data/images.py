"""Anything a user may call an image -> one tensor of 0..255 pixels, or an `ImageError` that names the thing."""

from __future__ import annotations

import io
import logging
import re
import urllib.error
import urllib.parse
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fapn_zoo.data.listing import DEAD_LINK, SPECIAL, Unused, list_folder, missing, subfolders, told

logger = logging.getLogger(__name__)

EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
URL_TIMEOUT = 30.0  # seconds without an answer
URL_MAX_BYTES = 64 * 2**20


class ImageError(ValueError):
    """An image that cannot be read or used; the message names the file, the URL or the array's shape."""


class LoadedImage(NamedTuple):
    """`pixels` (C, H, W), uint8 or float32, 0..255, RGB order; `name`, the file name or a word for it."""

    pixels: Tensor
    name: str


def load_image(source: Any, in_chans: int = 3, name: str | None = None) -> LoadedImage:
    """Reads one image.

    Args:
        source: a path; an http(s) URL; a PIL image; a numpy array (H, W) or (H, W, C); a torch tensor (H, W) or
            (C, H, W). Arrays are RGB and uint8 (0..255), uint16 (0..65535), bool, or floating point (0..1).
        in_chans: channels to return.
        name: what to call the image in results and errors; by default the file's name, or `"image"`.

    Returns:
        Pixels of 0..255: uint8 wherever the source has 8 bits, else float32 (16-bit values are divided by 257).

    How each kind is treated:
        * Files and PIL images are turned as their EXIF orientation says; of an animation the first frame is used.
        * Transparency is laid over white. Palettes, CMYK and the like become RGB (without colour management).
        * Grey becomes three equal channels for `in_chans` 3; colour becomes luma for `in_chans` 1.
        * With any other `in_chans`, images must have that many channels already and pass unchanged (a PIL or file
          RGBA image fits 4).

    Raises:
        FileNotFoundError: if a path does not exist.
        ImageError: if the source is no image or its kind, shape, size or values are not as above.
    """
    if isinstance(source, str) and re.match(r"https?://", source, re.IGNORECASE):
        name = name or Path(urllib.parse.unquote(urllib.parse.urlsplit(source).path)).name or "image"
        return LoadedImage(_from_pil(io.BytesIO(_download(source)), source, in_chans), name)
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image")
        if not path.is_file():  # reading a pipe would wait for somebody to write
            raise (ImageError if path.exists() else FileNotFoundError)(missing(path))
        return LoadedImage(_from_pil(path, str(path), in_chans), name or path.name)
    if isinstance(source, Image.Image):
        file = getattr(source, "filename", "")
        shown = file or f"PIL image of mode {source.mode} and size {source.size}"
        return LoadedImage(_from_pil(source, shown, in_chans), name or Path(file or "image").name)
    if isinstance(source, (Tensor, np.ndarray)):
        return LoadedImage(_from_numbers(source, in_chans), name or "image")
    kinds = "a path, URL, PIL image, numpy array or tensor"
    raise ImageError(f"cannot read an image from {type(source).__name__}; expected {kinds}")


def list_images(folder: str | Path) -> list[Path]:
    """Image files directly inside `folder` (hidden ones left out), in natural order: 2.png before 10.png.

    A link to nowhere or a pipe is among them, so that reading it fails; what else is left out is named in a warning.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ImageError: if it is not a folder or has no image; the message lists the extensions looked for.
    """
    files, unused = folder_images(folder)
    if unused:
        logger.warning("%s: not read: %s", folder, told(unused))
    return files


def folder_images(folder: str | Path, leave_out: Path | None = None) -> tuple[list[Path], list[Unused]]:
    """`list_images`, and what else was seen there but for `leave_out`: other files, and subfolders that hold images."""
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(missing(folder) if folder.is_symlink() else f"{folder}: no such folder")
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder")
    files, rest = list_folder(folder, EXTENSIONS, deep=False)
    meant = (one.path for one in rest if one.kind in (DEAD_LINK, SPECIAL))
    dead = [path for path in meant if path.suffix.lower() in EXTENSIONS]
    below = subfolders(folder, EXTENSIONS, leave_out)
    if not files and not dead:
        more = f"; {told(below)}" if below else ""
        raise ImageError(f"no images in folder {folder} (looked for {' '.join(EXTENSIONS)}){more}")
    unused = [one for one in rest if one.path not in dead] + below
    return sorted([*files, *dead], key=lambda path: _natural_key(path.name)), unused


def _natural_key(name: str) -> tuple[list, str]:
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def _download(url: str) -> bytes:
    """The bytes behind an http(s) URL, at most `URL_MAX_BYTES`."""
    request = urllib.request.Request(url, headers={"User-Agent": "fapn-zoo"})
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as answer:
            data = answer.read(URL_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # URLError and timeouts are OSError; a malformed URL is ValueError
        raise ImageError(f"cannot download {url}: {getattr(error, 'reason', error)}") from error
    if len(data) > URL_MAX_BYTES:
        raise ImageError(f"{url} is larger than {URL_MAX_BYTES // 2**20} MiB; download it and pass the file")
    return data


def _from_pil(source: Image.Image | Path | io.BytesIO, shown: str, in_chans: int) -> Tensor:
    """Decodes, turns and converts a PIL image or a file of one to (in_chans, H, W)."""
    try:
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as image:
            if not image.width or not image.height:
                raise ImageError(f"{shown} has no pixels: width {image.width}, height {image.height}")
            image.load()
            image = ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{shown} is not an image that can be read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{shown}: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust it") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # what PIL raises for damaged files
        raise ImageError(f"cannot read {shown}: {error}") from error
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        read = _unit_float if image.mode == "F" else _sixteen_bit
        return with_channels(read(np.asarray(image), shown)[None], in_chans, shown)
    bands = len(image.getbands())
    if in_chans not in (1, 3) and bands == in_chans and image.mode != "P":
        return torch.from_numpy(np.array(image).reshape(image.height, image.width, bands)).permute(2, 0, 1)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if in_chans == 1 else "RGB")
    pixels = torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1)
    return with_channels(pixels, in_chans, shown)


def _from_numbers(values: np.ndarray | Tensor, in_chans: int) -> Tensor:
    """An array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W) -> (in_chans, H, W)."""
    kind, axis, form, order = "array", 2, "(H, W, C)", "last in arrays, first in tensors"
    if isinstance(values, Tensor):
        kind, axis, form, order = "tensor", 0, "(C, H, W)", "first in tensors, last in arrays"
    shown = f"{kind} of shape {tuple(values.shape)} and type {str(values.dtype).removeprefix('torch.')}"
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    if values.ndim == 2:
        values = np.expand_dims(values, axis)
    if values.ndim != 3:
        raise ImageError(f"{shown}: expected (H, W) or {form}")
    if not values.size:
        raise ImageError(f"{shown} has no pixels")
    counts = sorted({1, 3, 4, in_chans})
    if values.shape[axis] not in counts:
        hint = f"; channels come {order}" if values.shape[2 - axis] in counts else ""
        raise ImageError(f"{shown}: expected {str(counts)[1:-1]} channels, not {values.shape[axis]}{hint}")
    return with_channels(_to_pixels(np.moveaxis(values, axis, 0), shown), in_chans, shown)


def _to_pixels(array: np.ndarray, shown: str) -> Tensor | np.ndarray:
    """Values of any accepted type -> (C, H, W) tensor of 0..255."""
    if array.dtype == np.uint8:
        return torch.from_numpy(np.array(array))
    if array.dtype == np.bool_:
        return torch.from_numpy(array.astype(np.uint8) * 255)
    if array.dtype == np.uint16:
        return _sixteen_bit(array, shown)
    if np.issubdtype(array.dtype, np.floating):
        return _unit_float(array, shown)
    raise ImageError(f"{shown}: expected uint8 (0..255), uint16 (0..65535), bool or floating point (0..1)")


def _sixteen_bit(array: np.ndarray, shown: str) -> Tensor:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:  # PIL opens some 16-bit files as 32-bit integers
        raise ImageError(f"{shown}: values {low}..{high}; expected 0..65535")
    return torch.from_numpy(array.astype(np.float32) / 257)


def _unit_float(array: np.ndarray, shown: str) -> Tensor:
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ImageError(f"{shown} has NaN or infinite values")
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 or high > 1 + 1e-3:  # rounding of earlier resizes is forgiven, another range is not guessed at
        raise ImageError(f"{shown}: values {low:g}..{high:g}; floating point images are 0..1 (or pass 0..255 as uint8)")
    return torch.from_numpy(array.clip(0, 1) * np.float32(255))


def with_channels(pixels: Tensor, in_chans: int, shown: str) -> Tensor:
    """Pixels (C, H, W) of 0..255 -> (in_chans, H, W) by the rules of `load_image`; `shown` names them in an error."""
    if in_chans in (1, 3) and len(pixels) == 4:
        colour, alpha = pixels[:3].float(), pixels[3:].float() / 255
        pixels = _like(pixels, colour * alpha + 255 * (1 - alpha))  # over white
    if len(pixels) == in_chans:
        return pixels.contiguous()
    if in_chans == 3 and len(pixels) == 1:
        return pixels.expand(3, -1, -1).contiguous()
    if in_chans == 1 and len(pixels) == 3:
        luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        return _like(pixels, (pixels.float() * luma).sum(0, keepdim=True))
    raise ImageError(f"{shown} has {len(pixels)} channels, the model takes {in_chans}")


def _like(pixels: Tensor, values: Tensor) -> Tensor:
    """Rounded where the pixels are of 8 bits."""
    return values.round().to(torch.uint8) if pixels.dtype == torch.uint8 else values
