"""Panoptic quality, counted as COCO's panopticapi counts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fapn_zoo.metrics.accumulator import UNIT, Accumulator, Ids, as_array
from fapn_zoo.runtime.tables import some

Listed = Sequence[Mapping[str, Any]]
_TP, _FP, _FN, _IOU = range(4)


class PanopticQuality(Accumulator):
    """True positives, false positives, false negatives and the sum of IoU per category (Kirillov et al., CVPR 2019).

    The rules are those of panopticapi's `pq_compute`, with its results:

    - A predicted and a true segment of one category match when their IoU is over 0.5. The union does not contain
      predicted pixels that are void (id 0) in the truth. At most one pair can match for each segment.
    - Crowd segments match nothing and are not missed.
    - A predicted segment without a match is no false positive when more than half of it lies on void and on the crowd
      segment of its category; of several crowd segments of one category in an image, the last listed.

    Areas are counted in the maps; an "area" in a segment's description is not read.

    Args:
        categories: COCO's table, one {"id": ..., "isthing": 0 or 1, ...} for each category.

    Raises:
        ValueError: for an empty table, an id twice, or an entry without id or isthing.
    """

    def __init__(self, categories: Iterable[Mapping[str, Any]]) -> None:
        table = list(categories)
        broken = [c for c in table if not isinstance(c, Mapping) or "id" not in c or "isthing" not in c]
        if broken:
            raise ValueError(f"categories need an id and isthing, got {broken[0]}")
        pairs = [[int(c["id"]), int(c["isthing"])] for c in table]
        self._row = {category: row for row, (category, _) in enumerate(pairs)}
        if len(self._row) != len(pairs) or not pairs:
            twice = [i for i, n in Counter(i for i, _ in pairs).items() if n > 1]
            raise ValueError(f"category ids are listed twice: {twice}" if twice else "categories must not be empty")
        super().__init__((len(pairs), 4), categories=pairs)

    def update(self, pred_map: Ids, pred_segments: Listed, gt_map: Ids, gt_segments: Listed, image: str = "") -> None:
        """Adds one image.

        Args:
            pred_map: (H, W) integer segment ids, 0 = void.
            pred_segments: {"id": ..., "category_id": ...} of each predicted segment; other keys are not read.
            gt_map: (H, W), the truth likewise.
            gt_segments: the same of the true segments, with "iscrowd" (0 if missing).
            image: name of the image, for errors.

        Raises:
            ValueError: maps of different size or not of integers; ids in a map that no segment has; segments without
                pixels; an id listed twice or 0; a category that is not in the table. Nothing has been counted then.
        """
        where = f"{image}: " if image else ""
        pred_ids, gt_ids = _as_map(pred_map, f"{where}the prediction"), _as_map(gt_map, f"{where}the truth")
        if pred_ids.shape != gt_ids.shape:
            sizes = [f"{w}x{h}" for h, w in (pred_ids.shape, gt_ids.shape)]
            raise ValueError(f"{where}the prediction is {sizes[0]} pixels, the truth {sizes[1]}")
        overlaps = _overlaps(gt_ids.reshape(-1), pred_ids.reshape(-1), where)
        gt_areas, pred_areas = {}, {}
        for (gt, pred), pixels in overlaps.items():
            gt_areas[gt] = gt_areas.get(gt, 0) + pixels
            pred_areas[pred] = pred_areas.get(pred, 0) + pixels
        self._check(pred_segments, pred_areas, f"{where}the prediction")
        self._check(gt_segments, gt_areas, f"{where}the truth")
        counts = _match(self._row, overlaps, pred_segments, pred_areas, gt_segments, gt_areas)
        self.counts += torch.from_numpy(counts)

    def _check(self, segments: Listed, areas: Mapping[int, int], what: str) -> None:
        listed = {s["id"] for s in segments}
        if len(listed) < len(segments):
            twice = [i for i, n in Counter(s["id"] for s in segments).items() if n > 1]
            raise ValueError(f"{what} lists segment {some(twice)} more than once")
        if 0 in listed:
            raise ValueError(f"{what} lists a segment of id 0, which is void")
        unlisted = sorted(areas.keys() - listed - {0})
        if unlisted:
            raise ValueError(f"{what} has pixels of segment {some(unlisted)}, which it does not list")
        empty = sorted(listed - areas.keys())
        if empty:
            raise ValueError(f"{what} lists segment {some(empty)}, of which it has no pixel")
        for segment in segments:
            if segment["category_id"] not in self._row:
                which = f"segment {segment['id']} is of category {segment['category_id']}"
                raise ValueError(f"{what}: {which}, which is none of the {len(self._row)} categories")

    def compute(self) -> dict[str, Any]:
        """The scores, as fractions 0..1.

        Returns:
            "all", "things" and "stuff", each {"pq", "sq", "rq", "n"}: means over the n categories that have a segment
            in truth or prediction (NaN for n = 0); and "per_class", by category id, {"pq", "sq", "rq", "iou", "tp",
            "fp", "fn"} with NaN for categories without segments (panopticapi writes 0) and an sq of 0 without matches.
        """
        per_class, groups = {}, {"all": [], "things": [], "stuff": []}
        for (category, thing), (tp, fp, fn, iou) in zip(self.settings["categories"], self.counts.tolist(), strict=True):
            weight, total = tp + fp / 2 + fn / 2, iou / UNIT
            row = {"pq": float("nan"), "sq": float("nan"), "rq": float("nan")}
            if weight:
                row = {"pq": total / weight, "sq": total / tp if tp else 0.0, "rq": tp / weight}
                for name in ("all", "things" if thing else "stuff"):
                    groups[name].append(row)
            per_class[category] = row | {"iou": total, "tp": tp, "fp": fp, "fn": fn}
        means = {
            name: {k: sum(r[k] for r in rows) / len(rows) if rows else float("nan") for k in ("pq", "sq", "rq")}
            | {"n": len(rows)}
            for name, rows in groups.items()
        }
        return means | {"per_class": per_class}


def _as_map(ids: Ids, what: str) -> np.ndarray:
    array = as_array(ids)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"{what} must be a map (H, W) of integer ids, got {array.dtype} {array.shape}")
    if array.dtype not in (np.int32, np.int64):  # all that the kernel is compiled for
        array = array.astype(np.int64)
    return np.ascontiguousarray(array)


def _overlaps(gt: np.ndarray, pred: np.ndarray, where: str) -> dict[tuple[int, int], int]:
    """Pixels of every pair (true id, predicted id) that occurs."""
    from fapn_zoo.metrics.kernels import count_overlaps

    if gt.dtype != pred.dtype:
        gt, pred = gt.astype(np.int64), pred.astype(np.int64)
    space, pairs = 1024, -1
    while pairs == -1:
        keys, counts = np.zeros(space, np.uint64), np.zeros(space, np.int64)
        pairs = count_overlaps(gt, pred, keys, counts) if gt.size else 0
        space *= 8
    if pairs < 0:
        low, high = min(gt.min(), pred.min()), max(gt.max(), pred.max())
        raise ValueError(f"{where}segment ids must lie in 0..{2**32 - 1}, got {low}..{high}")
    used = np.flatnonzero(counts)
    keys = keys[used]
    firsts, seconds = (keys >> np.uint64(32)).tolist(), (keys & np.uint64(2**32 - 1)).tolist()
    return dict(zip(zip(firsts, seconds, strict=True), counts[used].tolist(), strict=True))


def _match(
    row: Mapping[int, int],
    overlaps: Mapping[tuple[int, int], int],
    pred_segments: Listed,
    pred_areas: Mapping[int, int],
    gt_segments: Listed,
    gt_areas: Mapping[int, int],
) -> np.ndarray:
    """int64 (categories, 4) of one image."""
    counts = np.zeros((len(row), 4), np.int64)
    pred_category = {s["id"]: s["category_id"] for s in pred_segments}
    gt_category = {s["id"]: s["category_id"] for s in gt_segments if not s.get("iscrowd", 0)}
    crowds = {s["category_id"]: s["id"] for s in gt_segments if s.get("iscrowd", 0)}
    matched = set()
    for (gt, pred), pixels in overlaps.items():
        category = gt_category.get(gt)
        if category is not None and pred_category.get(pred) == category:
            union = pred_areas[pred] + gt_areas[gt] - pixels - overlaps.get((0, pred), 0)
            if 2 * pixels > union:
                counts[row[category], _TP] += 1
                counts[row[category], _IOU] += (2 * UNIT * pixels + union) // (2 * union)  # rounded to the nearest
                matched.add(pred)
                del gt_category[gt]
    for category in gt_category.values():
        counts[row[category], _FN] += 1
    for pred, category in pred_category.items():
        if pred not in matched:
            excused = overlaps.get((0, pred), 0)
            if category in crowds:
                excused += overlaps.get((crowds[category], pred), 0)
            if 2 * excused <= pred_areas[pred]:
                counts[row[category], _FP] += 1
    return counts
