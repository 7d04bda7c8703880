"""What is known of an image in the end, and the way its pixels went: the words that decoders and tasks share.

N images, K classes, Q queries, M segments. Maps are of the size of the original image (h, w).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from fapn_zoo.postprocess.cropped import Masks, pasted


class Frame(NamedTuple):
    """One image's way through the network, sizes (height, width) in pixels."""

    inside: tuple[int, int]  # of the network input without its padding, which lies at the bottom and right
    original: tuple[int, int]  # of the answer, usually the image as it was given


@dataclass(frozen=True, eq=False)
class ClassMap:
    """A class for every pixel, `labels` (h, w) int64, and its probability, `scores` (h, w) float32 in 0..1.

    That is the softmax of a per-pixel head, or the class's share of all scores of a mask classifier (0 where all are
    0); None where nobody asked.
    """

    labels: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map, one instance, or one detection."""

    id: int  # its value in the segment map (from 1), or 1 + its row among masks or boxes
    category_id: int
    isthing: bool  # False for amorphous regions, of which there is at most one per class
    score: float  # confidence in 0..1
    area: int  # pixels; of a detection those of its box


@dataclass(frozen=True, eq=False)
class Panoptic:
    """Attributes: `ids` (h, w) int32, 0 where nothing was found; `scores` (h, w) float32; `segments`."""

    ids: Tensor
    scores: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True, eq=False)
class Instances:
    """Scored masks of M objects, the best first, which may overlap; M may be 0.

    Attributes:
        cropped: the masks, none of them as large as the image.
        segments: one per mask.
        boxes: (M, 4) float32 x1, y1, x2, y2, where they were found too; None where those of the masks are meant.
    """

    cropped: Masks
    segments: tuple[Segment, ...]
    boxes: Tensor | None = None

    @property
    def masks(self) -> Tensor:
        """(M, h, w) bool, made anew at every call."""
        return pasted(self.cropped)


@dataclass(frozen=True, eq=False)
class Detections:
    """Attributes: `boxes` (M, 4) float32 x1, y1, x2, y2, best score first; `segments`, one per box; M may be 0."""

    boxes: Tensor
    segments: tuple[Segment, ...]
