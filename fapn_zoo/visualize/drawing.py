"""Drawing with Pillow: maps of another size, and true objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from fapn_zoo.data.sample import Objects
from fapn_zoo.tasks import drawing, fonts

Colour = tuple[int, int, int]  # red, green and blue, 0..255


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
