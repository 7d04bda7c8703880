"""Pictures of results: classes laid over an image, a legend, and files that appear whole. No torch."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fapn_zoo.runtime.files import write_whole
from fapn_zoo.tasks import fonts

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LEGEND_ROWS = 12
MOST_TEXTS = 40  # beside objects, and ...
TEXT_SHARE = 0.15  # ... at most this share of the picture
BAND = 256  # rows that are drawn at once
HIDDEN = 0.25  # of the box of an object, at most, by one text
TIMES = 4  # as large as the box of its object is a text at most, but for the first


def overlay(
    image: np.ndarray,
    ids: np.ndarray,
    colours: np.ndarray,
    shown: np.ndarray,
    alpha: float,
    boundaries: bool,
    thickest: np.ndarray | None = None,
) -> Image.Image:
    """An image with a map laid over it.

    Args:
        image: (H, W, 3) uint8.
        ids: (H, W) values below V.
        colours: (V, 3) uint8, of each value. shown: (V,) bool, whether it is drawn at all.
        alpha: 0 shows the image only, 1 the colours only; ValueError outside.
        boundaries: draw a thin line between values. thickest: (V,) of it in pixels, on either side of each value.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}; expected 0..1")
    weight, thickness = round(alpha * 256), max(1, round(min(ids.shape) / 700))
    dark = colours.mean(axis=1, keepdims=True) < 80  # a dark class gets a light line
    lines = np.where(dark, colours // 2 + 127, colours // 2)
    picture = Image.new("RGB", ids.shape[::-1])
    for top in range(0, len(ids), BAND):  # a large picture needs little memory beside its own
        band, part = image[top : top + BAND].copy(), ids[top : top + BAND]
        mixed = band.astype(np.uint16) * (256 - weight)
        mixed += colours[part].astype(np.uint16) * weight
        np.copyto(band, (mixed >> 8).astype(np.uint8), where=shown[part][:, :, None])
        if boundaries:
            line = _boundaries(ids[top : top + BAND + thickness], thickness, thickest)[: len(band)]
            band[line] = lines[part[line]]
        picture.paste(Image.fromarray(band), (0, top))
    return picture


def _boundaries(ids: np.ndarray, thickness: int, thickest: np.ndarray | None) -> np.ndarray:
    """(H, W) bool: within `thickness` pixels left of or above another value, so a line is drawn once."""
    line = np.zeros(ids.shape, bool)
    limits = None if thickest is None else thickest[ids]
    for step in [thickness] if limits is None else range(1, thickness + 1):
        for inside, beyond in (np.s_[:, :-step], np.s_[:, step:]), (np.s_[:-step], np.s_[step:]):
            differs = ids[inside] != ids[beyond]
            if limits is not None:
                differs &= np.minimum(limits[inside], limits[beyond]) >= step
            line[inside] |= differs
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


def object_colours(classes: Sequence[int], palette: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """A colour (RGB) per object: the first of a class has the class's, the others differ in hue and brightness.

    The fewer classes there are, the further hues may wander without being taken for another class.
    """
    spread, seen, found = 1 / max(len(palette), 1), {}, []
    for category in classes:
        step = seen[category] = seen.get(category, -1) + 1
        hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in palette[category]))
        if step:
            hue = (hue + spread * ((step * 0.618034) % 1 - 0.5)) % 1
            saturation = max(saturation, 0.5) if spread > 0.3 else saturation
        shade = (1.0, 0.7, 0.85, 0.55)[step % 4]
        found.append(tuple(round(255 * shade * c) for c in colorsys.hsv_to_rgb(hue, saturation, value)))
    return found


def boxed(image: np.ndarray, boxes: np.ndarray, texts: Sequence[str], colours: Sequence[Sequence[int]]) -> Image.Image:
    """An image with boxes drawn on it, the first on top, and texts beside them, see `write_texts`.

    Lines are thin, and thinner on small objects.

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
    write_texts(picture, boxes, texts, colours)
    return picture


def write_texts(
    picture: Image.Image, boxes: np.ndarray, texts: Sequence[str], colours: Sequence[Sequence[int]]
) -> list[tuple[int, int, int, int]]:
    """Writes a text beside each object, the first ones first, and returns the places x1, y1, x2, y2 of those drawn.

    A text stands above its box, else below or beside it, or at the upper edge of a large one, where it hides little of
    any object and no other text. There are at most `MOST_TEXTS`, and as many as fill `TEXT_SHARE` of the picture; after
    the first one, none is more than `TIMES` as large as its box.
    """
    draw, size = ImageDraw.Draw(picture), max(10, min(picture.size) // 45)
    height, taken, room = round(1.35 * size), [], TEXT_SHARE * picture.width * picture.height
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    for box, text, colour in zip(corners.round().astype(int).tolist(), texts, colours, strict=True):
        if not text:
            continue
        width = round(fonts.length(text, size)) + size // 2
        if len(taken) == MOST_TEXTS or (taken and (len(taken) + 1) * width * height > room):
            break
        if taken and width * height > TIMES * (box[2] - box[0]) * (box[3] - box[1]):
            continue
        place = _free_place(box, width, height, picture.size, corners, taken)
        if place is None:
            continue
        taken.append(place)
        draw.rectangle((*place[:2], place[2] - 1, place[3] - 1), fill=tuple(colour))
        light = sum(c * share for c, share in zip(colour, (0.3, 0.59, 0.11), strict=True)) > 140
        fonts.write(draw, (place[0] + size // 4, place[1]), text, "black" if light else "white", size)
    return taken


def _free_place(
    box: Sequence[int],
    width: int,
    height: int,
    size: tuple[int, int],
    boxes: np.ndarray,
    taken: Sequence[Sequence[int]],
) -> tuple[int, int, int, int] | None:
    """Where a text of this width and height hides least of all boxes; None where it would hide too much."""
    x1, y1, x2, y2 = box
    corners = [(x, y) for y in (y1 - height, y2) for x in (x1, x2 - width)]  # above, below
    best, least = None, HIDDEN
    for x, y in [*corners, (x2, y1), (x1 - width, y1), (x1, y1)]:
        x = max(0, min(x, size[0] - width))
        place = (x, y, x + width, y + height)
        if y < 0 or y + height > size[1] or any(_meet(place, other) for other in taken):
            continue
        sides = np.minimum(boxes[:, 2:], place[2:]) - np.maximum(boxes[:, :2], place[:2])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).clip(min=1)
        hidden = float((sides.clip(min=0).prod(axis=1) / areas).max(initial=0))
        if hidden < least:
            best, least = place, hidden
    return best


def _meet(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two boxes x1, y1, x2, y2 have a pixel in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image whole or not at all, in the format of the file's ending (ValueError for an unknown one)."""
    image_format = FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise ValueError(f"cannot write {path}: the name must end in one of {' '.join(FORMATS)}")
    write_whole(path, lambda file: image.save(file, format=image_format))
