"""The metrics as their definitions say it: class by class and mask by mask, slow, with numpy and scipy only."""

from __future__ import annotations

import math
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from fapn_zoo.data.scenes import CLASSES, THINGS, generate_scene

SCENE_CATEGORIES = [{"id": 10 * i + 3, "isthing": int(i in THINGS), "name": n} for i, n in enumerate(CLASSES)]


@cache
def scene_pair(seed: int, size: tuple[int, int] = (90, 160), noise: float = 0.01):
    """A generated truth (uint8, 255 = void) and a prediction of it: shifted, one class lost, some wrong pixels."""
    rng = np.random.default_rng(seed)
    truth = generate_scene(seed, size).semantic
    pred = np.roll(truth, (2, 3), (0, 1))
    pred[pred == 255] = 3
    pred[pred == rng.integers(0, 11)] = rng.integers(0, 11)
    wrong = rng.random(size) < noise
    pred[wrong] = rng.integers(0, 11, wrong.sum())
    return pred, truth


@cache
def panoptic_pair(seed: int, size: tuple[int, int] = (120, 160)):
    """A generated prediction and truth: (ids, segments) each, with crowds, void, splits and wrong categories."""
    scene = generate_scene(seed, size)
    segments = [
        {"id": s["id"], "category_id": 10 * s["category_id"] + 3, "iscrowd": int(s["isthing"] and s["id"] % 4 == 0)}
        for s in scene.segments
    ]
    return *disturbed(scene.panoptic, segments, seed), scene.panoptic, segments


def disturbed(ids: np.ndarray, segments: list[dict], seed: int):
    """A prediction (int32 ids, segments) made from a truth."""
    rng = np.random.default_rng(seed)
    out = np.roll(ids, tuple(rng.integers(-3, 4, 2)), (0, 1)).astype(np.int32)
    categories = {s["id"]: s["category_id"] for s in segments}
    for i in list(categories):
        fate = rng.integers(0, 12)
        if fate == 0:
            out[out == i] = 0
        elif fate == 1:
            categories[i] = list(categories.values())[rng.integers(len(categories))]
        elif fate == 2:
            half = out == i
            half[:, : np.nonzero(half)[1].mean().astype(int) if half.any() else 0] = False
            new = next(i for i in count(70000) if i not in categories)
            out[half], categories[new] = new, categories[i]
        elif fate == 3:
            out[out == i] = list(categories)[0]
    out[rng.random(ids.shape) < 0.004] = 0
    return out, [{"id": i, "category_id": categories[i]} for i in sorted(set(out.ravel().tolist()) - {0})]


def confusion(pred: np.ndarray, truth: np.ndarray, classes: int, ignore: int = 255) -> np.ndarray:
    """Counts of (true, predicted)."""
    valid = truth != ignore
    pairs = truth[valid].astype(np.int64) * classes + pred[valid]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def band(truth: np.ndarray, classes: int, width: int, ignore: int = 255, void_borders: bool = False) -> np.ndarray:
    """Pixels with another class at most `width` rows and columns away: a dilation for each class."""
    out = np.zeros(truth.shape, bool)
    for k in [*range(classes), *([ignore] if void_borders else [])]:
        mask = (truth == k).astype(np.uint8)
        out |= (ndimage.maximum_filter(mask, 2 * width + 1, mode="constant") > 0) & (truth != k)
    return out & (truth != ignore)


def region(mask: np.ndarray, ratio: float = 0.02) -> np.ndarray:
    """The inner boundary of one mask: what repeated erosion by 3 x 3 takes, zeros around the image."""
    steps = max(1, int(round(ratio * np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))))
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=steps, border_value=0)


def region_counts(pred: np.ndarray, truth: np.ndarray, classes: int, ignore: int = 255) -> np.ndarray:
    """(3, classes): pixels in both regions, in the true one, in the predicted one."""
    out = np.zeros((3, classes), np.int64)
    for k in range(classes):
        t, p = region(truth == k), region((pred == k) & (truth != ignore))
        out[:, k] = (t & p).sum(), t.sum(), p.sum()
    return out


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask's contour: unlike the right, lower or lower right one; the border repeats itself."""
    wide = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != wide[:-1, 1:]) | (mask != wide[1:, :-1]) | (mask != wide[1:, 1:])


