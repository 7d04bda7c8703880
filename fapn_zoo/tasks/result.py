"""What a prediction gives back: maps, segments, names and colours of one image, and how it is filled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fapn_zoo.data.images import LoadedImage
from fapn_zoo.postprocess.answers import Masks, Segment, pasted
from fapn_zoo.runtime.files import make_folder
from fapn_zoo.tasks import coco, drawing, fonts
from fapn_zoo.zoo.spec import DataSpec

WIDTHS_TO_CORNERS = ((1, 0, 1, 0), (0, 1, 0, 1), (0, 0, 1, 0), (0, 0, 0, 1))  # x, y, width, height -> x1, y1, x2, y2


@dataclass(eq=False, repr=False)
class Result:
    """The prediction for one image; every map has the image's own height and width.

    Detections are boxes alone: they have no map, and their `labels` and `scores` are None.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright as a viewer shows it.
        labels: (H, W) class ids: uint8 if all ids and `ignore_index` fit, else int64. `ignore_index` marks pixels
            that got no class, which only panoptic and instance predictions have.
        scores: (H, W) float32 in 0..1. Semantic: probability of the chosen class (softmax, or for MaskFormer its share
            of all class scores). Panoptic: class times mask probability of the winner. Instance: the mask's score.
        segments: dicts with `id` (from 1), `category_id`, `name`, `isthing`, `area` (pixels), `score`
            (0..1) and `bbox` [x, y, width, height] in pixels. Semantic: one per class present, largest first. The
            `area` of a detection is that of its box.
        names: class names; the index is the class id.
        palette: an RGB triple (0..255) per class.
        ignore_index: see `labels`.
        name: what the image is called, usually its file name.
        task: `"semantic"`, `"panoptic"`, `"instance"` or `"detection"`.
        segment_map: (H, W) int32 segment ids, 0 for none; None for semantic and detection. For instances, the best
            on top.
        cropped: the masks of instances, in the order of `segments`, none of them as large as the image; else None.
        boxes: (M, 4) float32 x1, y1, x2, y2 in pixels, in the order of `segments`, where the model finds boxes; else
            None.
        category_ids: the COCO id of every class, for `to_coco`; empty where it is the class id plus 1.
    """

    image: np.ndarray
    labels: np.ndarray | None
    scores: np.ndarray | None
    segments: list[dict[str, Any]]
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int = 255
    name: str = "image"
    task: str = "semantic"
    segment_map: np.ndarray | None = None
    cropped: Masks | None = None
    boxes: np.ndarray | None = None
    category_ids: tuple[int, ...] = ()

    @property
    def masks(self) -> np.ndarray | None:
        """(M, H, W) bool, one per instance, in the order of `segments`, made at every call; None for other tasks.

        A hundred masks of a photo of 12 megapixels take 1.2 GB; `cropped` holds them in little.
        """
        return None if self.cropped is None else pasted(self.cropped).numpy()

    @property
    def has_objects(self) -> bool:
        """Whether objects of one class are told apart."""
        return self.labels is None or self.segment_map is not None

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        if self.labels is None or self.cropped is not None:
            top = ", ".join(f"{number} {name}" for name, number in list(self.class_counts().items())[:4])
            count = f", {len(self.segments)} object{'' if len(self.segments) == 1 else 's'}"
        else:
            top = ", ".join(f"{name} {share:.0%}" for name, share in list(self.class_shares().items())[:4])
            count = "" if self.segment_map is None else f", {len(self.segments)} segments"
        return f"Result({self.name!r}, {width}x{height} pixels, {self.task}{count}: {top or 'nothing found'})"

    def class_counts(self) -> dict[str, int]:
        """Objects per class, most first; none where `has_objects` is False."""
        objects = [s["category_id"] for s in self.segments if s["isthing"]] if self.has_objects else []
        found = sorted(Counter(objects).items(), key=lambda item: (-item[1], item[0]))
        return dict(zip(self._unlike_names([i for i, _ in found]), (count for _, count in found), strict=True))

    def class_shares(self) -> dict[str, float]:
        """Share of the image per class present, largest first; together 1 less the share without a class.

        Detections have none.
        """
        if self.labels is None:
            return {}
        bands = (self.labels[top : top + drawing.BAND].ravel() for top in range(0, len(self.labels), drawing.BAND))
        size = max(int(self.labels.max()) + 1, len(self.names))
        counts = sum(np.bincount(band, minlength=size) for band in bands)  # numpy makes int64 of what it counts
        # Semantic maps give every pixel a class; a label set may even name the ignored id (0, "unlabelled").
        void = None if self.segment_map is None else self.ignore_index
        ids = [i for i in np.flatnonzero(counts) if i < len(self.names) and i != void]
        ids.sort(key=lambda i: (-counts[i], i))
        return {name: float(counts[i]) / self.labels.size for name, i in zip(self._unlike_names(ids), ids, strict=True)}

    def _unlike_names(self, ids: Sequence[int]) -> list[str]:
        """The names of classes, with the id where one has occurred already."""
        names: dict[str, None] = {}
        for i in ids:
            names[self.names[i] if self.names[i] not in names else f"{self.names[i]} ({i})"] = None
        return list(names)

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """Entries of COCO's json of results, one per segment: what pycocotools' `loadRes` takes.

        Each has `image_id`, `category_id` (of `category_ids`), `bbox` [x, y, width, height] in pixels, `score`, and
        where there are masks `segmentation`: run lengths in COCO's compressed form, as text. They are made of cropped
        masks, none as large as the image. Semantic and panoptic results have an entry per class and per segment.
        """
        return coco.detections(self, image_id)

    def to_coco_panoptic(self) -> tuple[Image.Image, list[dict[str, Any]]]:
        """COCO's panoptic form: an RGB picture, and `segments_info`.

        A pixel's segment is red + 256 green + 65536 blue, 0 for none. The dicts have `id`, `category_id` (of
        `category_ids`), `isthing`, `iscrowd` (0), `area`, `bbox` and `score`. ValueError for results of other tasks.
        """
        return coco.panoptic(self)

    def to_supervision(self) -> Any:
        """The segments as `supervision.Detections`, with class names in `data["class_name"]`.

        Masks are a `CompactMask` where the installed version has it, else (M, H, W) bool. ValueError where
        `supervision` is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            hint = "install it with: pip install supervision"
            raise ValueError(f"to_supervision needs supervision ({error}); {hint}") from None
        found, size = coco.segment_masks(self), self.image.shape[:2]
        around = np.array([mask.box for mask in found or ()], np.float32).reshape(-1, 4)
        masks = None
        if found and hasattr(supervision, "CompactMask"):
            last = np.maximum(around - [0, 0, 1, 1], 0)  # there the right and lower edge are inside
            masks = supervision.CompactMask.from_coco_rle([mask.to_coco() for mask in found], last, size)
        elif found is not None:
            masks = np.stack([mask.pixels() for mask in found]) if found else np.zeros((0, *size), bool)
        classes = np.array([segment["category_id"] for segment in self.segments], int)
        return supervision.Detections(
            xyxy=around if self.boxes is None else self.boxes,
            mask=masks,
            confidence=np.array([segment["score"] for segment in self.segments], np.float32),
            class_id=classes,
            data={"class_name": np.array([self.names[i] for i in classes], str)},
        )

    def to_dict(self) -> dict[str, Any]:
        """A summary for JSON: name, task, size [H, W], class shares (six decimals), objects per class, and segments.

        There is no map in it.
        """
        return {
            "name": self.name,
            "task": self.task,
            "size": [int(side) for side in self.image.shape[:2]],
            "classes": {name: round(share, 6) for name, share in self.class_shares().items()},
            "counts": self.class_counts(),
            "segments": [dict(segment) for segment in self.segments],
        }

    def overlay(
        self, alpha: float = 0.5, boundaries: bool = True, legend: bool = False, texts: bool = True
    ) -> Image.Image:
        """The image with the classes laid over it in their colours; of detections the boxes, whatever the arguments.

        Args:
            alpha: 0 shows the image only, 1 the colours only.
            boundaries: draw a thin line between classes (between segments, where the task has them).
            legend: list the largest classes in the upper left corner.
            texts: class and score beside objects, of so many as there is room for.

        Returns:
            An RGB image of the input's size. Pixels without a class keep the image.

        Raises:
            ValueError: if alpha is outside 0..1.
        """
        named = [s for s in self.segments if s["isthing"]] if self.has_objects and texts else []
        names = fonts.class_names(self.names)
        words = [f"{names[s['category_id']]} {s['score']:.0%}" for s in named]
        if self.labels is None:
            colours = drawing.object_colours([s["category_id"] for s in self.segments], self.palette)
            return drawing.boxed(self.image, self.boxes, words if texts else [""] * len(colours), colours)
        ids, table = (self.labels if self.segment_map is None else self.segment_map), self._colours()
        thickest = None
        if self.has_objects:
            thickest = np.full(len(table[1]), 2**15, np.uint16)
            for segment in self.segments:
                side = min(segment["bbox"][2:])
                thickest[segment["id"]] = min(side // 6, 1 + side // 24)  # a line would hide the smallest
        picture = drawing.overlay(self.image, ids, *table, alpha, boundaries, thickest)
        if named:
            corners = np.array([s["bbox"] for s in named], np.float64) @ np.array(WIDTHS_TO_CORNERS)
            drawing.write_texts(picture, corners, words, [tuple(map(int, table[0][s["id"]])) for s in named])
        if legend:
            names = dict(zip(self.names, fonts.class_names(self.names), strict=True))
            shares = {names.get(name, name): share for name, share in self.class_shares().items()}
            colours = {names[name]: colour for name, colour in zip(self.names, self.palette, strict=True)}
            drawing.draw_legend(picture, shares, colours)
        return picture

    def label_image(self) -> Image.Image:
        """The class map as an image whose pixel values are the class ids.

        Mode "P" with the palette's colours (black where no class is), or "I;16" if the ids need 16 bits.
        Raises ValueError for detections, which have no map.
        """
        if self.labels is None:
            raise ValueError(f"a {self.task} result has boxes and no class map")
        if self.labels.dtype != np.uint8:
            return Image.fromarray(self.labels.astype(np.uint16))
        image = Image.fromarray(self.labels)
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(self.palette)] = self.palette
        image.putpalette(colours.tobytes())
        return image

    def save(
        self, path: str | Path, *, alpha: float = 0.5, boundaries: bool = True, legend: bool = False
    ) -> list[Path]:
        """Writes pictures; each appears whole or not at all.

        Args:
            path: a file ending in .png, .jpg, .jpeg or .webp gets the overlay. A folder (made if missing) gets
                `NAME_overlay.png` and, but for detections, `NAME_labels.png`, NAME being the image's name without
                its ending.
            alpha, boundaries, legend: see `overlay`.

        Returns:
            The files written.

        Raises:
            ValueError: for another ending.
        """
        path = Path(path)
        overlay = self.overlay(alpha, boundaries, legend)
        if path.suffix and not path.is_dir():
            drawing.save_image(overlay, path)
            return [path]
        make_folder(path)
        stem = Path(self.name).stem or "image"
        pictures = {path / f"{stem}_overlay.png": overlay}
        if self.labels is not None:
            pictures[path / f"{stem}_labels.png"] = self.label_image()
        for file, image in pictures.items():
            drawing.save_image(image, file)
        return list(pictures)

    def _colours(self) -> tuple[np.ndarray, np.ndarray]:
        """Colour per value of the map that is drawn, (V, 3) uint8, and whether that value is drawn at all, (V,)."""
        palette = np.array(self.palette, np.uint8).reshape(-1, 3)
        if self.segment_map is None:
            size = max(int(self.labels.max()), len(palette)) + 1
            table = np.zeros((size, 3), np.uint8)
            table[: len(palette)] = palette
            return table, np.arange(size) < len(palette)
        table = np.zeros((max((s["id"] for s in self.segments), default=0) + 1, 3), np.uint8)
        colours = drawing.object_colours([s["category_id"] for s in self.segments], self.palette)
        for segment, colour in zip(self.segments, colours, strict=True):
            table[segment["id"]] = colour
        return table, np.arange(len(table)) > 0


