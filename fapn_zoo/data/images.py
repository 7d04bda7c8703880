"""Anything a user may call an image -> one tensor of 0..255 pixels, or an `ImageError` that names the thing."""

from __future__ import annotations

import io
import logging
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fapn_zoo.data.decoding import IN_MEMORY, Decoded, decode
from fapn_zoo.data.listing import DEAD_LINK, SPECIAL, Unused, list_folder, missing, subfolders, told
from fapn_zoo.data.opening import ImageError, upright
from fapn_zoo.data.reading_rules import Reading, proposed_level

logger = logging.getLogger(__name__)

EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
URL_TIMEOUT = 30.0  # seconds without an answer
URL_MAX_BYTES = 64 * 2**20
DARK = 0.25  # of white: no value is higher in pictures that hold two bits less than is thought
WHERE = "as a setting of train, in classes.json, or with --white-level of predict and eval"


class UnknownWhite(ImageError):
    """Nobody has said which value is white, and the container does not tell."""


class LoadedImage(NamedTuple):
    """`pixels` (C, H, W), uint8 or float32, 0..255, RGB order; `name`, the file name or a word for it."""

    pixels: Tensor
    name: str


def load_image(
    source: Any, in_chans: int = 3, name: str | None = None, *, white_level: float | None = None, exif: str = "apply"
) -> LoadedImage:
    """Reads one image.

    Args:
        source: a path; an http(s) URL; the bytes of a file, or a binary file object such as `BytesIO`, read from its
            beginning where it can be rewound; a PIL image; a numpy array (H, W) or (H, W, C); a torch tensor (H, W) or
            (C, H, W). Arrays are RGB and uint8 (0..255), uint16, wider integers, bool, or floating point (0..1).
        in_chans: channels to return.
        name: what to call the image in results and errors; by default the file's name, or `"image"`.
        white_level: the stored value that is white, see `fapn_zoo.data.reading_rules`.
        exif: "apply" or "ignore": whether files and PIL images are turned as their EXIF orientation says.

    Returns:
        Pixels of 0..255: uint8 wherever the source has 8 bits, else float32, value * 255 / white at full precision.

    How each kind is treated:
        * White is 255 of 8 bits. Of other integers and of floating point files it is `white_level`; without one 65535
          of 16 bits, 1 of floating point, and wider integers are refused. What is above white becomes 255 (a warning).
        * Of an animation the first frame is used.
        * Transparency is laid over white. Palettes, CMYK and the like become RGB (without colour management).
        * Grey becomes three equal channels for `in_chans` 3; colour becomes luma for `in_chans` 1.
        * With any other `in_chans`, images must have that many channels already and pass unchanged: a multispectral
          TIFF, or RGBA for 4. Other bands are never taken for transparency.

    Raises:
        FileNotFoundError: if a path does not exist.
        ImageError: if the source is no image or its kind, shape, size or values are not as above.
    """
    reading = Reading(white_level, exif, in_chans)
    if isinstance(source, LoadedImage):
        return LoadedImage(with_channels(source.pixels, in_chans, source.name), name or source.name)
    if isinstance(source, str) and re.match(r"https?://", source, re.IGNORECASE):
        name = name or Path(urllib.parse.unquote(urllib.parse.urlsplit(source).path)).name or "image"
        return LoadedImage(_from_file(io.BytesIO(_download(source)), source, reading), name)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image")
        if not path.is_file():  # reading a pipe would wait for somebody to write
            raise (ImageError if path.exists() else FileNotFoundError)(missing(path))
        return LoadedImage(_from_file(path, str(path), reading), name or path.name)
    if isinstance(source, Image.Image):
        file = getattr(source, "filename", "")
        shown = file or f"PIL image of mode {source.mode} and size {source.size}"
        return LoadedImage(_from_file(source, shown, reading), name or Path(file or "image").name)
    if isinstance(source, (Tensor, np.ndarray)):
        return LoadedImage(_from_numbers(source, reading), name or "image")
    if isinstance(source, (bytes, bytearray, memoryview)) or callable(getattr(source, "read", None)):
        data, shown = _contents(source)
        return LoadedImage(_from_file(io.BytesIO(data), shown, reading), name or Path(shown).name)
    kinds = "a path, URL, file object, bytes, PIL image, numpy array or tensor"
    raise ImageError(f"cannot read an image from {type(source).__name__}; expected {kinds}")


def _contents(source: Any) -> tuple[bytes, str]:
    """All bytes of a binary file object, and what to call it."""
    if not hasattr(source, "read"):
        return bytes(source), "image"
    named = getattr(source, "name", None)
    shown = named if isinstance(named, str) and named else "image"
    try:
        if source.seekable():
            source.seek(0)  # a buffer that was just written to stands at its end
    except (AttributeError, OSError, ValueError):
        pass
    try:
        data = source.read()
    except UnicodeDecodeError:
        data = ""
    except Exception as error:  # it is closed, open for writing, or a damaged archive
        raise ImageError(f"cannot read {shown}: {error}") from error
    if not isinstance(data, (bytes, bytearray)):
        raise ImageError(f"{shown} is a file of {type(data).__name__}, not of bytes; open it with mode 'rb'")
    return bytes(data), shown


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


