"""From the bytes of a picture to its stored numbers, at full precision: which library reads which container exactly.

Pillow reads all that it does not change. It reduces 16-bit colour to 8 bits, scales the numbers of PPM and JPEG 2000,
takes signed integers for unsigned ones and knows no bands but colours: there torchvision, tifffile or imagecodecs read.
"""

from __future__ import annotations

import io
import logging
import re
import struct
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image

from fapn_zoo.data.opening import ORIENTATION, PNG, ImageError, check_pixels, opened, orientation

IN_MEMORY = "floating point in memory"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG2000 = (b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")
_FLIP = Image.Transpose
_BACK = {  # from upright to an orientation
    2: _FLIP.FLIP_LEFT_RIGHT, 3: _FLIP.ROTATE_180, 4: _FLIP.FLIP_TOP_BOTTOM, 5: _FLIP.TRANSPOSE,
    6: _FLIP.ROTATE_90, 7: _FLIP.TRANSVERSE, 8: _FLIP.ROTATE_270,
}  # fmt: skip
_SPACE = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P([2356])" + _SPACE + rb"(\d+)" + _SPACE + rb"(\d+)" + _SPACE + rb"(\d+)\s")


class Decoded(NamedTuple):
    """What a picture holds, before its range and its channels are decided.

    Attributes:
        values: (C, H, W) as stored, not turned; or a PIL image of 8 bits.
        kind: what the channels are: "L", "LA", "La", "RGB", "RGBA", "RGBa", "CMYK" as in Pillow, or "bands".
        white: the stored value that is white, where no white level says otherwise; None if that cannot be known.
        stated: the picture itself says so, and no white level changes it.
        container: "16-bit PNG".
        orientation: EXIF's, 1..8, that is still to be applied.
        inverted: white is 0.
    """

    values: np.ndarray | Image.Image
    kind: str
    white: float | None
    stated: bool
    container: str
    orientation: int = 1
    inverted: bool = False

    @property
    def bands(self) -> int:
        return len(self.values.getbands() if isinstance(self.values, Image.Image) else self.values)

    @property
    def colours(self) -> np.ndarray:
        """The values without alpha, which has a range of its own."""
        return self.values[:-1] if self.kind.endswith(("A", "a")) else self.values


def header(path: Path) -> tuple[tuple[int, int], int]:
    """((height, width) as stored, EXIF orientation) of a file, not decoded; raises what a decoder raises."""
    with path.open("rb") as file:
        if file.read(4) in _TIFF:  # of which Pillow does not open all, and whose size it turns
            with _tiff_file(file, str(path)) as tiff:
                page = tiff.pages.first
                return (page.imagelength, page.imagewidth), _turned(page)
    with opened(path, str(path)) as image:
        return (image.height, image.width), orientation(image)


# ---------------------------------------------------------------- files


def decode(source: Path | BinaryIO | Image.Image, shown: str, in_chans: int | None = None) -> Decoded:
    """The stored numbers of a file or of a PIL image.

    Args:
        in_chans: how many bands are wanted, which says what the pages of a TIFF are; None: not known.

    Raises:
        ImageError: naming the file, where it has no or too many pixels, or needs a package that is not there.
        Exception: what a decoder raises for a damaged file.
    """
    if isinstance(source, Image.Image):
        return _untouched(source, shown, in_chans) or _by_pillow(source, shown)
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        found = _exact(file, shown, in_chans)
        if found is not None:
            return found
        file.seek(0)
        try:
            with opened(file, shown) as image:
                return _by_pillow(image, shown)
        except Image.UnidentifiedImageError:
            file.seek(0)
            if file.read(4) not in _TIFF:  # of these Pillow does not know all, such as big-endian BigTIFF
                raise
            return _tiff(file, shown, in_chans, always=True)


def _exact(file: BinaryIO, shown: str, in_chans: int | None) -> Decoded | None:
    """What Pillow would not read as it is stored; None for the rest."""
    file.seek(0)
    head = file.read(26)
    file.seek(0)
    if head[:4] in _TIFF:
        return _tiff(file, shown, in_chans)
    if head[:8] == PNG and len(head) == 26 and head[24] == 16:
        return _deep_png(file, shown)
    if re.match(rb"P[2356]\s", head):
        return _pnm(file.read(), shown)
    return _jpeg2000(file.read(), shown) if head.startswith(_JPEG2000) else None


def _untouched(image: Image.Image, shown: str, in_chans: int | None) -> Decoded | None:
    """The file of a PIL image that is opened and not loaded yet, where Pillow would change its numbers."""
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or image.format not in ("PNG", "TIFF", "PPM", "JPEG2000"):
        return None
    if image.tell():  # another frame
        return None
    place = file.tell()
    try:
        return _exact(file, shown, in_chans)
    finally:
        file.seek(place)


def _by_pillow(image: Image.Image, shown: str) -> Decoded:
    if not image.width or not image.height:
        raise ImageError(f"{shown} has no pixels: width {image.width}, height {image.height}")
    kind, name = image.mode, image.format or "picture"
    before = orientation(image) if name == "TIFF" else 1
    image.load()
    turned = orientation(image)
    if before != 1 and turned == 1:  # Pillow turns TIFFs by itself
        image, turned = image.transpose(_BACK[before]), before
    if kind.startswith("I;16"):
        return Decoded(np.asarray(image).astype(np.uint16)[None], "L", 65535, False, f"16-bit {name}", turned)
    if kind == "I":  # older versions of Pillow open 16-bit PNGs so, and PGMs scaled to 16 bits
        deep = name in ("PNG", "PPM")
        return Decoded(np.asarray(image)[None], "L", 65535 if deep else None, False, f"32-bit integer {name}", turned)
    if kind == "F":
        memory = name == "picture"
        container = IN_MEMORY if memory else f"floating point {name}"
        return Decoded(np.asarray(image)[None], "L", 1.0, memory, container, turned)
    return Decoded(image, image.mode, 255, True, f"8-bit {name}", turned)


def _deep_png(file: BinaryIO, shown: str) -> Decoded:
    """16 bits in grey or colour, with or without alpha."""
    from torchvision.io import ImageReadMode, decode_png  # takes seconds

    with opened(file, shown) as image:
        turned, clear = orientation(image), image.info.get("transparency")
    file.seek(0)
    data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    values = decode_png(data, ImageReadMode.UNCHANGED).numpy().astype(np.uint16)
    kind = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(values)]
    if clear is not None and kind in ("L", "RGB"):  # one colour is transparent
        colour = np.reshape(clear, (-1, 1, 1))
        alpha = np.where((values == colour).all(0, keepdims=True), 0, 65535).astype(np.uint16)
        values, kind = np.concatenate([values, alpha]), f"{kind}A"
    return Decoded(values, kind, 65535, False, "16-bit PNG", turned)


