"""Numba loops behind `fapn_zoo.modules.layers.boxes.pool_boxes`: serial, free of the GIL.

RoIAlign's samples are bilinear and their mean is taken, along rows and along columns apart. So of every cell the weight
of each row and of each column is summed first, and a pixel of the map is read once for a cell instead of four times for
a sample. The innermost loops run along channels and become vector instructions.
"""

from __future__ import annotations

import numpy as np

from fapn_zoo.runtime.compiled import compiled

_jit = compiled(nogil=True, fastmath={"contract"}, error_model="numpy")


@_jit
def _weights(start, length, cells, size, weights, first, last):
    """Of every cell the weight of each of `size` pixels, and the first and the last that has one.

    `start` and `length` in pixels of the map, whose middles are whole numbers.
    """
    weights[:] = 0
    samples = int(np.ceil(length / np.float32(cells)))
    step = length / np.float32(cells)
    share = np.float32(1) / np.float32(max(samples, 1))
    for cell in range(cells):
        first[cell], last[cell] = size, -1
        for i in range(samples):
            place = start + np.float32(cell) * step + (np.float32(i) + np.float32(0.5)) * step / np.float32(samples)
            if place < -1 or place > size:
                continue
            place = max(place, np.float32(0))
            low = int(place)
            if low >= size - 1:
                low = high = size - 1
                place = np.float32(low)
            else:
                high = low + 1
            above = place - np.float32(low)
            weights[cell, low] += share * (np.float32(1) - above)
            weights[cell, high] += share * above
            first[cell], last[cell] = min(first[cell], low), max(last[cell], high)


@_jit
def pool(features, images, boxes, scale, rows, out):
    """RoIAlign with pixel centres and as many samples as pixels, for some boxes of one level.

    Args:
        features: (N, H, W, C) float32. images: (M,) int64. boxes: (M, 4) float32, x1, y1, x2, y2 in input pixels.
        scale: pixels of the map per input pixel. rows: (R,) int64, the boxes to do.
        out: (M, C, side, side) float32, of which these rows are written.
    """
    _, height, width, channels = features.shape
    side = out.shape[2]
    down, across = np.empty((side, height), np.float32), np.empty((side, width), np.float32)
    top, bottom = np.empty(side, np.int64), np.empty(side, np.int64)
    left, right = np.empty(side, np.int64), np.empty(side, np.int64)
    total, half = np.empty((side * side, channels), np.float32), np.float32(0.5)
    for m in rows:
        x1, y1 = boxes[m, 0] * scale - half, boxes[m, 1] * scale - half
        x2, y2 = boxes[m, 2] * scale - half, boxes[m, 3] * scale - half
        _weights(y1, y2 - y1, side, height, down, top, bottom)
        _weights(x1, x2 - x1, side, width, across, left, right)
        total[:] = 0
        for i in range(side):
            for y in range(top[i], bottom[i] + 1):
                for j in range(side):
                    into = total[i * side + j]
                    for x in range(left[j], right[j] + 1):
                        weight = down[i, y] * across[j, x]
                        values = features[images[m], y, x]
                        for c in range(channels):
                            into[c] += weight * values[c]
        flat = out[m].reshape(channels, side * side)
        for c in range(channels):
            for cell in range(side * side):
                flat[c, cell] = total[cell, c]
