"""Average precision and recall of detected boxes and masks, by COCO's rules.

The rules themselves are not written again here: `hotcoco` (MIT) is a version of pycocotools in Rust with the same
numbers, and `faster-coco-eval` (extra `coco`; Apache 2.0), one in C++, knows Boundary AP. This module brings truth and
predictions into their form, keeps them small meanwhile, and makes the result independent of who has seen which image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from fapn_zoo.data.mask_encoding import RunLengths
from fapn_zoo.metrics.accumulator import as_array, check_arrays, check_mergeable

KINDS = ("masks", "boxes")
BOUNDARIES = "boundaries"  # a third kind of score, of the masks that are kept
LIMITS = (1, 10, 100)  # detections of one class in one image that recall is measured at; precision at the last
SCORES = ("ap", "ap50", "ap75", "aps", "apm", "apl", "ar1", "ar10", "ar100", "ars", "arm", "arl")


class AveragePrecision:
    """Truth and predictions of all images seen so far, masks as run lengths, and COCO's scores of them.

    An image is known by its id, and images are scored in the order of their ids, detections of equal score in the
    order of `update`. So the order of calls and the number of processes change no digit.

    Args:
        num_classes: K; class ids run 0..K-1.
        kinds: what is scored: "masks", "boxes" or both.

    Raises:
        ValueError: num_classes < 1, or other kinds.
    """

    def __init__(self, num_classes: int, kinds: Sequence[str] = KINDS) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        if not kinds or not set(kinds) <= set(KINDS) or len(set(kinds)) < len(kinds):
            raise ValueError(f"kinds must be of {', '.join(KINDS)}, got {', '.join(map(str, kinds)) or 'none'}")
        self.num_classes, self.kinds = num_classes, tuple(k for k in KINDS if k in kinds)
        self.settings = {"num_classes": num_classes, "kinds": list(self.kinds)}
        self.images: dict[int | str, dict[str, Any]] = {}

    def update(self, predictions: Mapping[str, Any], targets: Mapping[str, Any], image: int | str) -> None:
        """Adds one image. Tensors or arrays; N and M may be 0.

        Args:
            predictions: "classes" (N,) integers, "scores" (N,) floats, and what is scored: "masks", bool (N, H, W) or
                a list of N `RunLengths`, and/or "boxes" (N, 4) x1, y1, x2, y2 in pixels (right and lower edge
                outside). Without boxes those of the masks are taken.
            targets: "classes" (M,), "masks" and/or "boxes" (M, 4) likewise; if given, "crowd" bool (M,):
                regions of many objects, which need not be found and in which nothing is wrong; and "areas" (M,) in
                pixels, which decide what is small, medium or large: without them those of the masks, else of the
                boxes.
            image: its id, an integer or a string.

        Raises:
            ValueError: naming the image: it has been added before, something is missing, of another length, size or
                dtype, not finite, or a class is out of range. Nothing has been added then.
        """
        try:
            if image in self.images:
                raise ValueError("it has been added before")
            self.images[image] = self._entry(predictions, targets)
        except ValueError as error:
            raise ValueError(f"image {image}: {error}") from None

    def _entry(self, predictions: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of an image: plain values."""
        truth, size = self._side(targets, "the truth")
        found, other_size = self._side(predictions, "the prediction")
        if size and other_size and size != other_size:
            sizes = [f"{w}x{h}" for h, w in (other_size, size)]
            raise ValueError(f"the predicted masks are {sizes[0]} pixels, the true ones {sizes[1]}")
        count = len(truth["classes"])
        crowd = _numbers(targets.get("crowd", np.zeros(count, bool)), (count,), "crowd of the truth")
        truth["crowd"] = (crowd != 0).astype(int).tolist()
        if targets.get("areas") is not None:
            truth["areas"] = _numbers(targets["areas"], (count,), "areas of the truth").tolist()
        if "scores" not in predictions:
            raise ValueError("the prediction has no scores")
        found["scores"] = _numbers(predictions["scores"], (len(found["classes"]),), "scores of the prediction").tolist()
        return {"size": size or other_size or [1, 1], "truth": truth, "found": found}

    def _side(self, side: Mapping[str, Any], what: str) -> tuple[dict[str, list], list[int] | None]:
        """Classes, boxes (x, y, width, height), masks (run lengths) and areas, and the [height, width] of the masks."""
        if "classes" not in side:
            raise ValueError(f"{what} has no classes")
        classes = as_array(side["classes"])
        if classes.size and (classes.dtype.kind not in "iu" or classes.ndim != 1):
            raise ValueError(f"classes of {what} must be integers (N,), got {classes.dtype} {classes.shape}")
        if classes.size and not 0 <= classes.min() <= classes.max() < self.num_classes:
            found = f"{classes.min()}..{classes.max()}"
            raise ValueError(f"classes of {what} must lie in 0..{self.num_classes - 1}, got {found}")
        count, found, size = len(classes), {"classes": classes.tolist()}, None
        masks, boxes = side.get("masks"), side.get("boxes")
        if masks is None and ("masks" in self.kinds or boxes is None):
            raise ValueError(f"{what} has no {'masks' if 'masks' in self.kinds else 'boxes'}")
        runs: list[RunLengths] = []
        if masks is not None:
            runs = _runs(masks, count, what)
            found["areas"] = [float(mask.area) for mask in runs]
            size = [*runs[0].size] if runs else None
        if "masks" in self.kinds:
            found["masks"] = [mask.text for mask in runs]
        if "boxes" in self.kinds:
            boxes = np.array([mask.box for mask in runs], np.float64).reshape(-1, 4) if boxes is None else boxes
            found["boxes"] = _widths(_numbers(boxes, (count, 4), f"boxes of {what}"), what)
            found.setdefault("areas", [width * height for _, _, width, height in found["boxes"]])
        return found, size

    def merge(self, other: Self) -> Self:
        """Adds another's images; returns self. ValueError: the two score different things, or both saw an image."""
        check_mergeable(self, other)
        both = sorted(other.images.keys() & self.images.keys(), key=_place)
        if both:
            raise ValueError(f"image {', '.join(map(str, both[:5]))} has been added before")
        self.images |= other.images
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """{"images": uint8}: settings and images as JSON text, which holds every number to the last bit."""
        text = json.dumps({"settings": self.settings, "images": [*self.images.items()]}, separators=(",", ":"))
        return {"images": np.frombuffer(bytearray(text, "ascii"), np.uint8)}

    def load(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """Replaces all images by those of `arrays`; returns self. ValueError: not of such a text, or other settings."""
        check_arrays(arrays, self.arrays(), any_length=True)
        held = json.loads(arrays["images"].tobytes())
        if held["settings"] != self.settings:
            raise ValueError(f"cannot load {held['settings']} into {self.settings}")
        self.images = dict(held["images"])
        return self

    def compute(self, kinds: Sequence[str] | None = None) -> dict[str, Any]:
        """The scores, as fractions 0..1. ValueError: for boundaries `faster-coco-eval` is not installed.

        Args:
            kinds: which of those that were kept; None = all. Also "boundaries" where masks were kept: the same scores
                with the overlap of masks or of their edges, whichever is smaller (Cheng et al., CVPR 2021, section 5),
                edges being 2 % of the image's diagonal wide.

        Returns:
            For each kind: ap (mean over IoU thresholds 0.50, 0.55, ... 0.95), ap50, ap75, aps, apm, apl (truth under
            32², to 96², and above), ar1, ar10, ar100 (recall with so many detections of a class in an image, mean over
            the thresholds), ars, arm, arl (with 100): means over classes; and "per_class", the same for each class with
            "truth", its number of objects. NaN where there is no object of that size; classes without one are outside
            all means, even if they were predicted.
        """
        order = sorted(self.images, key=_place)
        return {kind: self._scores(kind, [self.images[image] for image in order]) for kind in kinds or self.kinds}

    def _scores(self, kind: str, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        truth, found = (self._annotations(kind, side, images) for side in ("truth", "found"))
        table = _by_class(*_evaluate(kind, truth, found, images, self.num_classes))
        objects = np.bincount([a["category_id"] for a in truth if not a["iscrowd"]], minlength=self.num_classes)
        known = [row[~np.isnan(row)] for row in table]
        means = [float(row.mean()) if row.size else float("nan") for row in known]
        rows = zip(table.T.tolist(), objects.tolist(), strict=True)
        per_class = [dict(zip(SCORES, row, strict=True)) | {"truth": count} for row, count in rows]
        return dict(zip(SCORES, means, strict=True)) | {"per_class": per_class}

    @staticmethod
    def _annotations(kind: str, side: str, images: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One of COCO's dicts per object. Ids run from 1: pycocotools takes 0 for no match."""
        found: list[dict[str, Any]] = []
        for number, image in enumerate(images, 1):
            rows = image[side]
            for i, category in enumerate(rows["classes"]):
                entry = {"id": len(found) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
                entry["area"] = rows["areas"][i]
                if kind != "boxes":
                    entry["segmentation"] = {"size": image["size"], "counts": rows["masks"][i]}
                else:
                    entry["bbox"] = rows["boxes"][i]
                if side == "truth":
                    entry["iscrowd"] = rows["crowd"][i]
                else:
                    entry["score"] = rows["scores"][i]
                    if kind == "boxes":  # whatever masks there are: a box is small or large by its own area
                        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
                found.append(entry)
        return found


def require_boundaries() -> None:
    """ValueError where what scores boundaries is not installed."""
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError as error:
        hint = "install it with: pip install 'fapn-zoo[coco]'"
        raise ValueError(f"Boundary AP needs faster-coco-eval ({error}); {hint}") from None


def _place(image: int | str) -> tuple[bool, int | str]:
    """Numbers before names."""
    return isinstance(image, str), image


def _evaluate(
    kind: str, truth: list[dict], found: list[dict], images: Sequence[Mapping[str, Any]], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, K, A, M) and recall (T, K, A, M), -1 where undefined.

    T are IoU thresholds, R points of recall, K classes, A areas (all, small, medium, large), M the `LIMITS`.
    """
    table = {
        "images": [{"id": i, "height": e["size"][0], "width": e["size"][1]} for i, e in enumerate(images, 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(num_classes)],
    }
    if not images:
        return np.full((10, 101, num_classes, 4, 3), -1.0), np.full((10, num_classes, 4, 3), -1.0)
    sides = [{**table, "annotations": annotations} for annotations in (truth, found)]
    if kind == BOUNDARIES:
        require_boundaries()
        from faster_coco_eval import COCO, COCOeval_faster

        evaluator = COCOeval_faster(*map(COCO, sides), iouType="boundary")
        evaluator.params.maxDets = list(LIMITS)
    else:
        from hotcoco import COCO, COCOeval

        evaluator = COCOeval(*map(COCO, sides), "segm" if kind == "masks" else "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])


def _by_class(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """`SCORES` of every class, (12, K), NaN where undefined: there all cells of a class are -1."""
    last = len(LIMITS) - 1
    cells = [precision[..., 0, last], precision[:1, ..., 0, last], precision[5:6, ..., 0, last]]  # IoU 0.50 and 0.75
    cells += [precision[..., area, last] for area in (1, 2, 3)]
    rows = [values.mean((0, 1)) for values in cells]
    rows += [recall[..., 0, limit].mean(0) for limit in range(len(LIMITS))]
    rows += [recall[..., area, last].mean(0) for area in (1, 2, 3)]
    table = np.stack(rows)
    return np.where(table < 0, np.nan, table)


def _runs(masks: Any, count: int, what: str) -> list[RunLengths]:
    """`RunLengths` as they are, or made of bool (N, H, W); ValueError for anything else."""
    if isinstance(masks, list) and masks and all(isinstance(mask, RunLengths) for mask in masks):
        if len(masks) != count or len({mask.size for mask in masks}) > 1:
            raise ValueError(f"masks of {what} must be {count} of one size, got {len(masks)}")
        return masks
    masks = as_array(masks) if count or as_array(masks).size else np.zeros((0, 1, 1), bool)
    if masks.ndim != 3 or len(masks) != count or masks.dtype != np.bool_:
        raise ValueError(f"masks of {what} must be bool ({count}, H, W), got {masks.dtype} {masks.shape}")
    return [RunLengths.of(mask, 0, 0, mask.shape) for mask in masks]


def _widths(boxes: np.ndarray, what: str) -> list[list[float]]:
    """Corners -> x, y, width, height."""
    sides = boxes[:, 2:] - boxes[:, :2]
    if (sides < 0).any():
        row = boxes[np.flatnonzero((sides < 0).any(1))[0]].tolist()
        raise ValueError(f"boxes of {what} must be x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, got {row}")
    return np.concatenate([boxes[:, :2], sides], axis=1).tolist()


def _numbers(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """float64 of this shape, all finite; else ValueError."""
    array = as_array(values)
    if not array.size and not shape[0]:
        return np.zeros(shape)
    if array.shape != shape or array.dtype.kind not in "biuf":
        raise ValueError(f"{what} must be numbers {shape}, got {array.dtype} {array.shape}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{what} must be finite, got {array[~np.isfinite(array)][0]}")
    return array
