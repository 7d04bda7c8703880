"""Metrics side by side: this package, and what is used elsewhere for the same numbers.

    python tests/benchmarks/metrics.py --csv metrics.csv

Contenders take turns within each round, and medians over rounds are compared, so that what else the machine does falls
on all of them. Before the first round all must have given the same counts. Maps are 512 x 1024 with 19 classes, those
of panoptic quality 480 x 640, of average precision 240 x 320, drawn by `generate_scene`. Loops over classes use OpenCV
where it is installed (it is no dependency), else scipy. All run in one thread, except where two are named.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from table import print_row, run_facts, write_csv

from fapn_zoo.data.reading import read_ids
from fapn_zoo.data.scenes import generate_scene
from fapn_zoo.metrics import (
    AveragePrecision,
    BoundaryBands,
    BoundaryFScore,
    BoundaryIoU,
    ConfusionMatrix,
    PanopticQuality,
)
from fapn_zoo.metrics.detection import SCORES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toys import detection_references
from toys import metric_references as reference

try:
    import cv2

    cv2.setNumThreads(1)
except ImportError:
    cv2 = None

SIZE, CLASSES, WIDTHS = (512, 1024), 19, (3, 5, 8, 12)
Contenders = dict[str, Callable[[], np.ndarray]]


def semantic_pair(seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth, uint8 (H, W): a scene whose right half has classes of its own, and a shifted one."""
    truth = generate_scene(seed, SIZE).semantic.copy()
    right = truth[:, SIZE[1] // 2 :]
    right[right < 8] += 11
    pred = np.roll(truth, (2, 3), (0, 1))
    pred[pred == 255] = 3
    rng = np.random.default_rng(seed)
    wrong = rng.random(SIZE) < 0.005
    pred[wrong] = rng.integers(0, CLASSES, wrong.sum())
    return pred, truth


def miou() -> Contenders:
    """A confusion matrix of one image. Ours gets what `evaluate` has, the others the dtypes that suit them best."""
    from torchmetrics import JaccardIndex

    pred, truth = semantic_pair()
    pred_wide, truth_wide = (torch.from_numpy(m.astype(np.int64)) for m in (pred, truth))
    cells = CLASSES**2

    def ours():
        matrix = ConfusionMatrix(CLASSES)
        matrix.update(pred_wide, truth)
        return matrix.counts.numpy()

    def torchmetrics(validate):
        metric = JaccardIndex("multiclass", num_classes=CLASSES, ignore_index=255, validate_args=validate)

        def call():
            metric.reset()
            metric.update(pred_wide, truth_wide)
            return metric.confmat.numpy()

        return call

    def numpy_mask():
        return reference.confusion(pred, truth, CLASSES)

    def numpy_no_mask():  # ignored pixels land behind the table
        codes = truth * np.uint16(CLASSES) + pred
        return np.bincount(codes.ravel(), minlength=256 * CLASSES)[:cells].reshape(CLASSES, CLASSES)

    return {
        "ours": ours,
        "torchmetrics": torchmetrics(True),
        "torchmetrics, no validation": torchmetrics(False),
        "numpy bincount, mask": numpy_mask,
        "numpy bincount, uint16 codes": numpy_no_mask,
    }


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """A mask (uint8) dilated by a square."""
    if cv2:
        return cv2.dilate(mask, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))
    return ndimage.maximum_filter(mask, 2 * radius + 1, mode="constant")


def eroded(mask: np.ndarray, radius: int) -> np.ndarray:
    """A mask (uint8) eroded by a square, zeros around it."""
    if cv2:
        wide = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        return cv2.erode(wide, np.ones((3, 3), np.uint8), iterations=radius)[1:-1, 1:-1]
    return ndimage.minimum_filter(mask, 2 * radius + 1, mode="constant")


def bands() -> Contenders:
    """mIoU counts of one image in bands of 3, 5, 8 and 12 pixels."""
    pred, truth = semantic_pair()

    def ours():
        metric = BoundaryBands(CLASSES, WIDTHS)
        metric.update(pred, truth)
        return np.stack([metric.confusion(w).numpy() for w in WIDTHS])

    def loop():
        masks = [(truth == k).view(np.uint8) for k in range(CLASSES)]
        found = []
        for width in WIDTHS:
            inside = np.zeros(SIZE, np.uint8)
            for mask in masks:
                inside |= dilated(mask, width) & ~mask
            found.append(reference.confusion(pred, np.where(inside, truth, 255), CLASSES))
        return np.stack(found)

    return {"ours": ours, "dilate for each class": loop}


