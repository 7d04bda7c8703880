"""Pictures of results: classes laid over an image, a legend, and files that appear whole. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fapn_zoo.runtime.files import write_whole
from fapn_zoo.tasks import fonts

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LEGEND_ROWS = 12
MOST_TEXTS = 40  # beside boxes


def overlay(
    image: np.ndarray, ids: np.ndarray, colours: np.ndarray, shown: np.ndarray, alpha: float, boundaries: bool
) -> Image.Image:
    """An image with a map laid over it.

    Args:
        image: (H, W, 3) uint8.
        ids: (H, W) values below V.
        colours: (V, 3) uint8, of each value. shown: (V,) bool, whether it is drawn at all.
        alpha: 0 shows the image only, 1 the colours only; ValueError outside.
        boundaries: draw a thin line between values.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}; expected 0..1")
    weight = round(alpha * 256)
    mixed = image.astype(np.uint16) * (256 - weight)
    mixed += colours[ids].astype(np.uint16) * weight
    picture = np.where(shown[ids][:, :, None], mixed >> 8, image).astype(np.uint8)
    if boundaries:
        line = _boundaries(ids, thickness=max(1, round(min(ids.shape) / 700)))
        dark = colours.mean(axis=1, keepdims=True) < 80  # a dark class gets a light line
        picture[line] = np.where(dark, colours // 2 + 127, colours // 2)[ids[line]]
    return Image.fromarray(picture)


def _boundaries(ids: np.ndarray, thickness: int) -> np.ndarray:
    """(H, W) bool: within `thickness` pixels left of or above another value, so a line is drawn once."""
    line = np.zeros(ids.shape, bool)
    line[:, :-thickness] |= ids[:, :-thickness] != ids[:, thickness:]
    line[:-thickness] |= ids[:-thickness] != ids[thickness:]
    return line


def draw_legend(picture: Image.Image, shares: Mapping[str, float], colours: Mapping[str, Sequence[int]]) -> None:
    """Draws names, shares and colours on a dark panel in the upper left corner, as many as the height holds."""
    size = max(10, min(picture.size) // 32)
    line = round(size * 1.4)
    rows = list(shares.items())[: max(1, min(LEGEND_ROWS, picture.height // line - 1))]
    if not rows:
        return
    texts = [f"{name} {share:.1%}" for name, share in rows]
    width = round(max(fonts.length(text, size) for text in texts)) + 3 * size
    panel = Image.new("RGBA", (width, line * len(rows) + size // 2), (0, 0, 0, 150))
    draw = ImageDraw.Draw(panel)
    for row, ((name, _), text) in enumerate(zip(rows, texts, strict=True)):
        top = size // 4 + row * line
        colour = colours.get(name, (128, 128, 128))
        draw.rectangle((size // 2, top + size // 5, size // 2 + size, top + size // 5 + size), fill=tuple(colour))
        fonts.write(draw, (2 * size, top), text, "white", size)
    picture.paste(panel.convert("RGB"), (0, 0), panel.getchannel("A"))


def boxed(image: np.ndarray, boxes: np.ndarray, texts: Sequence[str], colours: Sequence[Sequence[int]]) -> Image.Image:
    """An image with boxes drawn on it, the first on top, and texts beside them.

    Lines are thin, and thinner on small objects. A text stands above its box, or below it where there is no room, so
    that it does not hide the object. It is left out where another one stands already, and there are at most
    `MOST_TEXTS`: the first ones count most.

    Args:
        image: (H, W, 3) uint8.
        boxes: (M, 4) x1, y1, x2, y2 in pixels. texts, colours (RGB): M each.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 350))
    corners = [[round(side) for side in box] for box in boxes.tolist()]
    for (x1, y1, x2, y2), colour in reversed(list(zip(corners, colours, strict=True))):
        width = min(line, 1 + min(x2 - x1, y2 - y1) // 32)
        draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=tuple(colour), width=width)
    size = max(10, min(picture.size) // 45)
    height, taken = round(1.35 * size), []
    for (x1, y1, _, y2), text, colour in zip(corners, texts, colours, strict=True):
        if len(taken) == MOST_TEXTS:
            break
        width = round(fonts.length(text, size)) + size // 2
        left = max(0, min(x1, picture.width - width))
        top = y1 - height if y1 >= height else y2
        place = (left, top, left + width, top + height)
        if top + height > picture.height or any(_meet(place, other) for other in taken):
            continue
        taken.append(place)
        draw.rectangle((*place[:2], place[2] - 1, place[3] - 1), fill=tuple(colour))
        light = sum(c * share for c, share in zip(colour, (0.3, 0.59, 0.11), strict=True)) > 140
        fonts.write(draw, (left + size // 4, top), text, "black" if light else "white", size)
    return picture


def _meet(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two boxes x1, y1, x2, y2 have a pixel in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image whole or not at all, in the format of the file's ending (ValueError for an unknown one)."""
    image_format = FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise ValueError(f"cannot write {path}: the name must end in one of {' '.join(FORMATS)}")
    write_whole(path, lambda file: image.save(file, format=image_format))
