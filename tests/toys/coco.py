"""Folders with COCO's instance json: generated pictures with boxes, polygons, run lengths and crowds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (40, 56)


def annotation(number: int, image: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3]} | more


def polygon(box: list[float]) -> list[list[float]]:
    """A diamond in a box x, y, width, height."""
    x, y, w, h = box
    return [[x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]]


def table(images: int = 3, ids: tuple[int, ...] = (1, 2, 3), masks: bool = True, seed: int = 0) -> dict[str, Any]:
    """Some objects of every category on every picture; those on odd places have no mask where `masks` is false."""
    rng, annotations = np.random.default_rng(seed), []
    for image in range(1, images + 1):
        for category in ids:
            box = [*rng.uniform(0, 20, 2).round(1).tolist(), *rng.uniform(6, 18, 2).round(1).tolist()]
            shape = {"segmentation": polygon(box) if masks else [], "iscrowd": 0}
            annotations.append(annotation(len(annotations) + 1, image, category, box, **shape))
    pictures = [
        {"id": i, "file_name": f"{i:03}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(1, images + 1)
    ]
    categories = [{"id": i, "name": f"kind {i}", "supercategory": "things"} for i in ids]
    return {"images": pictures, "annotations": annotations, "categories": categories}


def write(root: Path, content: dict[str, Any], place: str = "annotations_train.json", pictures: str = "train/images"):
    """Writes the json and its pictures, grey ones; returns the root."""
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(json.dumps(content))
    for entry in content["images"]:
        file = root / pictures / entry["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (entry["width"], entry["height"]), (entry["id"] % 256, 90, 120)).save(file)
    return root
