"""Numba loops of the metrics: serial, free of the GIL, exact in integers.

Importing this module imports numba (about a second), so callers do it at first use. All loops are in this one file,
because numba's disk cache looks no further. Label maps here are "compact": uint8 or uint16 class ids, with `void` for
pixels without truth. Inner loops run over whole rows with equal offsets, the form LLVM turns into vectors.
"""

from __future__ import annotations

import numpy as np

from fapn_zoo.runtime.compiled import compiled

Array = np.ndarray
_jit = compiled(nogil=True)


@_jit
def compact(ids: Array, classes: int, ignoring: bool, ignore: int, void: int, out: Array) -> int:
    """Writes flat `ids` to `out`, those equal to `ignore`, if ignoring, as `void`.

    Returns:
        How many are neither ignored nor in 0..classes-1; they become void too.
    """
    bad = 0
    for i in range(ids.size):
        value = ids[i]
        ignored = ignoring and value == ignore
        known = np.uint64(value) < np.uint64(classes)
        bad += not (known or ignored)
        out[i] = void if ignored or not known else value
    return bad


@_jit
def _raise(row: Array, other: Array, count: int) -> None:
    for x in range(count):
        a, b = row[x], other[x]
        row[x] = b if b > a else a


@_jit
def _higher(out: Array, row: Array, other: Array, count: int) -> None:
    for x in range(count):
        a, b = row[x], other[x]
        out[x] = b if b > a else a


@_jit
def _copy(out: Array, row: Array, count: int) -> None:
    for x in range(count):
        out[x] = row[x]


@_jit
def _widen(image: Array, radius: int, spare: Array) -> None:
    """In place, each pixel becomes the largest of the square of 2 * radius + 1 that begins there.

    Windows double: the maximum over 2 n pixels is that of two windows of n. `spare` (2, width) holds rows in progress.
    The last 2 * radius rows and columns are left without meaning.
    """
    height, width = image.shape
    size = 2 * radius + 1
    have = 1
    while have < size:
        step = min(have, size - have)
        for y in range(height - step):
            _raise(image[y], image[y + step], width)
        have += step
    for y in range(height - size + 1):
        have, row, turn = 1, image[y], 0
        while have < size:
            step = min(have, size - have)
            _higher(spare[turn], row, row[step:], width - step)
            row, turn = spare[turn], 1 - turn
            have += step
        _copy(image[y], row, width - size + 1)


@_jit
def _fill(high: Array, low: Array, labels: Array, void: int, skip_void: bool) -> None:
    """`low` gets the bits turned over: the smallest label of a window is the largest of these."""
    for x in range(labels.size):
        skip = skip_void and labels[x] == void
        high[x] = 0 if skip else labels[x]
        low[x] = 0 if skip else ~labels[x]


@_jit
def _add_equal(out: Array, high: Array, low: Array) -> None:
    for x in range(out.size):
        out[x] += np.uint8(high[x] <= high.dtype.type(~low[x]))


@_jit
def rings(labels: Array, void: int, skip_void: bool, border: bool, radii: Array) -> Array:
    """For each pixel the number of radii whose square window shows no second class.

    Args:
        labels: compact label map (H, W).
        void: the label of pixels without truth; with skip_void it is no class of its own, and its own pixels get
            values without meaning.
        border: whether what lies beyond the image is another class; otherwise windows end at the border.
        radii: ascending, at least 1; the window of radius r is 2 r + 1 pixels wide and high.

    Returns:
        uint8 (H, W): 0 where even the smallest window shows two classes, up to len(radii) where not even the largest.
    """
    height, width = labels.shape
    pad = radii[-1]
    high = np.full((height + 2 * pad, width + 2 * pad), labels.dtype.type(65535 if border else 0))
    low = high.copy()
    for y in range(height):
        _fill(high[y + pad, pad:], low[y + pad, pad:], labels[y], void, skip_void)
    spare = np.empty((2, width + 2 * pad), labels.dtype)
    out = np.zeros((height, width), np.uint8)
    reached = 0
    for radius in radii:
        _widen(high, radius - reached, spare)
        _widen(low, radius - reached, spare)
        reached = radius
        shift = pad - reached  # windows begin at their pixel, so what is known of pixel y moves up by the radius
        for y in range(height):
            _add_equal(out[y], high[y + shift, shift:], low[y + shift, shift:])
    return out


@_jit
def count_zones(zones: Array, truth: Array, pred: Array, void: int, classes: int, table: Array, apart: int) -> None:
    """Adds flat compact maps to a flat table of zones x classes x classes; void truth counts nowhere.

    Neighbouring pixels mostly hit the same cell, where each addition would wait for the last; so of four pixels each
    goes to a table of its own, `apart` cells after the one before. With 0 there is one table.
    """
    for at in range(truth.size):
        if truth[at] != void:
            row = np.int64(zones[at]) * classes + np.int64(truth[at])
            table[np.uint64((at & 3) * apart + row * classes + np.int64(pred[at]))] += 1


@_jit
def count_regions(
    truth_zones: Array, pred_zones: Array, truth: Array, pred: Array, void: int, classes: int, table: Array, apart: int
) -> None:
    """Adds the pixels of boundary regions, zone 0 of `rings`, to a flat table of (classes + 1) x (classes + 1).

    The last row and column are for pixels outside the region of the truth or of the prediction. Void truth is outside.
    """
    for at in range(truth.size):
        row = np.int64(truth[at]) if truth_zones[at] == 0 and truth[at] != void else np.int64(classes)
        column = np.int64(pred[at]) if pred_zones[at] == 0 and truth[at] != void else np.int64(classes)
        table[np.uint64((at & 3) * apart + row * (classes + 1) + column)] += 1


