"""Random scale, crop, flip and colour change of one training sample; geometry is drawn once for all it holds."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from fapn_zoo.data.sample import LABELS, Crop, Objects, Sample

# Luma and the two colour axes of YIQ: hue turns the colour plane and leaves the luma as it is.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_RGB = np.linalg.inv(_YIQ)
_LUMA = _YIQ[0]
SLIVER = 0.01  # pixels: what is left of a box is nothing where it is thinner
MOST_TRIES = 10  # windows that are drawn until no class fills one
_kept = threading.local()


@dataclass(frozen=True)
class TrainTransform:
    """Callable `(sample, seed) -> sample`; everything random comes from `seed` alone.

    The picture is resized by one random factor, a window of `crop_size` is cut at a random place (where the resized
    picture is smaller it lies at a random place inside the window, the rest is `fill` and `ignore_index`), flipped
    left-right, and its colours change. Only the part of the picture under the window is ever resized.

    Args:
        crop_size: (height, width) of what comes out, pixels; (0, 0): the whole resized picture.
        scale: smallest and largest resize factor; drawn evenly on the log scale.
        short_sides: instead of `scale`, as in the official trainings: the short side becomes one of these, or less
            where the long one would exceed `max_side` (0: any). A smaller picture then lies at the top left.
        category_max: of ten windows the first is taken that shows two classes and none of them on this share or more
            of the labelled pixels, else the last; 1 takes any, others need labels.
        flip: probability of the left-right flip.
        brightness, contrast, saturation: factor drawn from [1 - v, 1 + v]; 0 switches it off.
        hue: turn of the colour plane drawn from [-v, v], in full turns (0.05 = 18 degrees), at most 0.5. Saturation
            and hue change RGB only; brightness and contrast change any number of bands alike.
        ignore_index: label of the padding; where there are segments, it is void.
        fill: of the padding, a value (0..255) per channel; the default is the ImageNet mean, which normalises to zero.
        rare_classes, rare_prob: with this probability, and where the picture holds one of these classes, the window
            is put around a random pixel of one of them; needs labels.
        needs: what of a sample is kept: "labels", "segments", "masks", "boxes".

    Raises:
        ValueError: an argument out of its range.
    """

    crop_size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.03
    ignore_index: int = 255
    fill: tuple[float, ...] = (123.675, 116.28, 103.53)
    rare_classes: tuple[int, ...] = ()
    rare_prob: float = 0.0
    needs: frozenset[str] = LABELS
    short_sides: tuple[int, ...] = ()
    max_side: int = 0
    category_max: float = 1.0

    def __post_init__(self) -> None:
        for name in ("crop_size", "scale", "fill", "rare_classes", "short_sides"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.crop_size) != 2 or (min(self.crop_size) < 1 and self.crop_size != (0, 0)):
            raise ValueError(f"crop_size must be (height, width), both >= 1, or (0, 0), not {self.crop_size!r}")
        if self.short_sides and min(self.short_sides) < 1:
            raise ValueError(f"short_sides must be at least 1, not {self.short_sides!r}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale must be (smallest, largest) with 0 < smallest <= largest, not {self.scale!r}")
        shares = ("flip", "rare_prob", "category_max", "brightness", "contrast", "saturation")
        limits = dict.fromkeys(shares, 1) | {"hue": 0.5}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be in 0..{limit}, not {getattr(self, name)!r}")
        if not self.fill:
            raise ValueError("fill must be a number per channel, not ()")

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Transforms one sample.

        Args:
            sample: image (C, H, W) of 0..255, uint8 or float32; C is the length of `fill`.
            seed: integer >= 0.

        Returns:
            The sample with an image (C, h, w) float32 of 0..255, (h, w) = `crop_size`, and with labels int64 and
            objects of that size, as far as they are needed. Objects that are not seen any more have an empty mask and
            an empty box; of one that the window cuts the box is that around the rest of its mask, or the rest of it.
        """
        image = sample.image
        if image.ndim != 3 or image.shape[0] != len(self.fill):
            raise ValueError(f"image must be ({len(self.fill)}, H, W), not {tuple(image.shape)}")
        if sample.labels is not None and sample.labels.shape != sample.size:
            raise ValueError(f"labels {sample.labels.shape} do not fit the image {sample.size}")
        if image.dtype != torch.uint8:
            image = image.float().clamp(0, 255)
        rng, size = np.random.default_rng(seed), sample.size
        resized = self._resized(rng, size)
        shape = tuple(crop or full for crop, full in zip(self.crop_size, resized, strict=True))
        window = self._window(rng, sample.labels, size, resized)
        mirror = rng.random() < self.flip
        colour = [1 + rng.uniform(-v, v) for v in (self.brightness, self.contrast, self.saturation)]
        colour.append(rng.uniform(-self.hue, self.hue))

        # Per axis: where the image starts in the output, and which resized pixels [first, last) are shown there.
        (top, y0, y1), (left, x0, x1) = window
        rows, cols = (_source_index(a, b, n, m) for a, b, n, m in zip((y0, x0), (y1, x1), size, resized, strict=True))
        pixels = _resize_part(image.numpy(), resized, (y0, y1, x0, x1))
        if mirror:
            pixels, cols = pixels[..., ::-1], cols[::-1]
            left = 0 if self.short_sides else shape[1] - left - len(cols)
        inside = (slice(top, top + len(rows)), slice(left, left + len(cols)))
        out = np.empty((len(image), *shape), np.float32)
        if pixels.shape[1:] != shape:
            out[:] = np.asarray(self.fill, np.float32)[:, None, None]
        _change_colour(pixels, colour, out[:, inside[0], inside[1]])

        def moved(values: np.ndarray, empty: int, dtype: type) -> np.ndarray:
            shown = np.full(shape, empty, dtype)
            shown[inside] = values.take(rows, 0).take(cols, 1)  # a fraction of the time that both at once take
            return shown

        kept = sample.only(self.needs)
        labels = None if kept.labels is None else moved(kept.labels, self.ignore_index, np.int64)
        objects = kept.objects
        if objects is not None:
            ids = None if objects.ids is None else moved(objects.ids, 0, np.int32)
            crops = objects.crops and tuple(_moved_crop(crop, rows, cols, top, left) for crop in objects.crops)
            objects = dataclasses.replace(objects, ids=ids, crops=crops, given_boxes=None, given_areas=None)
            if kept.objects.given_boxes is not None:
                boxes = kept.objects.given_boxes * ([resized[1] / size[1], resized[0] / size[0]] * 2)
                boxes = _moved_boxes(boxes, (x0, y0, x1, y1), (left, top), mirror, objects)
                objects = dataclasses.replace(objects, given_boxes=boxes)
        return Sample(torch.from_numpy(out), sample.name, labels, objects)

    def _resized(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, ...]:
        if not self.short_sides:
            factor = math.exp(rng.uniform(*np.log(self.scale)))
            return tuple(max(1, round(n * factor)) for n in size)
        factor = self.short_sides[rng.integers(len(self.short_sides))] / min(size)
        factor = min(factor, self.max_side / max(size)) if self.max_side else factor
        return tuple(max(1, int(n * factor + 0.5)) for n in size)  # halves up, as `predict` resizes

    def _window(
        self, rng: np.random.Generator, labels: np.ndarray | None, size: tuple[int, int], resized: tuple[int, int]
    ) -> list[tuple[int, int, int]]:
        """Per axis: where the picture begins in the output, and the first and last of its resized pixels there."""
        for _ in range(1 if self.category_max == 1 or labels is None else MOST_TRIES):
            window = self._any_window(rng, labels, size, resized)
            if self.category_max < 1 and labels is not None:
                parts = zip(window, size, resized, strict=True)
                rows, cols = (_source_index(*part[1:], old, new) for part, old, new in parts)
                ids = labels[rows[:, None], cols]
                counts = np.bincount(ids[ids != self.ignore_index])
                if np.count_nonzero(counts) > 1 and counts.max() < self.category_max * counts.sum():
                    break
        return window

    def _any_window(
        self, rng: np.random.Generator, labels: np.ndarray | None, size: tuple[int, int], resized: tuple[int, int]
    ) -> list[tuple[int, int, int]]:
        wanted = rng.random() < self.rare_prob
        centre = self._rare_pixel(rng, labels) if wanted and labels is not None else None
        parts = []
        for axis in (0, 1):
            full, draw = resized[axis], rng.random()
            crop = self.crop_size[axis] or full
            if full <= crop:
                parts.append((0 if self.short_sides else int(draw * (crop - full + 1)), 0, full))
                continue
            first = int(draw * (full - crop + 1))
            if centre is not None:  # the pixel lands anywhere in the window, as far as the picture's border allows
                at = int((centre[axis] + 0.5) * full / size[axis])
                first = min(max(at - int(draw * crop), 0), full - crop)
            parts.append((0, first, first + crop))
        return parts

    def _rare_pixel(self, rng: np.random.Generator, labels: np.ndarray) -> tuple[int, int] | None:
        for wanted in rng.permutation(np.asarray(self.rare_classes, np.int64)):
            found = np.flatnonzero(labels == wanted)
            if len(found):
                return divmod(int(found[rng.integers(len(found))]), labels.shape[1])
        return None


