"""Semantic segmentation scores from one confusion matrix of exact pixel counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


class ConfusionMatrix:
    """Counts of (true class, predicted class) over all pixels seen so far.

    Counts are int64, so the order of images, the batch size and the number of processes change no digit of a score.
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
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self._row_of_byte = self._byte_rows()

    def _byte_rows(self) -> Tensor:
        """For every uint8 truth value the start of its row; row K collects ignored pixels, row K + 1 bad ids."""
        k = self.num_classes
        rows = torch.full((256,), (k + 1) * k, dtype=torch.int64)
        known = min(k, 256)
        rows[:known] = torch.arange(known) * k
        if 0 <= self.ignore_index < 256:
            rows[self.ignore_index] = k * k
        return rows

    def update(self, pred: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Adds the pixels of one or more class maps.

        Args:
            pred: integer class ids 0..K-1, any shape.
            target: integer truth of the same shape, ids 0..K-1 or ignore_index.

        Raises:
            ValueError: when shapes differ, a dtype is not integer, or an id is out of range (the ids are named).
        """
        pred, target = _as_ids(pred, "pred"), _as_ids(target, "target")
        if pred.shape != target.shape:
            raise ValueError(f"pred has shape {tuple(pred.shape)}, target {tuple(target.shape)}; they must be equal")
        if pred.numel() == 0:
            return
        k = self.num_classes
        low, high = (int(v) for v in pred.aminmax())
        if low < 0 or high >= k:
            raise ValueError(f"predicted class ids must lie in 0..{k - 1}, got {low}..{high}")
        rows = self._rows(target.reshape(-1).to(pred.device))
        counts = torch.bincount(rows.add_(pred.reshape(-1)), minlength=(k + 2) * k).reshape(k + 2, k).cpu()
        if counts[k + 1].any():
            ids = sorted(set(target.unique().tolist()) - set(range(k)) - {self.ignore_index})
            raise ValueError(f"truth ids must lie in 0..{k - 1} or be the ignore index {self.ignore_index}, got {ids}")
        self.counts += counts[:k]

    def _rows(self, target: Tensor) -> Tensor:
        """Row offsets (int64, fresh memory) for a flat truth vector."""
        k = self.num_classes
        if target.dtype == torch.uint8:  # one table look-up replaces comparing, masking and checking
            return self._row_of_byte.to(target.device).index_select(0, target.to(torch.int32))
        ids = target.to(torch.int64)
        bad = ((ids < 0) | (ids >= k)).logical_and_(ids != self.ignore_index)
        rows = torch.where(ids == self.ignore_index, k, ids)
        return torch.where(bad, k + 1, rows).mul_(k)

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Adds the counts of another matrix of the same classes and ignore index; returns self.

        Raises:
            ValueError: when the two matrices do not count the same thing.
        """
        mine, theirs = (self.num_classes, self.ignore_index), (other.num_classes, other.ignore_index)
        if mine != theirs:
            raise ValueError(f"cannot merge (num_classes, ignore_index) {theirs} into {mine}")
        self.counts += other.counts
        return self

    def state(self) -> dict[str, Any]:
        """Everything needed to go on counting elsewhere: plain numbers, ready for JSON."""
        return {
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "counts": self.counts.tolist(),
        }

    def load(self, state: Mapping[str, Any]) -> ConfusionMatrix:
        """Replaces the counts by those of `state()`; returns self. ValueError when the classes differ."""
        mine, theirs = (self.num_classes, self.ignore_index), (state["num_classes"], state["ignore_index"])
        if mine != theirs:
            raise ValueError(f"cannot load (num_classes, ignore_index) {theirs} into {mine}")
        self.counts = torch.tensor(state["counts"], dtype=torch.int64).reshape(self.num_classes, self.num_classes)
        return self

    def reduce(self, accelerator: Any = None) -> ConfusionMatrix:
        """Sums the counts of all processes into each of them; returns self. No effect with one process.

        Args:
            accelerator: an `accelerate.Accelerator` or `PartialState` whose device carries the exchange (NCCL needs
                CUDA memory); None = CPU.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            counts = self.counts.to(accelerator.device if accelerator is not None else "cpu")
            dist.all_reduce(counts)  # not accelerate.reduce: int64 must stay int64
            self.counts = counts.cpu()
        return self

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
        hit = self.counts.diagonal().double()
        truth = self.counts.sum(1).double()
        predicted = self.counts.sum(0).double()
        iou = hit / (truth + predicted - hit)  # 0 / 0 is NaN, just what an absent class should be
        if 0 <= self.ignore_index < self.num_classes:
            iou[self.ignore_index] = float("nan")
        acc = hit / truth
        return {
            "miou": iou.nanmean().item(),
            "pixel_acc": (hit.sum() / truth.sum()).item(),
            "mean_acc": acc.nanmean().item(),
            "fwiou": ((iou * truth).nansum() / truth.sum()).item(),
            "iou": iou.tolist(),
            "acc": acc.tolist(),
            "truth": self.counts.sum(1).tolist(),
            "predicted": self.counts.sum(0).tolist(),
        }


def _as_ids(ids: Tensor | np.ndarray, what: str) -> Tensor:
    tensor = torch.as_tensor(ids)
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"{what} must hold integer class ids, got dtype {tensor.dtype}")
    return tensor
