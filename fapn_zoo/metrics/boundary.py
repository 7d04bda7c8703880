"""Scores near boundaries: mIoU in bands around them, Boundary IoU, and the F-score of contours.

Ignored pixels ("void") have one convention: what is predicted there is put aside before anything is looked for, so it
changes no score, and a prediction that equals the truth elsewhere scores 1 whatever shape void has. Void pixels count
nowhere. Where a class meets void its mask ends: for Boundary IoU and the F-score that edge is part of its boundary, in
truth and prediction alike; for the bands it is one if asked for.

All classes are handled at once: a square window over a label map shows two classes just where its largest and smallest
label differ. The results are, pixel for pixel, those of the definitions applied class by class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fapn_zoo.metrics.accumulator import UNIT, Accumulator, Ids
from fapn_zoo.metrics.semantic import as_ids, bad_prediction, bad_truth, check_shapes, flat, scores, tables_for

BAND_WIDTHS = (3, 5, 8, 12)
F_TOLERANCES = (3, 5, 9, 12)


class _OfClassMaps(Accumulator):
    """What the three have in common: up to 65535 classes, and a truth id that is left out."""

    def __init__(self, shape: tuple[int, ...], num_classes: int, ignore_index: int, **settings: Any) -> None:
        if not 1 <= num_classes < 1 << 16:
            raise ValueError(f"num_classes must lie in 1..65535, got {num_classes}")
        super().__init__(shape, num_classes=num_classes, ignore_index=ignore_index, **settings)
        self.num_classes, self.ignore_index = num_classes, ignore_index


class BoundaryBands(_OfClassMaps):
    """Confusion matrices of the pixels within some distances of a true class boundary ("trimap" mIoU), all in one pass.

    A pixel of class c belongs to the band of width d when a pixel of another class is at most d rows and at most d
    columns away (chessboard distance; with d = 1, one pixel on either side of the boundary). So the band is the union
    over the classes of the dilation of their true masks by a square of 2 d + 1 pixels, less the masks themselves. The
    border of the image is no boundary.

    FaPN's table of mIoU around boundaries gives the widths 3, 5, 8 and 12, but its released code does not contain the
    evaluation. This is the measure of Kohli, Ladicky and Torr (IJCV 2009), used by Kraehenbuehl and Koltun (NIPS 2011)
    and DeepLab, called Trimap IoU by Cheng et al. (CVPR 2021), with the square distance of the latter's code.

    Args:
        num_classes: K; class ids run 0..K-1.
        widths: distances in pixels, ascending, at most 255 of them.
        ignore_index: the truth id that is left out. It counts nowhere and is no class: classes on either side of an
            ignored strip meet where the strip is narrower than the distance.
        void_borders: where a class meets ignored pixels is a boundary too, as for Pascal VOC, where void marks
            outlines.

    Raises:
        ValueError: for num_classes outside 1..65535 or widths that are not ascending integers from 1 on.
    """

    def __init__(
        self, num_classes: int, widths: Sequence[int] = BAND_WIDTHS, ignore_index: int = 255, void_borders: bool = False
    ) -> None:
        widths = list(widths)
        whole = all(isinstance(w, int) and w > 0 for w in widths)
        if not whole or not 0 < len(widths) < 256 or widths != sorted(set(widths)):
            raise ValueError(f"widths must be ascending integers of at least 1, got {widths}")
        shape = (len(widths) + 1, num_classes, num_classes)
        super().__init__(shape, num_classes, ignore_index, widths=widths, void_borders=void_borders)
        self.widths, self.void_borders = tuple(widths), void_borders

    def update(self, pred: Ids, target: Ids) -> None:
        """Adds one or more class maps.

        Args:
            pred: integer class ids 0..K-1, (H, W) or (N, H, W).
            target: integer truth of the same shape, ids 0..K-1 or ignore_index.

        Raises:
            ValueError: when shapes differ or are no maps, a dtype is not integer, or an id is out of range.
        """
        from fapn_zoo.metrics import kernels

        k, cells = self.num_classes, self.counts.numel()
        for found, truth, void in _compact_maps(pred, target, k, self.ignore_index):
            zones = kernels.rings(truth, void, not self.void_borders, False, np.array(self.widths))
            tables, apart = tables_for(cells)
            kernels.count_zones(zones.ravel(), truth.ravel(), found.ravel(), void, k, tables, apart)
            self.counts += torch.from_numpy(tables.reshape(-1, *self.counts.shape).sum(0))

    def confusion(self, width: int) -> Tensor:
        """Counts (K, K) of (true, predicted) pixels in the band of one of the widths."""
        if width not in self.widths:
            raise ValueError(f"width must be one of {', '.join(map(str, self.widths))}, got {width}")
        return self.counts[: self.widths.index(width) + 1].sum(0)

    def compute(self) -> dict[int, dict[str, Any]]:
        """For each width the scores that `ConfusionMatrix.compute` gives for the pixels of the band."""
        return {width: scores(self.confusion(width), self.ignore_index) for width in self.widths}


def near_boundary(labels: np.ndarray, width: int, ignore_index: int = 255) -> np.ndarray:
    """The band of `BoundaryBands` of this width, where no void borders are asked for.

    Args:
        labels: true class ids (H, W), 0..65534 or ignore_index.
        width: distance in pixels, at least 1.

    Returns:
        bool (H, W): labelled pixels that have another class at most `width` rows and columns away.
    """
    from fapn_zoo.metrics import kernels

    known = labels != ignore_index
    dtype = np.uint8 if labels.max(initial=0, where=known) < 255 else np.uint16
    void = np.iinfo(dtype).max
    truth = np.where(known, labels, void).astype(dtype)
    return known & (kernels.rings(truth, dtype(void), True, False, np.array([width])) == 0)


class BoundaryIoU(_OfClassMaps):
    """IoU of the inner boundary regions of classes, after Cheng et al., "Boundary IoU", CVPR 2021.

    The region of a mask is what erosion takes from it: the mask's pixels with a pixel outside the mask at most d rows
    and d columns away, where outside the image is outside the mask, and d is 0.02 of the image's diagonal, rounded,
    at least 1. This is `mask_to_boundary` of the authors' boundary-iou-api. For a class, the IoU is that of
    the pixels in its true region and those in its predicted region, both summed over all images before dividing.

    The authors' code has no semantic evaluation. Its panoptic one leaves void out of the union, but finds regions of
    predictions that reach into void: what is predicted there moves them, and a class that continues across a strip of
    void misses the true regions along it. Here ignored pixels are of no class in the prediction too, as in the official
    code of the F-score: regions lie along void in both.

    Args:
        num_classes: K; class ids run 0..K-1.
        ignore_index: the truth id that is left out.
        dilation_ratio: d as a share of the diagonal.

    Raises:
        ValueError: for num_classes outside 1..65535 or a ratio that is not positive.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, dilation_ratio: float = 0.02) -> None:
        if not dilation_ratio > 0:
            raise ValueError(f"dilation_ratio must be positive, got {dilation_ratio}")
        super().__init__((3, num_classes), num_classes, ignore_index, dilation_ratio=dilation_ratio)
        self.dilation_ratio = dilation_ratio

    def update(self, pred: Ids, target: Ids) -> None:
        """Adds one or more class maps; arguments and errors as for `BoundaryBands.update`."""
        from fapn_zoo.metrics import kernels

        k = self.num_classes
        for found, truth, void in _compact_maps(pred, target, k, self.ignore_index):
            radii = np.array([boundary_width(*truth.shape, self.dilation_ratio)])
            regions = [kernels.rings(m, void, False, True, radii).ravel() for m in (truth, found)]
            tables, apart = tables_for((k + 1) ** 2)
            kernels.count_regions(*regions, truth.ravel(), found.ravel(), void, k, tables, apart)
            both = torch.from_numpy(tables.reshape(-1, k + 1, k + 1).sum(0))
            self.counts += torch.stack([both.diagonal(), both.sum(1), both.sum(0)])[:, :k]

    def compute(self) -> dict[str, Any]:
        """The scores, as fractions 0..1.

        Returns:
            boundary_iou (mean over the classes that have a region in truth or prediction; NaN without any), iou (list
            of K floats, NaN where undefined), truth and predicted (lists of K pixel counts of the regions).
        """
        hit, truth, predicted = self.counts.double()
        iou = _without(self.ignore_index, hit / (truth + predicted - hit))
        return {
            "boundary_iou": iou.nanmean().item(),
            "iou": iou.tolist(),
            "truth": self.counts[1].tolist(),
            "predicted": self.counts[2].tolist(),
        }