def _source_index(first: int, last: int, size: int, resized: int) -> np.ndarray:
    """Nearest source pixel of the resized pixels first..last-1, by pixel centres, in exact integer arithmetic."""
    return ((2 * np.arange(first, last) + 1) * size) // (2 * resized)


def _moved_crop(crop: Crop, rows: np.ndarray, cols: np.ndarray, top: int, left: int) -> Crop:
    """A mask as label maps are moved: output pixel (top + i, left + j) is the source's (rows[i], cols[j])."""
    down, across = rows - crop.y, cols - crop.x
    height, width = crop.pixels.shape
    down_in, across_in = (np.flatnonzero((to >= 0) & (to < n)) for to, n in ((down, height), (across, width)))
    if not len(down_in) or not len(across_in):
        return Crop(np.zeros((0, 0), bool), 0, 0)
    pixels = crop.pixels[down[down_in][:, None], across[across_in]]
    return Crop(pixels, top + int(down_in[0]), left + int(across_in[0]))


def _moved_boxes(
    boxes: np.ndarray, part: tuple[int, int, int, int], place: tuple[int, int], mirror: bool, moved: Objects
) -> np.ndarray:
    """Boxes (M, 4) of the resized picture, of which `part` (x1, y1, x2, y2) is shown with its corner at `place` (x, y).

    Of an object that reaches out of the part the box is that around its mask in `moved`, or without masks what is left
    of it; where nothing is left it is 0.
    """
    x1, y1, x2, y2 = part
    boxes = boxes - [x1, y1, x1, y1]
    if mirror:
        boxes = np.stack([x2 - x1 - boxes[:, 2], boxes[:, 1], x2 - x1 - boxes[:, 0], boxes[:, 3]], axis=1)
    inside = boxes.clip(0, [x2 - x1, y2 - y1] * 2)
    cut = (np.abs(inside - boxes) > 1).any(axis=1)  # by less it is how a box was drawn
    inside += [*place, *place]
    if moved.has_masks:
        inside[cut] = moved.boxes[cut]
    inside[(inside[:, 2:] - inside[:, :2] < SLIVER).any(axis=1)] = 0
    return inside