def boundary_iou() -> Contenders:
    """Boundary IoU counts of one image, 19 classes."""
    pred, truth = semantic_pair()
    radius = 23

    def ours():
        metric = BoundaryIoU(CLASSES)
        metric.update(pred, truth)
        return metric.counts.numpy()

    def loop():
        found, known = np.zeros((3, CLASSES), np.int64), truth != 255
        for k in range(CLASSES):
            t, p = ((m == k).view(np.uint8) for m in (truth, pred))
            t, p = t - eroded(t, radius), (p - eroded(p, radius)) & known
            found[:, k] = np.count_nonzero(t & p), np.count_nonzero(t), np.count_nonzero(p)
        return found

    return {"ours": ours, "erode for each class": loop}


def f_score() -> Contenders:
    """Boundary F-score of one image at one tolerance of 5 pixels."""
    pred, truth = semantic_pair()

    def near(contour):
        if cv2:
            disc = np.add.outer(np.arange(-5, 6) ** 2, np.arange(-5, 6) ** 2) <= 25
            return cv2.dilate(contour.view(np.uint8), disc.astype(np.uint8)) > 0
        return ndimage.distance_transform_edt(~contour) <= 5

    def ours():
        metric = BoundaryFScore(CLASSES, (5,))
        metric.update(pred, truth)
        return np.array(metric.compute()["classes"][5]).round(9)

    def loop():
        found = []
        for k in range(CLASSES):
            p, t = (reference.contour(m) for m in ((pred == k) & (truth != 255), truth == k))
            if not (p.any() and t.any()):
                found.append(0 if p.any() or t.any() else np.nan)
                continue
            precision, recall = (p & near(t)).sum() / p.sum(), (t & near(p)).sum() / t.sum()
            found.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
        return np.array(found).round(9)

    return {"ours": ours, "dilate for each class": loop}


def panoptic_images(count: int = 6, size: tuple[int, int] = (480, 640)) -> list[tuple]:
    """(ids, segments) of prediction and truth, with ids all over the 24 bits of COCO's colours."""
    images = []
    for seed in range(count):
        scene = generate_scene(seed, size)
        spread = np.random.default_rng(seed).integers(1, 2**24 - 10**6, len(scene.segments) + 1).astype(np.int32)
        spread[0] = 0
        segments = [
            {"id": int(spread[s["id"]]), "category_id": 10 * s["category_id"] + 3, "iscrowd": 0} for s in scene.segments
        ]
        ids = spread[scene.panoptic]
        images.append((*reference.disturbed(ids, segments, seed), ids, segments))
    return images


def panoptic_counts(metric: PanopticQuality | reference.PanopticReference) -> np.ndarray:
    if isinstance(metric, PanopticQuality):
        return metric.counts[:, :3].numpy()
    return np.array([row[:3] for row in metric.counts.values()])


def pq_maps() -> Contenders:
    """Panoptic quality of decoded maps."""
    images = panoptic_images()

    def call(kind):
        metric = kind(reference.SCENE_CATEGORIES)
        for image in images:
            metric.update(*image)
        return panoptic_counts(metric)

    return {"ours": lambda: call(PanopticQuality), "panopticapi's rules": lambda: call(reference.PanopticReference)}


