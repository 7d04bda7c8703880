"""Drawing with Pillow: maps in colours, their legends, bars, and pictures beside each other with words over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from fapn_zoo.data.sample import Objects
from fapn_zoo.tasks import drawing, fonts

Colour = tuple[int, int, int]  # red, green and blue, 0..255
INK, GREY, PAPER = (25, 25, 25), (120, 120, 120), (255, 255, 255)
GAP = 14  # pixels between pictures
# Dark to bright, evenly spaced; between them colours are mixed.
HEAT = ((10, 8, 35), (80, 18, 110), (165, 45, 95), (225, 90, 50), (250, 165, 25), (250, 250, 160))
SHADE = ((45, 20, 80), (55, 85, 140), (35, 140, 140), (80, 195, 105), (250, 230, 50))


def ramp(values: np.ndarray, colours: Sequence[Colour], low: float, high: float) -> np.ndarray:
    """(...) numbers -> (..., 3) uint8; `low` and less is the first colour, `high` and more the last."""
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(share, stops, [colour[i] for colour in colours]) for i in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def directions(down: np.ndarray, right: np.ndarray, longest: float) -> np.ndarray:
    """Vectors (h, w) as colours (h, w, 3) uint8: the hue is the direction, and white is no length at all."""
    hue = (np.arctan2(down, right) / (2 * np.pi)) % 1
    strength = np.clip(np.hypot(down, right) / max(longest, 1e-12), 0, 1)
    hsv = np.stack([hue * 255, strength * 255, np.full_like(hue, 255)], -1).round().astype(np.uint8)
    # light colours for short vectors would hardly be told apart, so the brightness falls with the length as well
    rgb = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"), np.float32)
    return (rgb * (1 - 0.25 * strength[..., None])).round().astype(np.uint8)


def enlarged(pixels: np.ndarray, size: tuple[int, int], smooth: bool = False) -> Image.Image:
    """(h, w, 3) uint8 -> a picture of (width, height): every value a block, or (an image) resampled smoothly."""
    picture = Image.fromarray(pixels)
    if smooth:
        return picture.resize(size, Image.Resampling.LANCZOS)
    way = Image.Resampling.NEAREST if size[0] >= picture.width else Image.Resampling.BOX
    return picture.resize(size, way)


def resized_ids(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) of ids at (width, height), int32."""
    return np.asarray(Image.fromarray(ids.astype(np.int32)).resize(size, Image.Resampling.NEAREST))


def objects_laid_over(
    image: np.ndarray, objects: Objects, size: tuple[int, int], names: Sequence[str], palette: Sequence[Colour]
) -> Image.Image:
    """True objects drawn on an image, with the names of their classes.

    Args:
        image: (h, w, 3) uint8, of any size. size: (height, width) that the objects are of.
        names, palette: of the classes.
    """
    colours, names = drawing.object_colours(objects.classes.tolist(), palette), fonts.class_names(names)
    both = zip(objects.classes, objects.crowd, strict=True)
    texts = [f"{names[k]} (crowd)" if crowd else names[k] for k, crowd in both]
    boxes = objects.boxes * (2 * [image.shape[1] / size[1], image.shape[0] / size[0]])
    if not objects.has_masks:
        return drawing.boxed(image, boxes, texts, colours)
    table = np.array([(0, 0, 0), *colours], np.uint8)
    ids = resized_ids(objects.map(size), image.shape[1::-1])
    picture = drawing.overlay(image, ids, table, np.arange(len(table)) > 0, 0.5, True)
    drawing.write_texts(picture, boxes, texts, colours)
    return picture


def text_height(size: int) -> int:
    return round(1.45 * size)


def captioned(picture: Image.Image, caption: str, size: int = 15, detail: str = "") -> Image.Image:
    """The picture with a caption over it and, where given, a line of detail under it; both are cut to its width."""
    parts = [text_block([caption], picture.width, size), picture]
    if detail:
        words = text_block([detail], picture.width, size - 2, GREY)
        parts.append(ImageOps.expand(words, (0, 3, 0, 0), PAPER))
    return stacked(parts, 0)


def fitted(text: str, size: int, width: int) -> str:
    """The text, its end replaced by "..." where it is longer than `width` pixels."""
    if fonts.length(text, size) <= width:
        return text
    while text and fonts.length(text + "...", size) > width:
        text = text[:-1]
    return text + "..."