def _pnm(data: bytes, shown: str) -> Decoded | None:
    """PGM and PPM of more than 8 bits; None for others."""
    match = _PNM.match(data)
    if match is None or not 255 < int(match[4]) < 65536:
        return None
    kind, width, height, white = map(int, match.groups())
    check_pixels(width, height, shown)
    bands = 3 if kind in (3, 6) else 1
    count, rest = width * height * bands, data[match.end() :]
    if kind > 3:
        values = np.frombuffer(rest[: min(2 * count, len(rest) // 2 * 2)], ">u2")
    else:
        values = np.array(re.sub(rb"#[^\n]*", b"", rest).split()[:count], np.uint16)
    if len(values) < count or not count:
        raise ImageError(f"cannot read {shown}: {len(values)} of {count} values are there")
    values = values.astype(np.uint16).reshape(height, width, bands).transpose(2, 0, 1)
    # 65535 is also what writers put there who know no better.
    return Decoded(values, "L" if bands == 1 else "RGB", white, white != 65535, f"{white.bit_length()}-bit PPM")


def _jpeg2000(data: bytes, shown: str) -> Decoded | None:
    """JPEG 2000 of more than 8 bits; None for others."""
    place = data.find(_JPEG2000[1])
    if place < 0 or len(data) < place + 43:
        return None
    right, bottom, left, top = struct.unpack(">IIII", data[place + 8 : place + 24])
    bits = (data[place + 42] & 0x7F) + 1
    if bits <= 8:
        return None
    check_pixels(right - left, bottom - top, shown)
    with opened(io.BytesIO(data), shown) as image:
        turned = orientation(image)
    values = np.atleast_3d(_imagecodecs(f"{shown} is a JPEG 2000 of {bits} bits").jpeg2k_decode(data)).transpose(
        2, 0, 1
    )
    kind = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(len(values), "bands")
    return Decoded(values, kind, 2**bits - 1, bits != 16, f"{bits}-bit JPEG 2000", turned)


def _imagecodecs(what: str) -> Any:
    try:
        import imagecodecs
    except ImportError:
        raise ImageError(f"{what}, which needs the package imagecodecs: pip install imagecodecs") from None
    return imagecodecs


# ---------------------------------------------------------------- TIFF

_GREY, _COLOUR, _PALETTE, _INK, _YCBCR = (0, 1), 2, 3, 5, 6  # PhotometricInterpretation
_FORMATS = {1: "", 2: "signed ", 3: "floating point "}  # SampleFormat


def _tiff(file: BinaryIO, shown: str, in_chans: int | None, always: bool = False) -> Decoded | None:
    """What Pillow would not read as it is stored; None for the rest, unless it is `always` to be read here."""
    with _tiff_file(file, shown) as tiff:
        page = tiff.pages.first
        bits, form = page.bitspersample, int(page.sampleformat)
        kind, turned = _tiff_kind(page, shown), _turned(page)
        pages = _pages(tiff, in_chans) if kind == "L" else None
        small = form == 1 and bits in (1, 2, 4, 8)
        plain = (bits, form) in ((16, 1), (32, 3))
        if form == 3 and tiff.byteorder == ">" and page.compression != 1:
            plain = False  # Pillow does not swap the bytes of compressed floating point
        grey = kind == "L" and page.photometric == 1 and plain
        inverted = kind[0] == "L" and page.photometric == 0
        changed = kind in ("La", "bands") or (kind == "RGBa" and in_chans == 4) or (kind == "LA" and inverted)
        if pages is None and not always and (grey or small and not changed):
            return None
        if kind in ("P", "YCbCr") or form not in _FORMATS:
            raise ImageError(
                f"{shown} is a TIFF of {bits} bits and kind {kind}, sample format {form}, which is not read"
            )
        try:
            values = page.asarray() if pages is None else pages
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            name = getattr(page.compression, "name", page.compression)
            _imagecodecs(f"{shown} is a TIFF with {name} compression")
            raise
    if pages is None:
        values = values[None] if values.ndim == 2 else values
        values = values.transpose(2, 0, 1) if page.planarconfig == 1 and page.samplesperpixel > 1 else values
    else:
        kind = "bands"
    white = {1: None if bits > 16 else 2**bits - 1, 2: None, 3: 1.0}[form]
    stated = form == 1 and bits not in (16, 32, 64)
    container = f"{bits}-bit {_FORMATS[form]}TIFF" + (f" of {len(values)} bands" if kind == "bands" else "")
    return Decoded(values, kind, white, stated, container, turned, inverted)


def _tiff_file(file: BinaryIO, shown: str) -> Any:
    """An opened TIFF, not decoded. ImageError for more pixels than allowed."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says of damaged files, our error says
    file.seek(0)
    tiff = tifffile.TiffFile(file)
    check_pixels(tiff.pages.first.imagewidth, tiff.pages.first.imagelength, shown)
    return tiff


def _tag(page: Any, code: int, default: int) -> int:
    tag = page.tags.get(code)
    return int(tag.value) if tag is not None and isinstance(tag.value, int) else default


def _turned(page: Any) -> int:
    value = _tag(page, ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _tiff_kind(page: Any, shown: str) -> str:
    """What the samples of a pixel are: a mode of Pillow, or "bands"."""
    extra = tuple(int(one) for one in page.extrasamples)
    colours, what = page.samplesperpixel - len(extra), int(page.photometric)
    alpha = {(): "", (1,): "a", (2,): "A"}.get(extra)
    if what in _GREY:
        return f"L{alpha}" if colours == 1 and alpha is not None else "bands"
    if what == _COLOUR:
        return f"RGB{alpha}" if colours == 3 and alpha is not None else "bands"
    if what == _INK and _tag(page, 332, 1) == 1 and (colours, extra) == (4, ()):
        return "CMYK"
    if what == _INK and _tag(page, 332, 1) != 1:
        return "bands"
    if (what, page.samplesperpixel) in ((_PALETTE, 1), (_YCBCR, 3)):
        return "P" if what == _PALETTE else "YCbCr"
    name = getattr(page.photometric, "name", what)
    raise ImageError(f"{shown} is a TIFF of kind {name} with {page.samplesperpixel} samples a pixel, which is not read")


def _pages(tiff: Any, in_chans: int | None) -> np.ndarray | None:
    """(C, H, W) of a grey TIFF whose pages are bands; None where they are pictures of their own.

    They are bands where there are as many as the model takes, where ImageJ or OME call them channels, or where
    tifffile wrote an array of three dimensions.
    """
    if len(tiff.pages) == 1:
        return None
    shape = tiff.series[0].shape
    if len(shape) != 3 or len(tiff.series) > 1:
        return None
    if tiff.is_shaped:
        last = shape[2] == in_chans != shape[0] or (in_chans not in (shape[0], shape[2]) and shape[2] < shape[0])
        values = tiff.series[0].asarray()
        return values.transpose(2, 0, 1) if last else values
    channels = tiff.series[0].axes[0] == "C" or (in_chans == shape[0] and in_chans not in (1, 3))
    return tiff.series[0].asarray() if channels else None
