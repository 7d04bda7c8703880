"""Annotations by the million: numbers in columns, and an object for each only when it is asked for."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fapn_zoo.data.coco_annotations import Annotation, Picture
from fapn_zoo.data.mask_decoding import Shape


class Columns:
    """The annotations of all pictures of a split; 8 bytes for each number of a polygon, some 150 for all else.

    First they are added, in any order; `hand_out` ends that. Reading changes nothing, so loader workers that are forked
    share them.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._places, self._classes, self._crowds = array("q"), array("q"), array("b")
        self._boxes, self._areas, self._points = array("d"), array("d"), array("d")  # NaN: there is none
        # Where polygons end in `_points`; those of annotation i end before number `_parts[i + 1]`.
        self._ends, self._parts = array("q"), array("q", [0])
        self._runs: dict[int, Shape] = {}

    def __len__(self) -> int:
        """How many there are, without those that are left out."""
        return int(np.count_nonzero(self._classes >= 0))

    def add(self, picture: int, one: Annotation) -> None:
        """Adds an annotation of the picture in this place."""
        if isinstance(one.shape, tuple):
            for part in one.shape:
                self._points.frombytes(part.tobytes())
                self._ends.append(len(self._points))
        elif one.shape is not None:
            self._runs[len(self._names)] = one.shape
        self._parts.append(len(self._ends))
        self._names.append(one.name)
        self._places.append(picture)
        self._classes.append(one.category)
        self._crowds.append(one.crowd)
        self._boxes.extend(one.box or (np.nan,) * 4)
        self._areas.append(np.nan if one.area is None else one.area)

    def hand_out(self, pictures: Sequence[Picture]) -> None:
        """Gives every picture its annotations, in the order in which they were added."""
        for name, column in vars(self).items():
            if isinstance(column, array):
                setattr(self, name, np.asarray(column))  # the same memory
        order = np.argsort(self._places, kind="stable")
        ends = [0, *np.cumsum(np.bincount(self._places, minlength=len(pictures))).tolist()]
        for picture, (first, last) in zip(pictures, pairwise(ends), strict=True):
            picture.objects = Rows(self, order[first:last])

    def renumber(self, ids: Sequence[int | None], pictures: Sequence[Picture]) -> int:
        """Gives annotations of class k the class `ids[k]`; those whose new one is None are left out, and counted."""
        before = len(self)
        table = np.array([-1 if new is None else new for new in ids] or [-1])
        self._classes = np.where(self._classes < 0, -1, table[self._classes])
        for picture in pictures:
            picture.objects = Rows(self, picture.objects.rows[self._classes[picture.objects.rows] >= 0])
        return before - len(self)

    def __getitem__(self, row: int) -> Annotation:
        box, area = self._boxes[4 * row : 4 * row + 4].tolist(), float(self._areas[row])
        first, last = self._parts[row : row + 2].tolist()
        shape = self._runs.get(row)
        if first < last:
            ends = self._ends[first:last].tolist()
            starts = [int(self._ends[first - 1]) if first else 0, *ends]
            shape = tuple(self._points[start:end] for start, end in zip(starts, ends, strict=False))
        known, area = None if box[0] != box[0] else tuple(box), None if area != area else area
        return Annotation(self._names[row], int(self._classes[row]), bool(self._crowds[row]), known, area, shape)

    def without_mask(self) -> list[int]:
        """The rows of annotations that have none."""
        bare = (np.diff(self._parts) == 0) & (self._classes >= 0)
        return [row for row in np.flatnonzero(bare).tolist() if row not in self._runs]

    def classes(self, rows: np.ndarray) -> np.ndarray:
        """The class ids of those of these annotations that are no crowds."""
        return self._classes[rows[self._crowds[rows] == 0]]


class Rows(Sequence[Annotation]):
    """The annotations of one picture, in these rows (M,) of the columns."""

    __slots__ = ("columns", "rows")

    def __init__(self, columns: Columns, rows: np.ndarray) -> None:
        self.columns, self.rows = columns, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Annotation:
        return self.columns[int(self.rows[place])]


def packed(pictures: Sequence[Picture]) -> Columns:
    """The columns with the objects of these pictures, which are put there where they are not yet."""
    if pictures and isinstance(pictures[0].objects, Rows):
        return pictures[0].objects.columns
    columns = Columns()
    for place, picture in enumerate(pictures):
        for one in picture.objects:
            columns.add(place, one)
        picture.objects = ()
    columns.hand_out(pictures)
    return columns