def _resize_part(image: np.ndarray, resized: tuple[int, int], part: tuple[int, int, int, int]) -> np.ndarray:
    """The rows y0:y1 and columns x0:x1 of `image` (C, H, W) resized (bilinear with antialias), (C, h, w), same type."""
    y0, y1, x0, x1 = part
    height, width = image.shape[1:]
    if resized == (height, width):
        return image[:, y0:y1, x0:x1]
    sy, sx = height / resized[0], width / resized[1]
    box = (x0 * sx, y0 * sy, min(x1 * sx, width), min(y1 * sy, height))
    size = (x1 - x0, y1 - y0)
    # The filter looks past the box into the rest of the image, so this equals resizing everything and then cutting.
    return np.stack([Image.fromarray(band).resize(size, Image.Resampling.BILINEAR, box=box) for band in image])


def _change_colour(pixels: np.ndarray, factors: Sequence[float], out: np.ndarray) -> None:
    """Brightness, contrast, saturation and hue, in this order: (C, h, w) -> `out` float32 in 0..255.

    Each of the four is affine in RGB, so they are one 3x3 matrix and one offset, and each pixel is touched once. Other
    bands than RGB have neither saturation nor hue; each goes towards its own mean.
    """
    brightness, contrast, saturation, hue = factors
    if [*factors] == [1, 1, 1, 0]:
        out[:] = pixels
        return
    if len(pixels) != 3:
        for band, plane in zip(pixels, out, strict=True):
            np.multiply(band, np.float32(brightness * contrast), out=plane)
            plane += np.float32((1 - contrast) * brightness * float(band.mean()))
        np.clip(out, 0, 255, out=out)
        return
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    fade = saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), _LUMA)
    matrix = (brightness * contrast * (turn @ fade)).astype(np.float32)
    plane, part = _scratch(pixels.shape[1:])
    luma = 0.0
    # Plane by plane: a BLAS product of 3x3 and 3xN could round differently with the number of threads.
    for j in range(3):
        plane[:] = pixels[j]
        luma += _LUMA[j] * float(plane.mean())
        for i in range(3):
            if j == 0:
                np.multiply(plane, matrix[i, j], out=out[i])
            else:
                out[i] += np.multiply(plane, matrix[i, j], out=part)
    out += np.float32((1 - contrast) * brightness * luma)  # towards the mean luma; a grey is kept by the other two
    np.clip(out, 0, 255, out=out)


def _scratch(shape: tuple[int, int]) -> np.ndarray:
    """Two float32 planes of `shape`, the same memory at every call of a thread: fresh pages cost more than the work."""
    count = 2 * shape[0] * shape[1]
    if getattr(_kept, "memory", None) is None or len(_kept.memory) < count:
        _kept.memory = np.empty(count, np.float32)
    return _kept.memory[:count].reshape(2, *shape)
