"""Reading the files of a data set: images, PNGs of labels and of segments, and what is wrong with them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError
from torch import Tensor

from fapn_zoo.data.decoding import header
from fapn_zoo.data.formats.mat import read_mat
from fapn_zoo.data.hints import id_hint
from fapn_zoo.data.images import load_image
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.opening import ImageError, opened, orientation, upright, upright_size
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.tables import some

EXIF_WHERE = "in classes.json or as a setting"
READING = Reading()  # the usual rules
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF")  # what label files may be, by Pillow's names
LABEL_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".npy", ".mat")
COLOUR_FORM = 'write the colour of each class into classes.json: "values": [[[r, g, b]], ...]'


class UnreadableFile(DataError):
    """An image or label file that cannot be decoded at all."""


def read_image(path: Path, reading: Reading = READING) -> Tensor:
    """An image file as (in_chans, H, W) of 0..255, as `predict` reads it. Raises UnreadableFile, naming the file."""
    try:
        return load_image(path, **reading.options).pixels
    except (ImageError, FileNotFoundError) as error:
        raise UnreadableFile(str(error)) from error


def read_labels(path: Path, reading: Reading = READING, data: bytes | None = None) -> np.ndarray:
    """A label file as (H, W): the stored pixel values, uint8, or int32 where they are deeper than 8 bits.

    It is a PNG, BMP or TIFF, of grey or of palette indices, which is turned as its own EXIF orientation says unless
    pictures are not either; or an array of integers (`.npy`). `data` are its bytes, where they are known and `path` is
    but a word for them.

    Raises:
        DataError: naming the file; colour pictures are refused, since a colour is no class id.
    """
    values, mode = _stored(path, reading, data)
    if values.ndim == 2:
        return values
    hint = f"save labels as 8-bit grey or palette PNG whose pixel value is the class id, or {COLOUR_FORM}"
    raise DataError(f"{path} holds colours (mode {mode}), not class ids; {hint}")


def read_colours(path: Path, reading: Reading = READING, data: bytes | None = None) -> np.ndarray:
    """A label file of RGB colours, or of a palette, as (H, W, 3) uint8; see `read_labels`."""
    values, mode = _stored(path, reading, data, colours=True)
    if values.ndim == 3 and values.dtype == np.uint8 and values.shape[2] in (3, 4) and mode != "CMYK":
        return values[:, :, :3]
    raise DataError(f"{path} holds no RGB colours (mode {mode}), by which its classes are known")


def read_stored(path: Path, colours: bool, reading: Reading = READING, data: bytes | None = None) -> np.ndarray:
    """`read_colours` or `read_labels`."""
    return (read_colours if colours else read_labels)(path, reading, data)


def read_class_ids(path: Path, labels: LabelMap, reading: Reading = READING, data: bytes | None = None) -> np.ndarray:
    """A label file as class ids (H, W), uint8 or int32, by the stored values of `labels`, or where it has none as is.

    Arguments and errors as for `read_labels`; DataError too for values that are of no class, with their shares.
    """
    if labels.raw is None:
        found = read_labels(path, reading, data)
        check_ids(found, labels, f"{path}: ")
        return found
    try:
        stored = read_stored(path, labels.raw.colours, reading, data)
        return labels.raw.ids(stored, labels.ignore_index, f"{path}: ")
    except UnreadableFile:
        raise
    except ValueError as error:
        raise DataError(str(error)) from None


def _stored(path: Path, reading: Reading, data: bytes | None, colours: bool = False) -> tuple[np.ndarray, str]:
    """What a label file holds, (H, W) or (H, W, 3), and Pillow's mode, or the type of an array."""
    if path.suffix.lower() in (".npy", ".mat") and data is None:
        return _array(path, colours)
    try:
        with opened(path if data is None else io.BytesIO(data), str(path)) as file:
            file.load()
            mode, kind, lossy = file.mode, file.format, "jpeg" in str(file.info.get("compression"))
            values = np.asarray(file.convert("RGB") if colours and mode in ("P", "RGBA") else file)
            turned = orientation(file) if reading.turns else 1
            if kind == "TIFF" and not reading.turns and header(path)[1] != 1:
                raise ImageError(f"{path}: a TIFF with an orientation is always turned; save it as PNG for exif=ignore")
        depth = _grey_depth(path, data) if mode == "L" and kind == "PNG" else 8
    except Exception as error:
        raise _unreadable(path, "label file", error) from error
    if kind not in LOSSLESS or lossy:
        why = "JPEG changes the values of pixels" if kind == "JPEG" or lossy else "class ids are read of PNG, BMP, TIFF"
        hint = " with another ending" if path.suffix.lower() == ".png" else ""
        raise DataError(f"{path} is a {kind} file{hint}: {why}, so that classes cannot be told; export labels as PNG")
    if turned != 1:
        bands = upright(np.moveaxis(values.reshape(*values.shape[:2], -1), 2, 0), turned)
        values = np.ascontiguousarray(np.moveaxis(bands, 0, 2) if values.ndim == 3 else bands[0])
    if values.ndim == 2 and mode in ("L", "P", "1"):
        # Pillow stretches 2- and 4-bit greys to 0..255 (3 -> 255, 15 -> 255); take the stored values back.
        return values.astype(np.uint8) // (255 // (2**depth - 1)), mode
    if values.ndim == 2 and values.dtype.kind in "iu":
        return values.astype(np.int32), mode
    if values.ndim == 2:
        raise DataError(f"{path} has mode {mode}, whose values are no class ids; export labels as 8-bit PNG")
    return values, mode


