"""Semantic segmentation scores from one confusion matrix of exact pixel counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hotcoco.semantic import SemanticEval
from torch import Tensor

from fapn_zoo.metrics.accumulator import Accumulator, Ids


class ConfusionMatrix(Accumulator):
    """Counts of (true class, predicted class) over all pixels seen so far.

    A pixel whose truth is `ignore_index` counts nowhere, neither as truth nor as prediction.

    Args:
        num_classes: K; class ids run 0..K-1.
        ignore_index: the truth id that is left out. If it is one of 0..K-1, that class is never scored.

    Raises:
        ValueError: for num_classes < 1.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        super().__init__((num_classes, num_classes), num_classes=num_classes, ignore_index=ignore_index)
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def update(self, pred: Ids, target: Ids) -> None:
        """Adds the pixels of one or more class maps.

        Args:
            pred: integer class ids 0..K-1, any shape.
            target: integer truth of the same shape, ids 0..K-1 or ignore_index.

        Raises:
            ValueError: when shapes differ, a dtype is not integer, or an id is out of range (the ids are named), save
                predictions where the truth is ignored.
        """
        pred, target = as_ids(pred, "pred"), as_ids(target, "target")
        check_shapes(pred, target)
        if pred.numel() == 0:
            return
        k, ignore_index, truth = self.num_classes, self.ignore_index, flat(target.cpu())
        if not 0 <= ignore_index < 1 << 31:  # which hotcoco does not take
            truth, ignore_index = np.where(truth == ignore_index, k, np.where(truth == k, k + 1, truth)), k
        counter = SemanticEval(k, ignore_index=ignore_index)
        try:
            counter.update(truth, flat(pred.cpu()))
        except ValueError:
            low, high = pred.aminmax()
            if low < 0 or high >= k:
                raise bad_prediction(pred, k) from None
            raise bad_truth(target, k, self.ignore_index) from None
        self.counts += torch.from_numpy(counter.confusion().astype(np.int64))

    def compute(self) -> dict[str, Any]:
        """The scores, as fractions 0..1.

        A class with neither truth nor prediction has no IoU: it is NaN and outside the mean. A class that is only
        predicted, never true, has IoU 0 and is inside it, so inventing classes costs. A class without truth has no
        accuracy. These are the rules of the tools that official ADE20K, Cityscapes and COCO-Stuff numbers come from.

        Returns:
            miou, pixel_acc, mean_acc, fwiou (IoU weighted by the share of true pixels), iou and acc (lists of K
            floats, NaN where undefined), truth and predicted (lists of K pixel counts). Scores of an empty matrix
            are NaN.
        """
        return scores(self.counts, self.ignore_index)


def scores(counts: Tensor, ignore_index: int) -> dict[str, Any]:
    """What `ConfusionMatrix.compute` returns, for counts (K, K) of any origin."""
    hit = counts.diagonal().double()
    truth = counts.sum(1).double()
    predicted = counts.sum(0).double()
    iou = hit / (truth + predicted - hit)  # 0 / 0 is NaN, just what an absent class should be
    if 0 <= ignore_index < len(counts):
        iou[ignore_index] = float("nan")
    acc = hit / truth
    return {
        "miou": iou.nanmean().item(),
        "pixel_acc": (hit.sum() / truth.sum()).item(),
        "mean_acc": acc.nanmean().item(),
        "fwiou": ((iou * truth).nansum() / truth.sum()).item(),
        "iou": iou.tolist(),
        "acc": acc.tolist(),
        "truth": counts.sum(1).tolist(),
        "predicted": counts.sum(0).tolist(),
    }


def as_ids(ids: Ids, what: str) -> Tensor:
    """The ids as a tensor; ValueError unless they are integers."""
    tensor = torch.as_tensor(ids)
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"{what} must hold integer class ids, got dtype {tensor.dtype}")
    return tensor


def check_shapes(pred: Tensor, target: Tensor) -> None:
    """ValueError unless both have one shape."""
    if pred.shape != target.shape:
        raise ValueError(f"pred has shape {tuple(pred.shape)}, target {tuple(target.shape)}; they must be equal")


def bad_prediction(pred: Tensor, num_classes: int) -> ValueError:
    """The error for class ids out of range."""
    low, high = (int(v) for v in pred.aminmax())
    return ValueError(f"predicted class ids must lie in 0..{num_classes - 1}, got {low}..{high}")


def bad_truth(target: Tensor, num_classes: int, ignore_index: int) -> ValueError:
    """The error for truth that is neither a class nor the ignore index; it names the ids."""
    ids = sorted(set(target.unique().tolist()) - set(range(num_classes)) - {ignore_index})
    return ValueError(f"truth ids must lie in 0..{num_classes - 1} or be the ignore index {ignore_index}, got {ids}")


def flat(ids: Tensor) -> np.ndarray:
    """A vector of uint8 or int64, so that kernels are compiled for these two only."""
    return (ids if ids.dtype == torch.uint8 else ids.to(torch.int64)).detach().reshape(-1).numpy()


def tables_for(cells: int) -> tuple[np.ndarray, int]:
    """Zeros for a counting kernel, int64 (n * cells,), and its `apart`; n is 1 where tables would not fit the cache."""
    return (np.zeros(4 * cells, np.int64), cells) if cells < 1 << 16 else (np.zeros(cells, np.int64), 0)