@_jit
def contours(labels: Array, pad: int, classes: int) -> tuple[Array, Array, Array]:
    """Pixels whose right, lower or lower right neighbour has another label; such a pixel is on the contour of each.

    Returns:
        uint8 (H + 2 * pad, W + 2 * pad), 1 on contours; the same size, at (y, x) whether any contour is at most `pad`
        rows and columns from that pixel; and int64 (classes,), how many contour pixels each class has.
    """
    height, width = labels.shape
    flags = np.zeros((height + 2 * pad, width + 2 * pad), np.uint8)
    sizes = np.zeros(classes, np.int64)
    for y in range(height):
        below = labels[min(y + 1, height - 1)]
        for x in range(width):
            right = min(x + 1, width - 1)
            a, b, c, d = labels[y, x], labels[y, right], below[x], below[right]
            if a != b or a != c or a != d:
                flags[y + pad, x + pad] = 1
                if a < classes:
                    sizes[a] += 1
                if b != a and b < classes:
                    sizes[b] += 1
                if c != a and c != b and c < classes:
                    sizes[c] += 1
                if d != a and d != b and d != c and d < classes:
                    sizes[d] += 1
    near = flags.copy()
    _widen(near, pad, np.empty((2, width + 2 * pad), np.uint8))
    return flags, near, sizes


@_jit
def _nearest(label: int, y: int, x: int, labels: Array, flags: Array, pad: int, offsets: Array) -> int:
    """Which of `offsets` first leads from (y, x) to the contour of `label`, or their number."""
    height, width = labels.shape
    for i in range(offsets.shape[0]):
        v, u = y + offsets[i, 0], x + offsets[i, 1]
        if flags[v + pad, u + pad]:
            low, right = min(v + 1, height - 1), min(u + 1, width - 1)
            if labels[v, u] == label or labels[v, right] == label:
                return i
            if labels[low, u] == label or labels[low, right] == label:
                return i
    return offsets.shape[0]


@_jit
def match_contours(
    labels: Array, flags: Array, others: tuple, pad: int, offsets: Array, levels: Array, hits: Array
) -> None:
    """Adds to `hits` (classes, n) at what level each contour pixel of `labels` meets its class's contour in others.

    Args:
        others: other labels, and what `contours` gives for them.
        offsets: (m, 2) rows and columns to look at, nearest first, none longer than `pad`.
        levels: (m + 1,) the level of each offset and, last, of finding nothing.
    """
    height, width = labels.shape
    other, other_flags, other_near, other_sizes = others
    found = np.empty(4, np.int64)
    for y in range(height):
        low = min(y + 1, height - 1)
        for x in range(width):
            if flags[y + pad, x + pad] == 0:
                continue
            right = min(x + 1, width - 1)
            found[0], found[1], found[2], found[3] = labels[y, x], labels[y, right], labels[low, x], labels[low, right]
            for i in range(4):
                label = found[i]
                fresh = label < hits.shape[0]
                for j in range(i):
                    fresh = fresh and found[j] != label
                if fresh:
                    nearest = offsets.shape[0]
                    if other_near[y, x] and other_sizes[label]:
                        nearest = _nearest(label, y, x, other, other_flags, pad, offsets)
                    hits[label, levels[nearest]] += 1


@_jit
def _slot(keys: Array, counts: Array, key: int) -> int:
    """Where `key` is in a hash table whose size is a power of two, or the free place for it."""
    last = np.uint64(keys.size - 1)
    at = ((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & last
    while counts[at] and keys[at] != key:
        at = (at + np.uint64(1)) & last
    return at


@_jit
def _changes(first: Array, before_first: Array, second: Array, before_second: Array, out: Array) -> None:
    for i in range(first.size):
        out[i] = (first[i] != before_first[i]) | (second[i] != before_second[i])


@_jit
def count_overlaps(first: Array, second: Array, keys: Array, counts: Array) -> int:
    """Sums the areas of all pairs of ids of two flat vectors, not empty, in a hash table.

    Maps of segments are runs of equal pixels. The ends of runs are found for 1024 pixels at a time, without branches
    that depend on where they are; then each run is one addition.

    Args:
        keys: uint64 (n,), n a power of two; becomes first id * 2**32 + second id.
        counts: int64 (n,), zeros; becomes pixels, 0 where the place is free.

    Returns:
        The number of pairs, -1 where they would fill more than half the table, -2 for ids outside 0..2**32 - 1.
    """
    flags = np.zeros(1024, np.uint8)
    eights, ends = flags.view(np.uint64), np.empty(1024 + 8, np.int64)
    used, start, size = 0, 0, first.size
    for base in range(1, size + 1, 1024):
        known = min(1024, size - base)
        if known < 1024:
            flags[:] = 0
            flags[known] = 1  # the last run ends with the vector
        a, b = first[base - 1 : base + known], second[base - 1 : base + known]
        _changes(a[1:], a[:-1], b[1:], b[:-1], flags)
        runs = 0
        for at in range(128):
            if eights[at] != 0:
                for i in range(8 * at, 8 * at + 8):
                    ends[np.uint64(runs)] = base + i
                    runs += flags[i]
        for run in range(runs):
            one, two = np.uint64(first[start]), np.uint64(second[start])
            if (one | two) >> np.uint64(32):
                return -2
            key = one << np.uint64(32) | two
            at = _slot(keys, counts, key)
            if counts[at] == 0:
                used += 1
                keys[at] = key
                if 2 * used > keys.size:
                    return -1
            counts[at] += ends[run] - start
            start = ends[run]
    return used
