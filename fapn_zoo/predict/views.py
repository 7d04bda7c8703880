"""One image shown to a network several times, and the mean of its class scores.

The views of an image are the image at several sizes, each also mirrored, each whole or in overlapping windows. What
is averaged is what MaskFormer's `SemanticSegmentorWithTTA` averages: the score maps of all sizes and mirror images,
each already resized to the original image (and mirrored back). For per-pixel heads these are logits, not
probabilities; for mask classification the sums over queries of class probability times mask probability. As there,
the sizes are made from the image at the model's test size, not from the original.

Only the raw outputs of the views are held (for windows: one row of windows); the mean is made a band of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fapn_zoo.postprocess.bands import Source, band_height, bands
from fapn_zoo.postprocess.decoders import best_class, best_classes, score_source, semantic_scores
from fapn_zoo.predict.inputs import fitted_size, height_and_width, input_size, padded_size, resized
from fapn_zoo.predict.windows import window_scores
from fapn_zoo.zoo.scales import FACTORS, OFFICIAL
from fapn_zoo.zoo.spec import DataSpec

LARGEST_FACTOR = 8  # a larger scale is a short side in pixels
SMALLEST_SIDE = 32

Run = Callable[[Sequence[Tensor]], Any]  # pixels (C, h, w) of equal padded size -> the model's raw output


@dataclass(frozen=True)
class Views:
    """How an image is shown to the network.

    Attributes:
        scales: factors of the test size or short sides in pixels; empty for the test size alone.
        max_size: limit of the long side at every one of ``scales``, in pixels.
        flip: every size also mirrored left to right.
        window, stride: (height, width) of the windows and the steps between them, in pixels of the resized image;
            None for whole images.
    """

    scales: tuple[float, ...] = ()
    max_size: float | None = None
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    @property
    def single(self) -> bool:
        """Whether there is one view of the whole image, all that tasks with objects can use."""
        return not self.scales and not self.flip and self.window is None

    def sizes(self, data: DataSpec, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) before padding of every view of an image of this size, mirror images not counted."""
        base = input_size(data, size)
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
        base = resized(pixels, input_size(data, size))
        return [resized(base, one) for one in self.sizes(data, size)]


def views_for(
    model: Any,
    scales: str | Sequence[float] | None = None,
    flip: bool = False,
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
) -> Views:
    """The views of a model's images that these arguments of `evaluate` and `predict` ask for.

    Args:
        scales: ``"official"`` for the sizes of the model's paper (for others its rule: 0.5 to 1.75 of the test size);
            or factors of the test size up to 8 (of the image, for a model without test size), or short sides in pixels.
        flip: also mirrored.
        window, stride: (height, width) or one number for both; the stride is two thirds of the window if not given.

    Raises:
        ValueError: naming the argument that makes no sense.
    """
    data = model.data
    if isinstance(scales, str) and scales != "official":
        raise ValueError(f"scales={scales!r}; expected 'official' or numbers")
    known = OFFICIAL.get((getattr(getattr(model, "spec", None), "label_set", None), data.test_size))
    if isinstance(scales, str):
        chosen, limit = known or (FACTORS, _limit(data, FACTORS))
    else:
        chosen = () if scales is None else _checked_scales(scales)
        limit = known[1] if known else _limit(data, chosen)
    sides = None if window is None else height_and_width(window, "window", SMALLEST_SIDE)
    if sides is None and stride is not None:
        raise ValueError(f"stride={stride!r} without window")
    steps = None if stride is None else height_and_width(stride, "stride")
    if sides is not None and steps is None:
        steps = tuple(side * 2 // 3 for side in sides)
    if sides is not None and any(step > side for step, side in zip(steps, sides, strict=True)):
        raise ValueError(f"stride={steps} leaves gaps between windows of {sides} pixels")
    return Views(chosen, limit if chosen else None, bool(flip), sides, steps)


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


# Scores -------------------------------------------------------------------------------------------------------------


def score_sources(
    model: Any, run: Run, views: Views, images: Sequence[Sequence[Tensor]], batch_size: int = 1
) -> list[list[tuple[Source, bool]]]:
    """Runs the network on images whose padded sizes are equal.

    Args:
        model: gives the number of classes and the stride of its maps. run: calls it.
        images: what `Views.prepare` made of each image.
        batch_size: windows that are run together.

    Returns:
        For every image its views: a source of score rows, and whether they are mirrored. Windows are only run when
        their rows are asked for.
    """
    found: list[list[tuple[Source, bool]]] = [[] for _ in images]
    for parts in zip(*images, strict=True):
        for mirrored in (False, True) if views.flip else (False,):
            shown = [part.flip(-1) for part in parts] if mirrored else parts
            if views.window is None:
                output = run(shown)
                sources = [score_source(output, n, tuple(p.shape[1:]), head_stride(model)) for n, p in enumerate(shown)]
            else:
                sources = [_window_source(model, run, p, views, batch_size) for p in shown]
            for image, source in zip(found, sources, strict=True):
                image.append((source, mirrored))
    return found


def head_stride(model: Any) -> int:
    """Of the head's maps against the network input."""
    return getattr(getattr(model, "head", None), "stride", 4)


def merged_bands(
    sources: Sequence[tuple[Source, bool]], out_size: tuple[int, int]
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields (first, last, mean scores (K, rows, w)) over the views of one image, from the top to the bottom."""
    step = min(band_height(source, out_size) for source, _ in sources)
    streams = [bands(source, out_size, step) for source, _ in sources]
    for first in range(0, out_size[0], step):
        total = None
        for stream, (_, mirrored) in zip(streams, sources, strict=True):
            _, last, scores = next(stream)
            scores = scores.flip(-1) if mirrored else scores
            total = scores if total is None else total + scores
        yield first, last, total / len(sources) if len(sources) > 1 else total


def merged_labels(sources: Sequence[tuple[Source, bool]], out_size: tuple[int, int]) -> Tensor:
    """The class of highest mean score over the views of one image: (h, w) int64."""
    if len(sources) == 1 and not sources[0][1]:
        return best_classes(sources[0][0], out_size)
    return torch.cat([best_class(scores) for _, _, scores in merged_bands(sources, out_size)])


def _window_source(model: Any, run: Run, pixels: Tensor, views: Views, batch_size: int) -> Source:
    def scores(parts: list[Tensor]) -> tuple[Tensor, bool]:
        size = tuple(parts[0].shape[1:])
        return semantic_scores(run(parts), size, size, stride=head_stride(model)), True

    rows = _Downwards(window_scores(scores, pixels, views.window, views.stride, batch_size))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return Source(rows, model.num_classes, tuple(pixels.shape[1:]), device)


class _Downwards:
    """Rows of a map that is made from the top to the bottom, for a reader that never goes back."""

    def __init__(self, parts: Iterator[Tensor]):
        self.parts = parts
        self.held: Tensor | None = None
        self.top = self.bottom = 0  # image rows that are held

    def __call__(self, first: int, last: int) -> Tensor:
        """Rows ``first``..``last`` (K, last - first, W); those above ``first`` are let go of."""
        while self.bottom < last:
            part = next(self.parts)
            if self.held is None:
                self.held = part
            else:
                self.held = torch.cat([self.held[:, max(first - self.top, 0) :], part], dim=1)
            self.bottom += part.shape[1]
            self.top = self.bottom - self.held.shape[1]
        return self.held[:, first - self.top : last - self.top]
