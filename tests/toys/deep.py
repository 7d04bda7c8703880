"""Pictures of more than 8 bits, written byte by byte where the usual writers cannot."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def png16(path: Path, values: np.ndarray, late: bytes = b"") -> Path:
    """(H, W) or (H, W, C) uint16 as a PNG of grey, grey + alpha, RGB or RGBA; `late`: chunks behind the pixels."""
    values = np.atleast_3d(values)
    height, width, bands = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + late + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def ppm(path: Path, values: np.ndarray, white: int, text: bool = False) -> Path:
    """(H, W) or (H, W, 3) as PGM or PPM, in bytes or as text."""
    kind = (6 if values.ndim == 3 else 5) - 3 * text
    head = f"P{kind}\n# made by hand\n{values.shape[1]} {values.shape[0]}\n{white}\n".encode()
    body = b" ".join(b"%d" % value for value in values.ravel()) if text else values.astype(">u2").tobytes()
    path.write_bytes(head + body)
    return path


def tag(path: Path, orientation: int) -> None:
    """Writes an EXIF orientation into a picture, whose stored pixels stay as they are."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)


def exif_chunk(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return chunk(b"eXIf", exif.tobytes()[6:])
