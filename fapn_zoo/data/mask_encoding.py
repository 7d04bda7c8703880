"""COCO's run lengths: a mask as the lengths of its runs down the columns, in turn outside and inside of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

BITS = 5  # of a number in every letter of the compressed form


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
        ends = np.cumsum(self.counts)
        starts, ends = ends[:-1:2], ends[1::2]
        starts, ends = starts[starts < ends], ends[starts < ends] - 1
        if not starts.size:
            return 0, 0, 0, 0
        height = self.size[0]
        left, right = int(starts[0]) // height, int(ends[-1]) // height
        if (starts // height != ends // height).any():  # a run over the end of a column reaches both edges
            return left, 0, right + 1, height
        return left, int((starts % height).min()), right + 1, int((ends % height).max()) + 1

    def pixels(self) -> np.ndarray:
        """The mask of the whole image, (H, W) bool."""
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(inside, self.counts).reshape(self.size[::-1]).T

    @cached_property
    def text(self) -> str:
        """The compressed form: from the fourth run on differences to the last but one, five bits in every letter."""
        left = self.counts.copy()
        left[3:] -= self.counts[1:-2]
        letters = np.zeros((len(left), 64 // BITS + 1), np.uint8)
        there = np.ones(len(left), bool)
        for column in letters.T:
            low = left & 31
            left >>= BITS
            more = np.where(low & 16, left != -1, left != 0)  # the highest bit that is written is the sign
            column[there] = (low | 32 * more)[there] + 48
            there &= more
            if not there.any():
                break
        return letters[letters > 0].tobytes().decode("ascii")

    def to_coco(self) -> dict[str, Any]:
        """COCO's `segmentation`: `size` [height, width] and the compressed `counts`."""
        return {"size": [int(side) for side in self.size], "counts": self.text}
