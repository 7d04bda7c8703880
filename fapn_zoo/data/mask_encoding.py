"""COCO's run lengths: a mask as the lengths of its runs down the columns, in turn outside and inside of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hotcoco import mask


@dataclass(frozen=True, eq=False)
class RunLengths:
    """One mask of an image, in little memory.

    Attributes:
        size: (height, width) of the image.
        counts: (R,) int64, the first run outside of the mask (0 where its first pixel is inside).
    """

    size: tuple[int, int]
    counts: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray, y: int, x: int, size: tuple[int, int]) -> RunLengths:
        """Of a mask (h, w) bool whose upper left pixel is at row y, column x of the image, and that lies inside of it.

        No more than the columns that the mask reaches are read.
        """
        height = size[0]
        reached = np.flatnonzero(pixels.any(0))
        if not reached.size:
            return cls(size, np.array([size[0] * size[1]]))
        first, last = int(reached[0]), int(reached[-1]) + 1
        columns = pixels[:, first:last].T
        side = columns.shape[1]
        if side < height:  # a run ends with its column
            columns = np.pad(columns, ((0, 0), (0, 1)))
            side += 1
        flat = np.concatenate([[False], columns.ravel(), [False]])
        turns = np.flatnonzero(flat[1:] != flat[:-1])
        places = (turns // side + x + first) * height + turns % side + y
        counts = np.diff(places, prepend=0, append=size[0] * size[1])
        return cls(size, counts if counts[-1] else counts[:-1])

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.counts[1::2].sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 around the mask, the right and lower edge outside; zeros for an empty one."""
        x, y, width, height = map(int, mask.toBbox(self._uncompressed()))
        return x, y, x + width, y + height

    def pixels(self) -> np.ndarray:
        """The mask of the whole image, (H, W) bool."""
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(inside, self.counts).reshape(self.size[::-1]).T

    @cached_property
    def text(self) -> str:
        """COCO's compressed form of the counts."""
        return mask.frPyObjects(self._uncompressed(), *self.size)["counts"].decode("ascii")

    def _uncompressed(self) -> dict[str, Any]:
        return {"size": [int(side) for side in self.size], "counts": self.counts.tolist()}

    def to_coco(self) -> dict[str, Any]:
        """COCO's `segmentation`: `size` [height, width] and the compressed `counts`."""
        return {"size": [int(side) for side in self.size], "counts": self.text}


def outline(pixels: np.ndarray) -> np.ndarray:
    """A mask (h, w) bool, not empty, as one polygon: (P, 2) int64 x, y in pixels from the mask's upper left corner.

    It goes around pixels, from part to part and into holes by lines that are gone twice. What counts how often a line
    is crossed, as COCO's tools do, makes the very mask of it again.
    """
    padded = np.pad(pixels, 1)
    odd = padded[:-1, :-1] ^ padded[:-1, 1:] ^ padded[1:, :-1] ^ padded[1:, 1:]
    rows, columns = np.nonzero(odd)  # the corners; along every row and column two and two are joined by an edge
    across = np.arange(len(rows)) ^ 1
    order = np.lexsort((rows, columns))
    down = np.empty_like(across)
    down[order] = order[across]
    across, down, left = across.tolist(), down.tolist(), [True] * len(across)
    way, starts = [], []
    for start in range(len(left)):
        if left[start]:
            starts.append(start)
            corner = start
            while left[corner]:
                way += [corner, across[corner]]
                left[corner] = left[across[corner]] = False
                corner = down[across[corner]]
            way.append(start)
    way += starts[-2::-1]  # back from ring to ring
    return np.stack([columns[way], rows[way]], axis=1)