def describe_regions(ids: np.ndarray, scores: np.ndarray | None = None) -> dict[int, dict[str, Any]]:
    """Area, bounding box and mean score of every value of a map.

    Args:
        ids: (H, W) integers of 0 or more.
        scores: (H, W) float32, or None.

    Returns:
        value -> `{"area", "bbox": [x, y, width, height]}`, with `"score"` where scores are given.
    """
    from scipy import ndimage

    ids = ids.astype(np.int32)
    areas = np.bincount(ids.ravel())
    sums = None if scores is None else np.bincount(ids.ravel(), weights=scores.ravel())
    regions: dict[int, dict[str, Any]] = {}
    for value, box in enumerate(ndimage.find_objects(ids + 1)):
        if box is None:
            continue
        y, x = box
        bbox = [x.start, y.start, x.stop - x.start, y.stop - y.start]
        regions[value] = {"area": int(areas[value]), "bbox": bbox}
        if sums is not None:
            regions[value]["score"] = round(float(sums[value] / areas[value]), 6)
    return regions


def blank_result(image: LoadedImage, data: DataSpec, task: str, *, maps: bool = True) -> Result:
    """A result without segments: no class anywhere, score 0, or without any `maps`.

    `data` has names and colours for every class.
    """
    size = tuple(image.pixels.shape[1:])
    small = 0 <= data.ignore_index <= 255 and len(data.labels) <= 256
    return Result(
        image=shown_pixels(image.pixels),
        labels=np.full(size, data.ignore_index, np.uint8 if small else np.int64) if maps else None,
        scores=np.zeros(size, np.float32) if maps else None,
        segments=[],
        names=tuple(data.labels),
        palette=data.palette,
        ignore_index=data.ignore_index,
        name=image.name,
        task=task,
        category_ids=data.category_ids,
    )


