"""One image shown to a network several times, and the mean of its class scores.

The views of an image are the image at several sizes, each also mirrored, each whole or in overlapping windows. As in
MaskFormer, the sizes are made from the image at the model's test size, not from the original. `predict.run` says what
is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fapn_zoo.predict.inputs import fitted_size, height_and_width, input_size, padded_size, resized
from fapn_zoo.predict.windows import PHASE, Span, even_spans, grid_spans, step_spans
from fapn_zoo.zoo.spec import FACTORS, SCALES, DataSpec, ModelSpec

LARGEST_FACTOR = 8  # a larger scale is a short side in pixels
SMALLEST_SIDE = 32


@dataclass(frozen=True)
class Views:
    """How an image is shown to the network.

    Attributes:
        scales: factors of the test size or short sides in pixels; empty for the test size alone.
        max_size: limit of the long side at every one of `scales`, in pixels.
        flip: every size also mirrored left to right.
        window: (height, width) of the windows, in pixels of the resized image; None for whole images.
        stride: steps between windows: the field's layout (see `windows`); (0, 0) spreads them evenly.
        overlap: instead of `stride`: the share of a window that its neighbour covers again, in `predict`'s layout,
            for which images keep their own size.
    """

    scales: tuple[float, ...] = ()
    max_size: float | None = None
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    overlap: float | None = None

    @property
    def single(self) -> bool:
        """Whether there is one view of the whole image."""
        return not self.scales and not self.flip and self.window is None

    def base(self, data: DataSpec, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) that an image of this size is resized to first, and from which all views are made."""
        return size if self.overlap is not None else input_size(data, size)

    def sizes(self, data: DataSpec, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) before padding of every view of an image of this size, mirror images not counted."""
        base = self.base(data, size)
        if not self.scales:
            return [base]
        whole = data.test_size or min(base)
        shorts = [scale * whole if scale <= LARGEST_FACTOR else scale for scale in self.scales]
        return [fitted_size(base, short, self.max_size) for short in shorts]

    def padded(self, data: DataSpec, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """What two images must have in common to enter the network in one batch."""
        return tuple(padded_size(data, one) for one in self.sizes(data, size))

    def prepare(self, data: DataSpec, pixels: Tensor) -> list[Tensor]:
        """The pixels (C, h, w) of every view of an image (C, H, W), mirror images not counted."""
        size = tuple(pixels.shape[1:])
        whole = resized(pixels, self.base(data, size))
        return [resized(whole, one) for one in self.sizes(data, size)]

    def spans(self, data: DataSpec, size: tuple[int, int]) -> list[list[Span]]:
        """The windows of a view of this size, by rows and by columns."""
        if self.overlap is not None:
            sides = zip(size, self.window, strict=True)
            return [grid_spans(length, side, self.overlap, data.size_divisor) for length, side in sides]
        axes = zip(size, self.window, self.stride, strict=True)
        return [step_spans(*axis) if axis[2] else even_spans(*axis[:2]) for axis in axes]


def tiles(data: DataSpec, tile: int | Sequence[int] | None, overlap: float) -> Views | None:
    """The views of `predict`'s `tile=`, (height, width) or one number, rounded up to the grid of the features.

    None without a tile. Raises ValueError naming the argument that makes no sense.
    """
    if not 0 <= overlap <= 0.75:
        raise ValueError(f"overlap={overlap}; expected 0..0.75, the share of a window")
    if tile is None:
        return None
    step = math.lcm(PHASE, data.size_divisor)
    window = tuple(-(-side // step) * step for side in height_and_width(tile, "tile"))
    return Views(window=window, overlap=overlap)


def views_for(
    spec: ModelSpec,
    scales: str | Sequence[float] | None = None,
    flip: bool = False,
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
) -> Views:
    """The views of a model's images that these arguments of `evaluate` and `predict` ask for.

    Args:
        scales: `"official"` for the sizes of the model's paper (for others its rule: 0.5 to 1.75 of the test size);
            or factors of the test size up to 8 (of the image, for a model without test size), or short sides in pixels.
        flip: also mirrored.
        window, stride: (height, width) or one number for both; the stride is two thirds of the window if not given.
            Without a window the model's own are spread evenly, where it has some (`DataSpec.test_window`).

    Raises:
        ValueError: naming the argument that makes no sense.
    """
    data = spec.data
    if isinstance(scales, str) and scales != "official":
        raise ValueError(f"scales={scales!r}; expected 'official' or numbers")
    known = SCALES.get((spec.label_set, data.test_size))
    if isinstance(scales, str):
        chosen, limit = known or (FACTORS, _limit(data, FACTORS))
    else:
        chosen = () if scales is None else _checked_scales(scales)
        limit = known[1] if known else _limit(data, chosen)
    limit = limit if chosen else None
    if window is None:
        if stride is not None:
            raise ValueError(f"stride={stride!r} without window")
        if side := data.test_window:
            return Views(chosen, limit, bool(flip), (side, side), (0, 0))
        return Views(chosen, limit, bool(flip))
    sides = height_and_width(window, "window", SMALLEST_SIDE)
    steps = tuple(side * 2 // 3 for side in sides) if stride is None else height_and_width(stride, "stride")
    if any(step > side for step, side in zip(steps, sides, strict=True)):
        raise ValueError(f"stride={steps} leaves gaps between windows of {sides} pixels")
    return Views(chosen, limit, bool(flip), sides, steps)


def _limit(data: DataSpec, scales: Sequence[float]) -> float | None:
    """The limit of the long side grows with the largest scale, as it does in the official lists."""
    if data.test_max_size is None or not scales:
        return None
    whole = data.test_size or data.test_max_size
    factors = [scale if scale <= LARGEST_FACTOR else scale / whole for scale in scales]
    return data.test_max_size * max(1.0, *factors)


def _checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    fine = isinstance(scales, Sequence) and all(
        isinstance(s, (int, float)) and (0 < s <= LARGEST_FACTOR or s >= SMALLEST_SIDE and s % 1 == 0) for s in scales
    )
    if not fine:
        raise ValueError(
            f"scales={scales!r}; expected 'official', factors up to {LARGEST_FACTOR}, "
            f"or short sides of {SMALLEST_SIDE} pixels and more"
        )
    return tuple(scales)