def _from_file(source: Image.Image | Path | io.BytesIO, shown: str, reading: Reading) -> Tensor:
    """Decodes, turns and converts a PIL image or a file of one to (in_chans, H, W)."""
    return to_pixels(decode_safely(source, shown, reading.in_chans), reading, shown)


def decode_safely(source: Image.Image | Path | io.BytesIO, shown: str, in_chans: int | None) -> Decoded:
    """`decode` whose every error is an `ImageError` that names the file."""
    try:
        return decode(source, shown, in_chans)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{shown} is not an image that can be read") from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        plain = isinstance(error, (OSError, ValueError, SyntaxError, EOFError)) and str(error)
        reason = str(error).splitlines()[0] if plain else f"the file is damaged ({type(error).__name__})"
        raise ImageError(f"cannot read {shown}: {reason}") from error


def to_pixels(found: Decoded, reading: Reading, shown: str) -> Tensor:
    """(in_chans, H, W) of 0..255, turned, by the rules of `load_image`."""
    small = isinstance(found.values, Image.Image)
    pixels = _small(found.values, reading.in_chans, shown) if small else _deep(found, reading, shown)
    if reading.turns and found.orientation != 1:
        pixels = torch.from_numpy(np.ascontiguousarray(upright(pixels.numpy(), found.orientation)))
    return pixels


def _small(image: Image.Image, in_chans: int, shown: str) -> Tensor:
    """A PIL image of 8 bits -> (in_chans, H, W) uint8."""
    bands, mode = len(image.getbands()), image.mode
    if in_chans not in (1, 3):
        if bands == in_chans and mode in ("RGBA", "RGBa", "LA", "La"):
            return _planes(image)
        what = {"CMYK": "CMYK, which is read as RGB", "P": "a palette, which is read as RGB"}.get(mode, mode)
        bands = 3 if mode in ("CMYK", "P", "PA", "YCbCr", "LAB", "HSV", "RGBX") else bands
        raise ImageError(f"{shown} ({what}) has {bands} channel{'s' * (bands > 1)}, the model takes {in_chans}")
    if "transparency" in image.info or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA" if mode != "La" else "LA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    wanted = "L" if in_chans == 1 else "RGB"
    try:
        image = image if image.mode == wanted else image.convert(wanted)
    except ValueError as error:  # such as LAB
        raise ImageError(f"cannot read {shown}: {error}") from error
    return with_channels(_planes(image), in_chans, shown)


def _planes(image: Image.Image) -> Tensor:
    """(C, H, W) uint8; band by band, which takes half the time of turning (H, W, C)."""
    found = np.empty((len(image.getbands()), image.height, image.width), np.uint8)
    for plane, band in zip(found, image.split(), strict=True):
        plane[:] = band
    return torch.from_numpy(found)


def _deep(found: Decoded, reading: Reading, shown: str) -> Tensor:
    """Numbers of another kind than 8-bit colour -> (in_chans, H, W)."""
    bands, kind, in_chans = found.bands, found.kind, reading.in_chans
    if in_chans not in (1, 3):  # then alpha is a band like others
        found = found._replace(kind="bands")
    pixels = scaled(found, reading.white_level, shown)
    if found.inverted:
        pixels[0] = 255 - pixels[0]
    if in_chans in (1, 3):
        if kind == "bands" and bands not in (1, in_chans):
            advice = f"a multispectral picture is read with in_chans={bands}, in training and by the model"
            raise ImageError(
                f"{shown} ({found.container}) has {bands} bands, the model takes {in_chans} channels; {advice}"
            )
        if kind == "CMYK":
            pixels = _like(pixels, (255 - pixels[:3].float()) * (255 - pixels[3:].float()) / 255)
        elif kind.endswith(("A", "a")):
            colour, alpha = pixels[:-1].float(), pixels[-1:].float() / 255
            colour = colour if kind.endswith("a") else colour * alpha
            pixels = _like(pixels, (colour + 255 * (1 - alpha)).clamp(max=255))
    elif kind == "CMYK":
        raise ImageError(f"{shown} (CMYK, which is read as RGB) has 3 channels, the model takes {in_chans}")
    return with_channels(pixels, in_chans, shown)