def shown_pixels(pixels: Tensor) -> np.ndarray:
    """(C, H, W) of 0..255 -> (H, W, 3) uint8: the first three channels, or the first one as grey."""
    shown = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    if shown.dtype != torch.uint8:
        shown = shown.round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(shown.permute(1, 2, 0).numpy())


def widths(boxes: np.ndarray) -> list[list[float]]:
    """Boxes (M, 4) x1, y1, x2, y2 -> [x, y, width, height] of each, to hundredths of a pixel."""
    found = boxes.astype(np.float64)
    found[:, 2:] -= found[:, :2]
    return found.round(2).tolist()


def segment_dict(segment: Segment, names: Sequence[str], bbox: Sequence[float]) -> dict[str, Any]:
    """A segment as `Result.segments` holds it."""
    return {
        "id": segment.id,
        "category_id": segment.category_id,
        "name": names[segment.category_id],
        "isthing": segment.isthing,
        "area": segment.area,
        "bbox": list(bbox),
        "score": round(segment.score, 6),
    }


def paint_labels(result: Result) -> None:
    """Fills the class map from the segment map; pixels without a segment keep the ignore index."""
    table = np.full(len(result.segments) + 1, result.ignore_index, result.labels.dtype)
    for segment in result.segments:
        table[segment["id"]] = segment["category_id"]
    for top in range(0, len(result.labels), drawing.BAND):  # numpy makes int64 of ids that choose
        band = slice(top, top + drawing.BAND)
        result.labels[band] = table[result.segment_map[band]]
