"""The best class of enlarged maps on a CPU, without ever making the enlarged maps.

Enlarging 150 maps to the size of a photo and looking for the largest takes longer than many a network. Here a few rows
of the answer are finished before the next are begun, in one pass, so that what is at work fits into the cache, by as
many threads as PyTorch uses. The loops are numba's (`best_kernels`); where it does not work, callers take the long way
through `bands`, whose sums are rounded in another order, so that classes closer than rounding may change places.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fapn_zoo.runtime.compilers import numba_works
from fapn_zoo.runtime.workers import run_workers

TILE_FLOATS = 2**18  # 1 MiB: about what one tile may take, so that it stays in a core's cache
OVERLAPPING = 8  # times as much where tiles overlap
_NOTHING = np.empty((0, 0), np.float32)

Size = tuple[int, int]
Best = tuple[Tensor, Tensor | None]  # classes and shares
Fill = Callable[[int, int, np.ndarray, np.ndarray], None]  # (first, last row, their classes, their shares)


def usable(maps: Tensor) -> bool:
    """Whether the functions below can do these maps."""
    return maps.device.type == "cpu" and maps.numel() > 0 and numba_works()


def best_of_logits(maps: Tensor, image_size: Size, factor: int, out_size: Size, shares: bool = False) -> Best:
    """The class with the largest of the maps (K, h, w), which are enlarged by `factor`, cropped and resized.

    Both steps are bilinear with `align_corners=False`. `image_size` is (H, W) of the crop, `out_size` (h, w) that of
    the answer: int64, the first class where several are equal, and if `shares` are wanted the softmax in float32.
    """
    from fapn_zoo.postprocess import best_kernels as kernels

    height, width = maps.shape[1:]
    if image_size == out_size:

        def fill(first: int, last: int, best: np.ndarray, share: np.ndarray) -> None:
            part, top = _rows(maps, first // factor - 1, (last - 1) // factor + 2)
            kernels.best_enlarged(part, top, height, factor, first, best, share)
    else:
        rows, down = _taps(height, factor, image_size[0], out_size[0])
        columns, across = _taps(width, factor, image_size[1], out_size[1])

        def fill(first: int, last: int, best: np.ndarray, share: np.ndarray) -> None:
            part, top = _rows(maps, rows[first], rows[last - 1] + 3)
            steps = rows[first:last] - np.int32(top)
            kernels.best_resized(part, steps, down[:, first:last].copy(), columns, across, best, share)

    return _filled(fill, out_size, len(maps) * width, out_size[0] / height, shares)


def best_of_masks(
    maps: Tensor, weights: Tensor, image_size: Size, factor: int, out_size: Size, shares: bool = False
) -> Best:
    """The class of the largest score, the sum over Q queries of the sigmoid of its enlarged map times its weight.

    Args:
        maps: (Q, h, w) mask logits, enlarged by `factor`. The scores are cropped to `image_size` and resized.
        weights: (Q, K), 0 or more.
        out_size, shares: as in `best_of_logits`, and so is the result; a share is that of the sum over classes, 0
            where this is 0.
    """
    from fapn_zoo.postprocess import best_kernels as kernels

    height, width = maps.shape[1:]
    weights = torch.cat([weights, weights.sum(1, keepdim=True)], dim=1).float().t().contiguous()

    def scores(first: int, last: int) -> np.ndarray:
        """Rows of the enlarged scores, their sum last: (K + 1, rows, factor, w), columns in phases."""
        part, top = _rows(maps, first // factor - 1, (last - 1) // factor + 2)
        masks = torch.empty(len(maps), last - first, factor, width, dtype=torch.float32)
        kernels.squash(part, top, height, factor, first, masks.numpy())
        return _product(weights, masks.flatten(1)).view(-1, *masks.shape[1:]).numpy()

    if image_size == out_size:

        def fill(first: int, last: int, best: np.ndarray, share: np.ndarray) -> None:
            kernels.best_scores(scores(first, last), best, share)
    else:
        rows, lower = _neighbours(image_size[0], out_size[0])
        columns, right = _neighbours(image_size[1], out_size[1])
        lower, right = lower.astype(np.float32), right.astype(np.float32)
        columns = columns % factor * width + columns // factor

        def fill(first: int, last: int, best: np.ndarray, share: np.ndarray) -> None:
            top = rows[0, first]
            band = scores(top, rows[1, last - 1] + 1)
            steps = rows[:, first:last] - top
            kernels.best_resized_scores(band, steps, lower[first:last], columns, right, best, share)

    floats = sum(weights.shape) * factor * width
    # Neighbouring tiles of a resize have rows in common: the larger they are, the fewer are computed twice.
    floats = floats if image_size == out_size else floats / OVERLAPPING
    return _filled(fill, out_size, floats, out_size[0] / image_size[0], shares)


def _filled(fill: Fill, out_size: Size, floats: float, scale: float, shares: bool) -> Best:
    """An answer made by all threads, some rows at a time: `floats` are at work per row of the source, of which there
    are `scale` in the answer."""
    best = np.empty(out_size, np.int64)
    share = np.empty(out_size, np.float32) if shares else _NOTHING
    step = max(int(TILE_FLOATS / floats * scale), 1)
    starts = iter(range(0, out_size[0], step))

    def work(_: int) -> None:
        for first in starts:
            last = min(first + step, out_size[0])
            fill(first, last, best[first:last], share[first:last])

    run_workers(work, min(torch.get_num_threads(), -(-out_size[0] // step)))
    return torch.from_numpy(best), torch.from_numpy(share) if shares else None


def _rows(maps: Tensor, first: int, last: int) -> tuple[np.ndarray, int]:
    """Rows of maps (C, h, w) as a contiguous float32 array of numpy, and which one is the first in it."""
    maps = maps.detach()
    if maps.dtype != torch.float32 or not maps.is_contiguous():
        first = max(int(first), 0)
        return maps[:, first : int(last)].to(torch.float32, memory_format=torch.contiguous_format).numpy(), first
    return maps.numpy(), 0


def _product(a: Tensor, b: Tensor) -> Tensor:
    # The default BLAS may not use AVX-512 (MKL on AMD); oneDNN does.
    if torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled:
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return torch.mm(a, b)


def _neighbours(middle: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis of a resize: the two elements (2, out) int32 that each lies between, and the second's weight."""
    place = np.maximum((np.arange(out) + 0.5) * (middle / out) - 0.5, 0)
    first = np.minimum(place.astype(np.int32), middle - 1)
    return np.stack([first, np.minimum(first + 1, middle - 1)]), place - first


def _taps(small: int, factor: int, middle: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Both steps of `best_of_logits` along one axis at once: starts (out,) int32 and weights (3, out) float32.

    An element of the answer is the weighted sum of three neighbours of the small map; those beyond its end weigh 0.
    """
    (upper, lower), share = _neighbours(middle, out)
    starts, weights = None, np.zeros((3, out))
    for position, weight in ((upper, 1 - share), (lower, share)):
        inner = np.maximum((position + 0.5) / factor - 0.5, 0)
        left = np.minimum(inner.astype(np.int64), small - 1)
        starts = left if starts is None else starts
        right = np.minimum(left + 1, small - 1)
        np.add.at(weights, (left - starts, np.arange(out)), weight * (1 - inner + left))
        np.add.at(weights, (right - starts, np.arange(out)), weight * (inner - left))
    return starts.astype(np.int32), weights.astype(np.float32)
