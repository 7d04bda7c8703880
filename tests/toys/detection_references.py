"""Objects of generated scenes, imperfect detections of them, and what pycocotools says of both."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
from toys.metric_references import region

from fapn_zoo.data.scenes import CLASSES, generate_scene

NUM_CLASSES = len(CLASSES)
EMPTY = {"neither": (17,), "truth": (5, 17), "found": (9, 17)}  # seeds of images without objects, without detections


@cache
def detection_pair(seed: int, size: tuple[int, int] = (160, 224), copies: int = 2) -> tuple[dict, dict]:
    """Predictions and targets of `AveragePrecision.update`: every segment of a scene is an object, some are crowds.

    Detections are shifted masks with a piece missing, in several copies, some of the wrong class, with scores of which
    many are equal. Boxes are those of the masks, moved by parts of a pixel.
    """
    rng = np.random.default_rng(seed)
    scene = generate_scene(seed, size)
    segments = [] if seed in EMPTY["truth"] else [s for s in scene.segments if s["area"] > 3]
    masks = np.array([scene.panoptic == s["id"] for s in segments], bool).reshape(-1, *size)
    classes = np.array([s["category_id"] for s in segments], np.int64)
    targets = {
        "masks": masks, "boxes": boxes_of(masks), "classes": classes, "crowd": rng.random(len(masks)) < 0.1,
        "areas": masks.sum((1, 2)) * rng.choice([0.7, 1.0], len(masks)),
    }  # fmt: skip
    found = []
    for source, label in zip(masks, classes, strict=True) if seed not in EMPTY["found"] else ():
        for _ in range(copies):
            steps = tuple(rng.integers(-2, 3, 2)) if source.sum() > 200 else (0, 0)
            mask = np.roll(source, steps, (0, 1))
            y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
            mask[y : y + rng.integers(0, 60), x : x + rng.integers(0, 60)] = False
            if mask.any() and rng.random() < 0.85:
                found.append((mask, label if rng.random() < 0.8 else rng.choice(classes), rng.integers(0, 20) / 20))
    if seed not in EMPTY["found"]:  # something that is nowhere
        found.append((np.pad(np.ones((9, 9), bool), ((0, size[0] - 9), (0, size[1] - 9))), 8, 0.55))
    order = rng.permutation(len(found))
    shown = np.array([found[i][0] for i in order], bool).reshape(-1, *size)
    predictions = {
        "masks": shown,
        "boxes": boxes_of(shown) + np.float32([-1, -1, 1, 1]) * rng.random((len(shown), 4)).astype(np.float32),
        "classes": np.array([found[i][1] for i in order], np.int64),
        "scores": np.array([found[i][2] for i in order], np.float32),
    }
    return predictions, targets


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) float64 x1, y1, x2, y2 around masks, right and lower edge outside."""
    found = np.zeros((len(masks), 4))
    for row, mask in zip(found, masks, strict=True):
        y, x = np.nonzero(mask)
        row[:] = (x.min(), y.min(), x.max() + 1, y.max() + 1) if x.size else 0
    return found


class CocoReference:
    """pycocotools on the same images."""

    def __init__(self, num_classes: int, kinds: tuple[str, ...] = ("masks", "boxes")) -> None:
        self.kinds = kinds
        categories = [{"id": k, "name": str(k)} for k in range(num_classes)]
        self.truth: dict[str, Any] = {"images": [], "annotations": [], "categories": categories, "info": {}}
        self.found: list[dict[str, Any]] = []

    def update(self, predictions: Mapping[str, Any], targets: Mapping[str, Any], image: int) -> None:
        from pycocotools import mask as coco_mask

        height, width = targets["masks"].shape[1:]
        self.truth["images"].append({"id": image, "height": height, "width": width})
        for side in (predictions, targets):
            for i, (x1, y1, x2, y2) in enumerate(side["boxes"].astype(float).tolist()):
                entry: dict[str, Any] = {"image_id": image, "category_id": int(side["classes"][i])}
                if "boxes" in self.kinds:
                    entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
                if "masks" in self.kinds:
                    mask = np.asfortranarray(side["masks"][i].view(np.uint8))
                    entry["segmentation"] = coco_mask.encode(mask)
                if side is predictions:
                    self.found.append(entry | {"score": float(side["scores"][i])})
                else:
                    more = {"id": len(self.truth["annotations"]) + 1, "iscrowd": int(targets["crowd"][i])}
                    self.truth["annotations"].append(entry | more | {"area": float(targets["areas"][i])})

    def evaluate(self, kind: str) -> Any:
        """The evaluator after `summarize`: `stats` and `eval`. Of "boundaries" with Boundary AP's overlap."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            truth = COCO()
            truth.dataset = self.truth
            truth.createIndex()
            # with boxes beside them, pycocotools would take the boxes' areas for those of the masks
            without = "segmentation" if kind == "boxes" else "bbox"
            found = truth.loadRes([{k: v for k, v in entry.items() if k != without} for entry in self.found])
            evaluator = COCOeval(truth, found, "bbox" if kind == "boxes" else "segm")
            if kind == "boundaries":
                evaluator.computeIoU = partial(_overlap_of_edges, evaluator, evaluator.computeIoU)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        return evaluator


def _overlap_of_edges(evaluator: Any, of_masks: Any, image: int, category: int) -> Any:
    """The smaller overlap, of masks or of their edges; within crowds that of masks (Cheng et al., CVPR 2021)."""
    from pycocotools import mask as coco_mask

    ious = of_masks(image, category)
    truth, found = evaluator._gts[image, category], evaluator._dts[image, category]
    if not len(ious):
        return ious
    found = sorted(found, key=lambda entry: -entry["score"])[: evaluator.params.maxDets[-1]]
    crowd = [entry["iscrowd"] for entry in truth]
    rles = [
        [
            coco_mask.encode(np.asfortranarray(region(coco_mask.decode(entry["segmentation"]) > 0).view(np.uint8)))
            for entry in side
        ]
        for side in (found, truth)
    ]
    edges = coco_mask.iou(*rles, crowd)
    return np.where(np.array(crowd, bool), ious, np.minimum(ious, edges))


def feed(metric: Any, seeds: Iterable[int], **options: Any) -> Any:
    """Adds the pairs of these seeds to a metric; returns it."""
    for seed in seeds:
        metric.update(*detection_pair(seed, **options), seed)
    return metric