def pq_png(folder: Path) -> Contenders:
    """Panoptic quality of PNG files, decoded and counted in threads: each image in a metric of its own, then merged."""
    images = []
    for i, (pred, pred_segments, gt, gt_segments) in enumerate(panoptic_images()):
        files = {"pred": folder / f"pred{i}.png", "gt": folder / f"gt{i}.png"}
        for file, ids in zip(files.values(), (pred, gt), strict=True):
            reference.write_png(file, ids)
        images.append({**files, "pred_segments": pred_segments, "gt_segments": gt_segments})

    def count(image):
        metric = PanopticQuality(reference.SCENE_CATEGORIES)
        pred, gt = (read_ids(image[name]) for name in ("pred", "gt"))
        metric.update(pred, image["pred_segments"], gt, image["gt_segments"])
        return metric

    def ours(threads):
        with ThreadPoolExecutor(threads) as pool:
            return panoptic_counts(reduce(PanopticQuality.merge, pool.map(count, images)))

    def theirs():
        metric = reference.PanopticReference(reference.SCENE_CATEGORIES)
        for image in images:
            ids = [reference.read_png(image[name]) for name in ("pred", "gt")]
            metric.update(ids[0], image["pred_segments"], ids[1], image["gt_segments"])
        return panoptic_counts(metric)

    categories = [{**c, "name": str(c["id"])} for c in reference.SCENE_CATEGORIES]
    for side in ("gt", "pred"):
        table = {"images": [], "annotations": [], "categories": categories}
        for i, image in enumerate(images):
            segments = with_areas(read_ids(image[side]), image[f"{side}_segments"])
            table["images"].append({"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640})
            table["annotations"].append({"image_id": i, "file_name": image[side].name, "segments_info": segments})
        (folder / f"{side}.json").write_text(json.dumps(table))

    def hotcoco():
        from hotcoco.panoptic import PanopticEval

        files = (str(folder / f"{side}.json") for side in ("gt", "pred"))
        evaluator = PanopticEval(*files, gt_folder=str(folder), pred_folder=str(folder))
        evaluator.evaluate()
        rows = evaluator.results()["per_class"]
        return np.array([[rows[c["id"]][name] for name in ("tp", "fp", "fn")] for c in categories])

    return {
        "ours": lambda: ours(2),
        "ours, 1 thread": lambda: ours(1),
        "panopticapi's rules": theirs,
        "hotcoco": hotcoco,
    }


def with_areas(ids: np.ndarray, segments: list[dict]) -> list[dict]:
    """Segments as COCO's files list them."""
    return [{**s, "area": int((ids == s["id"]).sum()), "bbox": [0, 0, 1, 1]} for s in segments]


def average_precision(kind: str) -> Contenders:
    """COCO's twelve scores of 40 images, from masks or boxes as a model gives them."""
    images = range(20, 60)
    for seed in images:
        detection_references.detection_pair(seed, (240, 320), 4)  # they are remembered

    def ours():
        metric = AveragePrecision(detection_references.NUM_CLASSES, kind)
        found = detection_references.feed(metric, images, size=(240, 320), copies=4).compute()[kind]
        return np.array([found[name] for name in SCORES]).round(9)

    def theirs():
        metric = detection_references.CocoReference(detection_references.NUM_CLASSES, (kind,))
        found = detection_references.feed(metric, images, size=(240, 320), copies=4).evaluate(kind)
        return found.stats.round(9)

    def in_c():
        """faster-coco-eval on what pycocotools has read: its boxes and run lengths."""
        from faster_coco_eval import COCO, COCOeval_faster

        data = detection_references.feed(
            detection_references.CocoReference(detection_references.NUM_CLASSES, (kind,)),
            images,
            size=(240, 320),
            copies=4,
        )
        truth = COCO(data.truth)
        evaluator = COCOeval_faster(truth, truth.loadRes(data.found), iouType="segm" if kind == "masks" else "bbox")
        evaluator.run()
        return np.array(evaluator.stats[:12]).round(9)

    return {"ours": ours, "pycocotools": theirs, "faster-coco-eval": in_c}


TASKS = {
    "miou": miou,
    "bands": bands,
    "boundary iou": boundary_iou,
    "boundary f-score": f_score,
    "pq, maps": pq_maps,
    "pq, png, 2 threads": pq_png,
    "ap, masks": partial(average_precision, "masks"),
    "ap, boxes": partial(average_precision, "boxes"),
}


def measure(contenders: Contenders, rounds: int, cpu_time: bool) -> dict[str, float]:
    """Milliseconds of one call by contender: the median over interleaved rounds, after all have agreed."""
    clock = time.process_time if cpu_time else time.perf_counter
    expected = contenders["ours"]()
    for name, call in contenders.items():
        np.testing.assert_array_equal(call(), expected, err_msg=name)
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="also write the rows to this file")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--cpu-time", action="store_true", help="CPU time instead of wall time, but for two threads")
    options = parser.parse_args()
    torch.set_num_threads(1)
    packages = "torch torchmetrics pycocotools hotcoco faster-coco-eval numpy numba scipy pillow torchvision".split()
    versions = ", ".join([f"{p} {metadata.version(p)}" for p in packages] + [platform.machine()])
    versions += f", opencv {cv2.__version__}" if cv2 else ", without opencv"
    print(versions)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks:
            arguments = [Path(folder)] if TASKS[task] is pq_png else []
            ms = measure(TASKS[task](*arguments), options.rounds, options.cpu_time and "threads" not in task)
            for name, value in ms.items():
                row = {"task": task, "contender": name, "ms": round(value, 3), "ratio": round(value / ms["ours"], 2)}
                rows.append({**row, "versions": versions})
                print_row(row)
    if options.csv:
        write_csv(options.csv, rows, run_facts())


if __name__ == "__main__":
    main()
