"""Drawing with Pillow: maps enlarged, true objects, and pictures beside each other with words over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from fapn_zoo.data.sample import Objects
from fapn_zoo.tasks import drawing, fonts

Colour = tuple[int, int, int]  # red, green and blue, 0..255
INK, GREY, PAPER = (25, 25, 25), (120, 120, 120), (255, 255, 255)
GAP = 14  # pixels between pictures


def enlarged(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """(h, w, 3) uint8 -> a picture of (width, height): every value a block, or where it shrinks the mean of some."""
    picture = Image.fromarray(pixels)
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
