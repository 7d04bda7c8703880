"""COCO's masks of single objects, polygons and run lengths, as crops; no pixel outside of an object is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fapn_zoo.data.sample import Crop

Shape = tuple[np.ndarray, ...] | np.ndarray | bytes  # polygons, run lengths, or compressed ones


def crop_of(shape: Shape, size: tuple[int, int]) -> Crop:
    """The mask that COCO's tools make of it, without empty rows and columns around it.

    Args:
        shape: polygons, each (2 P,) float64 x, y, x, y, ..., of which the union is meant; run lengths down the columns
            (integers, the first one outside of the mask); or these in COCO's compressed form.
        size: (H, W) of the image.

    Raises:
        ValueError: run lengths that are no such text, or do not add up to H times W.
    """
    if isinstance(shape, tuple):
        from hotcoco import mask  # rasterises polygons as pycocotools does

        shape = mask.merge(mask.frPyObjects([part.tolist() for part in shape], *size))["counts"]
    runs = uncompressed(shape) if isinstance(shape, bytes) else np.asarray(shape, np.int64)
    if runs.size and (runs.min() < 0 or runs.sum() != size[0] * size[1]):
        height, width = size
        raise ValueError(f"its run lengths add up to {runs.sum():,}, the picture has {height * width:,} pixels")
    return _crop_of_runs(runs, size[0])


def uncompressed(text: bytes) -> np.ndarray:
    """COCO's compressed run lengths -> (R,) int64.

    A number is a row of characters, 5 bits each from the lowest, 48 added; bit 6 says that it goes on, the highest of
    the last one's 5 bits that it is negative. From the fourth on they are differences to the last but one before.
    """
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if digits.size and (digits.min() < 0 or digits.max() > 63 or digits[-1] & 32):
        raise ValueError("its run lengths are no compressed ones of COCO")
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1]).astype(np.int64)
    place = 5 * (np.arange(len(digits)) - np.repeat(first, last - first + 1))
    if place.size and place.max() > 45:
        raise ValueError("its run lengths are no compressed ones of COCO")
    values = np.add.reduceat((digits & 31) << place, first) if last.size else np.zeros(0, np.int64)
    values -= np.where(digits[last] & 16, 1 << (place[last] + 5), 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values


def _crop_of_runs(runs: Sequence[int] | np.ndarray, height: int) -> Crop:
    """Only the columns that the mask reaches are written."""
    ends = np.cumsum(runs)
    starts, ends = ends[: 2 * (len(runs) // 2) : 2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return Crop(np.zeros((0, 0), bool), 0, 0)
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    change = np.zeros((right - left) * height + 1, np.int8)
    np.add.at(change, starts - left * height, 1)
    np.add.at(change, ends - left * height, -1)
    pixels = np.cumsum(change[:-1], dtype=np.int8).astype(bool).reshape(right - left, height)
    rows = np.flatnonzero(pixels.any(0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return Crop(np.ascontiguousarray(pixels[:, top:bottom].T), top, left)