def text_block(lines: Sequence[str], width: int, size: int = 15, colour: Colour = INK) -> Image.Image:
    """Lines of text on paper, each cut to the width."""
    step = text_height(size)
    sheet = Image.new("RGB", (width, max(step * len(lines), 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        fonts.write(draw, (0, row * step), fitted(line, size, width), colour, size)
    return sheet


def beside(pictures: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures in a row, aligned at the top."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(p.height for p in pictures)), PAPER)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def stacked(pictures: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures below each other, aligned at the left."""
    turned = beside([picture.transpose(Image.Transpose.TRANSPOSE) for picture in pictures], gap)
    return turned.transpose(Image.Transpose.TRANSPOSE)


def framed(picture: Image.Image) -> Image.Image:
    return ImageOps.expand(picture, GAP, PAPER)


def colour_bar(width: int, colours: Sequence[Colour], low: str, high: str, size: int = 13) -> Image.Image:
    """A strip from the lowest to the highest value, with both written beside it."""
    face, height = fonts.face(size), text_height(size)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    left, right = round(face.getlength(low)) + 6, round(face.getlength(high)) + 6
    strip = ramp(np.linspace(0, 1, max(width - left - right, 1))[None], colours, 0, 1)
    sheet.paste(Image.fromarray(np.repeat(strip, height - 6, 0)), (left, 3))
    draw.text((0, 0), low, INK, face)
    draw.text((width - right + 6, 0), high, INK, face)
    return sheet


def wheel(diameter: int) -> Image.Image:
    """The legend of `directions`: the colour of every vector that starts in the middle."""
    scale = 3  # drawn larger, so that its edge is smooth
    place = (np.arange(diameter * scale) + 0.5) / (diameter * scale) * 2 - 1
    down, right = np.meshgrid(place, place, indexing="ij")
    pixels = directions(down, right, 1.0)
    pixels[np.hypot(down, right) > 1] = 255
    return Image.fromarray(pixels).reduce(scale)


def arrows(picture: Image.Image, down: np.ndarray, right: np.ndarray, step: int, longest: float) -> Image.Image:
    """Draws an arrow every `step` pixels or so; one of the `longest` length reaches the next arrow's place.

    `down` and `right` (h, w) cover the picture; each arrow is the mean of the vectors around it.
    """
    scale, (width, height) = 3, picture.size
    rows, columns = max(height // step, 1), max(width // step, 1)
    means = [_block_means(values, rows, columns) for values in (down, right)]
    layer = Image.new("L", (width * scale, height * scale), 0)
    draw = ImageDraw.Draw(layer)
    reach = 0.95 * step * scale / max(longest, 1e-12)
    for row, column in np.ndindex(rows, columns):
        dy, dx = (float(np.clip(m[row, column] * reach, -step * scale, step * scale)) for m in means)
        x, y = (column + 0.5) / columns * width * scale, (row + 0.5) / rows * height * scale
        length = float(np.hypot(dx, dy))
        if length < 1.5 * scale:
            draw.ellipse((x - scale, y - scale, x + scale, y + scale), fill=160)
            continue
        tip, tail = (x + dx / 2, y + dy / 2), (x - dx / 2, y - dy / 2)
        draw.line((*tail, *tip), fill=255, width=round(1.3 * scale))
        head, across = min(0.45 * length, 4.5 * scale) / length, 0.6
        back = (tip[0] - dx * head, tip[1] - dy * head)
        side = (-dy * head * across, dx * head * across)
        draw.polygon([tip, (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1])], 255)
    sheet = picture.copy()
    sheet.paste(INK, (0, 0), layer.reduce(scale))
    return sheet


def _block_means(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(h, w) -> (rows, columns) means of the parts of the map; a part holds one value at least."""
    for axis, parts in enumerate((rows, columns)):
        starts = np.arange(parts) * values.shape[axis] // parts
        counts = np.maximum(np.diff(starts, append=values.shape[axis]), 1)
        values = np.add.reduceat(values, starts, axis) / np.expand_dims(counts, 1 - axis)
    return values


def bars(values: np.ndarray, size: tuple[int, int], high: float, face_size: int = 13) -> Image.Image:
    """A filled profile of values (already in order) from 0 to `high` with an axis, on (width, height)."""
    width, height = size
    face = fonts.face(face_size)
    left, bottom = round(face.getlength("0.00")) + 8, text_height(face_size)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    top = round(0.75 * face_size)  # half of a number stands over the line that it names
    plot_width, plot_height = width - left, height - bottom - top
    for share in (0, 0.5, 1):
        y = top + round((1 - share) * plot_height)
        draw.line((left, y, width, y), fill=(225, 225, 225))
        draw.text((0, y - face_size * 0.7), f"{share * high:.2f}", GREY, face)
    edges = left + np.linspace(0, plot_width, len(values) + 1)
    gap = 1 if plot_width >= 3 * len(values) else 0  # bars that are wide enough stand apart
    for value, start, end in zip(values, edges, edges[1:], strict=False):
        y = top + (1 - min(value / high, 1)) * plot_height
        colour = tuple(int(c) for c in ramp(np.array(value), SHADE, 0, high))
        right = max(round(end) - 1 - gap, round(start))
        draw.rectangle((round(start), round(y), right, top + plot_height), fill=colour)
    draw.text((left, height - bottom + 2), "1", GREY, face)
    last = str(len(values))
    draw.text((width - face.getlength(last) - 1, height - bottom + 2), last, GREY, face)
    room = plot_width - face.getlength(last) - 40
    middle = next((t for t in ("channels, strongest first", "strongest first", "") if face.getlength(t) <= room), "")
    draw.text((left + (plot_width - face.getlength(middle)) / 2, height - bottom + 2), middle, GREY, face)
    return sheet