def _array(path: Path, colours: bool) -> tuple[np.ndarray, str]:
    try:
        values = read_mat(path) if path.suffix.lower() == ".mat" else np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, "label file", error) from error
    kind = f"{values.dtype} {values.shape}"
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim == 2 and values.dtype.kind in "iub" and values.size:
        if values.min() < -(2**31) or values.max() >= 2**31:
            raise DataError(f"{path} holds values beyond 32 bits, which are no class ids")
        return values.astype(np.uint8 if values.dtype in (np.uint8, bool) else np.int32), kind
    if colours and values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8:
        return values, kind
    raise DataError(f"{path} is an array of {kind}; expected integers (H, W), or uint8 (H, W, 3) of colours")


def _grey_depth(path: Path, data: bytes | None) -> int:
    with path.open("rb") if data is None else io.BytesIO(data) as file:
        return file.read(25)[24]  # the bit depth byte of a PNG's IHDR chunk


def _unreadable(path: Path, what: str, error: Exception) -> UnreadableFile:
    if isinstance(error, ImageError):
        return UnreadableFile(str(error))
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "not a picture in a known format" if unknown else (str(error) or type(error).__name__).splitlines()[0]
    return UnreadableFile(f"cannot read {what} {path}: {reason}")


def read_ids(path: str | os.PathLike, reading: Reading = READING) -> np.ndarray:
    """The segment ids of a COCO panoptic PNG file, int32 (H, W): red + 256 green + 65536 blue.

    It is turned as its own EXIF orientation says, unless pictures are not either.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, has too many pixels, or is not one of 8-bit RGB (or RGBA, whose alpha is not read).
    """
    try:
        with opened(Path(path), str(path)) as image:
            pixels = np.atleast_3d(np.asarray(image))
            turned = orientation(image) if reading.turns else 1
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if pixels.dtype != np.uint8 or pixels.shape[2] < 3:
        raise ValueError(f"{path} must be 8-bit RGB, got {pixels.shape[2]} channels of {pixels.dtype}")
    red, green, blue = upright(pixels.transpose(2, 0, 1)[:3], turned)
    ids = blue.astype(np.int32)
    for channel in (green, red):
        ids <<= 8
        ids |= channel
    return ids


def check_ids(labels: np.ndarray, label_map: LabelMap, where: str = "") -> None:
    """DataError, which begins with `where`, for values that are neither a class id nor the ignore index."""
    if labels.dtype == np.uint8 and ((labels < label_map.num_classes) | (labels == label_map.ignore_index)).all():
        return  # a tenth of the time that counting takes
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


def stored_size(path: Path, reading: Reading = READING, what: str = "label file") -> tuple[int, int]:
    """(height, width) of a label file or picture as its EXIF orientation turns it; it is not decoded for it."""
    try:
        if path.suffix.lower() == ".mat":
            return read_mat(path).shape
        array = path.suffix.lower() == ".npy"
        size, turned = (np.load(path, mmap_mode="r").shape[:2], 1) if array else header(path)
    except Exception as error:
        raise _unreadable(path, what, error) from error
    return upright_size(size, turned) if reading.turns else size


def check_sizes(
    image: Sequence[int], labels: Sequence[int], image_path: Path, label_path: Path, reading: Reading = READING
) -> None:
    """DataError where the sizes (height, width) of an image and of what is said of it differ.

    Args:
        label_path: of the labels, or of a file that says what size they have.
    """
    if tuple(image) == tuple(labels):
        return
    (h, w), (lh, lw) = image, labels
    hint = _turn_hint(image_path, label_path, reading) if (w, h) == (lh, lw) else ""
    raise DataError(f"sizes differ: {lw}x{lh} in {label_path}, {w}x{h} in {image_path}{hint}")


def _turn_hint(image_path: Path, label_path: Path, reading: Reading) -> str:
    """What would make a picture fit labels whose sides are exchanged."""
    found = []
    for path in (image_path, label_path):
        try:
            found.append(header(Path(path))[1])
        except Exception:  # a URL, or no picture
            found.append(1)
    image, labels = found
    if (image > 4) == (labels > 4):
        return " (their sides are exchanged, and no EXIF orientation says so: turn the labels)"
    if not reading.turns:
        return " (their EXIF orientations differ and exif=ignore leaves both out; exif=apply would fit)"
    turned = f"the picture is turned by its EXIF orientation {image}, its labels are not"
    if labels > 4:
        turned = f"the labels are turned by their EXIF orientation {labels}, the picture is not"
    return f" ({turned}; if the labels were drawn on the stored pixels, set exif=ignore, {EXIF_WHERE})"