def f_scores(pred: np.ndarray, truth: np.ndarray, classes: int, tolerance: float, ignore: int = 255) -> np.ndarray:
    """F of each class's contour in one image; NaN without a contour in either."""
    radius = tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*truth.shape))
    out = np.full(classes, np.nan)
    for k in range(classes):
        p, t = contour((pred == k) & (truth != ignore)), contour(truth == k)
        if p.any() and t.any():
            near_p, near_t = (ndimage.distance_transform_edt(~c) <= radius for c in (p, t))
            precision, recall = (p & near_t).sum() / p.sum(), (t & near_p).sum() / t.sum()
            out[k] = 2 * precision * recall / (precision + recall) if precision + recall else 0
        elif p.any() or t.any():
            out[k] = 0
    return out


def write_png(path: Path, ids: np.ndarray) -> Path:
    """Writes segment ids as COCO's colours."""
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(path)
    return path


def read_png(path: Path) -> np.ndarray:
    """Segment ids of a file, by arithmetic on its channels."""
    rgb = np.array(Image.open(path), dtype=np.uint32)
    return rgb[:, :, 0] + 256 * rgb[:, :, 1] + 65536 * rgb[:, :, 2]


class PanopticReference:
    """tp, fp, fn and the sum of IoU per category, by sorting the pairs of ids as panopticapi does."""

    def __init__(self, categories: list[dict]) -> None:
        self.things = {c["id"]: bool(c["isthing"]) for c in categories}
        self.counts = {c["id"]: [0, 0, 0, 0.0] for c in categories}

    def update(self, pred_ids, pred_segments, gt_ids, gt_segments) -> None:
        pred = {s["id"]: s for s in pred_segments}
        gt = {s["id"]: s for s in gt_segments}
        pred_area = dict(zip(*np.unique(pred_ids, return_counts=True), strict=True))
        pairs, sizes = np.unique(gt_ids.astype(np.uint64) * 2**24 + pred_ids.astype(np.uint64), return_counts=True)
        overlap = {(pair // 2**24, pair % 2**24): size for pair, size in zip(pairs, sizes, strict=True)}
        gt_area = {i: 0 for i in gt}
        for (i, _), size in overlap.items():
            if i in gt_area:
                gt_area[i] += size
        gt_done, pred_done = set(), set()
        for (i, j), size in overlap.items():
            if i not in gt or j not in pred or gt[i].get("iscrowd") or gt[i]["category_id"] != pred[j]["category_id"]:
                continue
            iou = size / (pred_area[j] + gt_area[i] - size - overlap.get((0, j), 0))
            if iou > 0.5:
                row = self.counts[gt[i]["category_id"]]
                row[0] += 1
                row[3] += iou
                gt_done.add(i)
                pred_done.add(j)
        crowd = {}
        for i, segment in gt.items():
            if segment.get("iscrowd"):
                crowd[segment["category_id"]] = i
            elif i not in gt_done:
                self.counts[segment["category_id"]][2] += 1
        for j, segment in pred.items():
            if j not in pred_done:
                ignored = overlap.get((0, j), 0) + overlap.get((crowd.get(segment["category_id"]), j), 0)
                if ignored / pred_area[j] <= 0.5:
                    self.counts[segment["category_id"]][1] += 1

    def mean(self, things: bool | None = None) -> dict[str, float]:
        """pq, sq, rq over the n categories that have segments."""
        rows = [r for i, r in self.counts.items() if things in (None, self.things[i]) and sum(r[:3])]
        pq = [iou / (tp + fp / 2 + fn / 2) for tp, fp, fn, iou in rows]
        sq = [iou / tp if tp else 0 for tp, _, _, iou in rows]
        rq = [tp / (tp + fp / 2 + fn / 2) for tp, fp, fn, _ in rows]
        return {"pq": np.mean(pq), "sq": np.mean(sq), "rq": np.mean(rq), "n": len(rows)}