def scaled(found: Decoded, white_level: float | None, shown: str) -> Tensor:
    """The values (C, H, W) of a picture as pixels: value * 255 / white, clipped to 0..255; 8 bits as they are."""
    values = found.values
    if values.dtype == np.uint8 and found.stated:
        return torch.from_numpy(np.array(values))
    white, warning = white_of(found, white_level, shown)
    if warning:
        _once(*warning)
    whites = [white] * len(found.colours)
    for band in values[len(whites) :]:  # alpha: writers take the container's range, few that of the colours
        whites.append(white if found.white is None or band.max() == white else found.white)
    out = np.empty(values.shape, np.float32)
    for plane, band, level in zip(out, values, whites, strict=True):  # band by band, for the memory
        plane[:] = (np.multiply(band, 255.0, dtype=np.float64) / level).clip(0, 255)
    return torch.from_numpy(out)


def white_of(found: Decoded, white_level: float | None, shown: str) -> tuple[float, tuple[str, str] | None]:
    """The value that is white, and a warning (kind, text) where it spoils the picture.

    Raises ImageError where the values are no picture, or white cannot be known.
    """
    values = found.values
    real = np.issubdtype(values.dtype, np.floating)
    if not (real or np.issubdtype(values.dtype, np.integer)):
        raise ImageError(f"{shown} holds {values.dtype} values, which are no picture")
    if real and not np.isfinite(values).all():
        raise ImageError(f"{shown} has NaN or infinite values")
    low, high = found.colours.min().item(), found.colours.max().item()
    assumed = white_level is None and not found.stated
    white = found.white if found.stated or assumed else white_level
    advice = f"say which value is white, {f'white_level={proposed_level(high, real)}: ' if high > 0 else ''}{WHERE}"
    if white is None:
        raise UnknownWhite(f"{shown}: {found.container}, values {low:.10g}..{high:.10g}; {advice}")
    outside = low < -1e-3 * white or high > white * (1 + 1e-3)  # the rounding of earlier resizes is forgiven
    if outside and found.container == IN_MEMORY:
        span = f"values {low:g}..{high:g}; floating point images are 0..1"
        raise ImageError(f"{shown}: {span} (or pass 0..255 as uint8)")
    if outside and assumed:
        raise UnknownWhite(f"{shown}: {found.container}, values {low:g}..{high:g}, not 0..{white:g}; {advice}")
    if outside:
        clipped = f"values {low:.10g}..{high:.10g} are clipped to 0..{white:.10g}, the white level"
        return white, ("clipped", f"{shown}: {clipped}")
    if not found.stated and 0 < high < white * DARK:
        dark = f"the highest value is {high:.10g} of {white:.10g}, nearly black; if its white is not {white:.10g}"
        dark += f", {advice}"
        return white, ("dark", f"{shown}: {dark}")
    return white, None


_SAID: set[str] = set()  # kinds of warnings that this process has given


def _once(kind: str, text: str) -> None:
    if kind not in _SAID:
        _SAID.add(kind)
        logger.warning("%s; further images are not named", text)


def _from_numbers(values: np.ndarray | Tensor, reading: Reading) -> Tensor:
    """An array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W) -> (in_chans, H, W)."""
    kind, axis, form, order, in_chans = "array", 2, "(H, W, C)", "last in arrays, first in tensors", reading.in_chans
    if isinstance(values, Tensor):
        kind, axis, form, order = "tensor", 0, "(C, H, W)", "first in tensors, last in arrays"
    shown = f"{kind} of shape {tuple(values.shape)} and type {str(values.dtype).removeprefix('torch.')}"
    if isinstance(values, Tensor):
        try:
            values = values.detach().cpu()
            values = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
        except (RuntimeError, TypeError) as error:  # on device "meta", sparse, quantized
            raise ImageError(f"{shown}: {str(error).splitlines()[0]}") from error
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
    return with_channels(_numbers_to_pixels(np.moveaxis(values, axis, 0), reading, shown), in_chans, shown)


def _numbers_to_pixels(array: np.ndarray, reading: Reading, shown: str) -> Tensor:
    """Values of any accepted type -> (C, H, W) tensor of 0..255. Floating point is always 0..1."""
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    real = np.issubdtype(array.dtype, np.floating)
    if real or array.dtype == np.uint8:
        return scaled(Decoded(array.astype(np.float32) if real else array, "bands", 1, True, IN_MEMORY), None, shown)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return scaled(Decoded(array, "bands", 65535, False, "16 bits"), reading.white_level, shown)
    if np.issubdtype(array.dtype, np.integer) and reading.white_level is not None:
        return scaled(Decoded(array, "bands", None, False, "wide integers"), reading.white_level, shown)
    advice = "expected uint8 (0..255), uint16 (0..65535), bool or floating point (0..1)"
    integers = np.issubdtype(array.dtype, np.integer)
    level = f", or for other integers white_level={proposed_level(array.max().item())}" if integers else ""
    raise ImageError(f"{shown}: {advice}{level}")


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