class BoundaryFScore(_OfClassMaps):
    """F-score of class contours that may be some pixels off, averaged over images: DAVIS's measure, per class.

    This is what Gated-SCNN and the works after it report (`eval_mask_boundary` of nv-tlabs/GSCNN, adapted from
    `db_eval_boundary` of DAVIS 2016). The contour of a class are the pixels where it differs from, or begins at, the
    right, lower or lower right neighbour. Precision is the share of predicted contour pixels with a true contour pixel
    of the class within the tolerance (Euclidean distance), recall the reverse, F = 2 P R / (P + R) per image and class.
    Ignored pixels are of no class, in the prediction too, as in that code.

    Args:
        num_classes: K; class ids run 0..K-1.
        tolerances: ascending, in pixels; values below 1 are shares of the image's diagonal, rounded up to pixels.
            The thresholds 0.00088, 0.001875, 0.00375 and 0.005 of Gated-SCNN are 3, 5, 9 and 12 pixels at 1024 x 2048.
        ignore_index: the truth id that is left out.

    Raises:
        ValueError: for num_classes outside 1..65535 or tolerances that are not ascending positive numbers.
    """

    def __init__(self, num_classes: int, tolerances: Sequence[float] = F_TOLERANCES, ignore_index: int = 255) -> None:
        tolerances = list(tolerances)
        if not tolerances or tolerances[0] <= 0 or tolerances != sorted(set(tolerances)):
            raise ValueError(f"tolerances must be ascending positive numbers, got {tolerances}")
        super().__init__((len(tolerances) + 2, num_classes), num_classes, ignore_index, tolerances=tolerances)
        self.tolerances = tuple(tolerances)

    def update(self, pred: Ids, target: Ids) -> None:
        """Adds one or more class maps, each an image; arguments and errors as for `BoundaryBands.update`."""
        for found, truth, _ in _compact_maps(pred, target, self.num_classes, self.ignore_index):
            precision, recall, present = self._match(found, truth)
            total = precision + recall
            f = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
            self.counts[:-2] += torch.from_numpy(np.rint(f * UNIT).astype(np.int64))
            self.counts[-2] += torch.from_numpy(present)
            self.counts[-1] += torch.from_numpy(~present)

    def _match(self, found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision and recall (tolerances, K), 0 where undefined, and which classes have a contour (K,)."""
        from fapn_zoo.metrics import kernels

        diagonal = math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)
        radii = [t if t >= 1 else math.ceil(t * diagonal) for t in self.tolerances]
        radii, level = np.unique(radii, return_inverse=True)  # shares may reach further than pixels listed after them
        offsets, levels = _disc(radii)
        pad = int(np.abs(offsets).max())
        sides = [(m, *kernels.contours(m, pad, self.num_classes)) for m in (found, truth)]
        shares = []
        for mine, other in (sides, sides[::-1]):
            hits = np.zeros((self.num_classes, len(radii) + 1), np.int64)
            kernels.match_contours(*mine[:2], other, pad, offsets, levels, hits)
            matched, size = hits.cumsum(1).T[level], mine[-1]
            shares.append(np.divide(matched, size, out=np.zeros(matched.shape), where=size > 0))
        return *shares, (sides[0][-1] + sides[1][-1]) > 0

    def compute(self) -> dict[str, Any]:
        """The scores, as fractions 0..1.

        Returns:
            Each by tolerance: "f", the mean over classes of the mean over the images where the class has a contour in
            truth or prediction (as bfscore of Csurka et al., BMVC 2013); "f_all", the same over all images, where an
            image without the class counts as 1, which is what Gated-SCNN's code does; "classes", the K means behind
            "f", NaN for a class without contours. Also "images", the K numbers of images behind these.
        """
        present, absent = self.counts[-2].double(), self.counts[-1].double()
        sums = dict(zip(self.tolerances, self.counts[:-2].double() / UNIT, strict=True))
        means = {t: _without(self.ignore_index, s / present) for t, s in sums.items()}
        over_all = {t: _without(self.ignore_index, (s + absent) / (present + absent)) for t, s in sums.items()}
        return {
            "f": {t: mean.nanmean().item() for t, mean in means.items()},
            "f_all": {t: mean.nanmean().item() for t, mean in over_all.items()},
            "classes": {t: mean.tolist() for t, mean in means.items()},
            "images": self.counts[-2].tolist(),
        }


def boundary_width(height: int, width: int, dilation_ratio: float = 0.02) -> int:
    """The distance d of Boundary IoU in an image of this size, in pixels."""
    return max(1, round(dilation_ratio * math.sqrt(height**2 + width**2)))


def _without(ignore_index: int, values: Tensor) -> Tensor:
    """The scores of K classes with NaN for the ignored one, if it is one of them."""
    if 0 <= ignore_index < len(values):
        values[ignore_index] = float("nan")
    return values


def _compact_maps(pred: Ids, target: Ids, num_classes: int, ignore_index: int) -> Iterator[tuple[Any, ...]]:
    """Checked maps (H, W) of prediction and truth in the smallest dtype that holds classes and void; and void.

    Where the truth is void the prediction becomes void: whatever it says there, no measure sees it.
    """
    from fapn_zoo.metrics import kernels

    pred, target = as_ids(pred, "pred").cpu(), as_ids(target, "target").cpu()
    check_shapes(pred, target)
    if pred.ndim not in (2, 3):
        raise ValueError(f"class maps must be (H, W) or (N, H, W), got {tuple(pred.shape)}")
    dtype = np.uint8 if num_classes < 256 else np.uint16
    void = np.iinfo(dtype).max
    found, truth = (np.empty(tuple(pred.shape), dtype) for _ in range(2))
    if kernels.compact(flat(pred), num_classes, False, 0, void, found.reshape(-1)):
        raise bad_prediction(pred, num_classes)
    if kernels.compact(flat(target), num_classes, True, ignore_index, void, truth.reshape(-1)):
        raise bad_truth(target, num_classes, ignore_index)
    np.copyto(found, void, where=truth == void)
    if pred.numel():
        size = pred.shape[-2:]
        for one, other in zip(found.reshape(-1, *size), truth.reshape(-1, *size), strict=True):
            yield one, other, dtype(void)


def _disc(radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (m, 2) within the largest radius, nearest first, and for each (and none) the first radius it is in."""
    reach = int(radii[-1])
    steps = np.arange(-reach, reach + 1)
    offsets = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    squares = (offsets**2).sum(1)
    order = np.argsort(squares, kind="stable")
    levels = np.searchsorted(np.square(radii, dtype=np.float64), squares[order])
    inside = levels < len(radii)
    return offsets[order][inside], np.append(levels[inside], len(radii))
