"""Folders with COCO's instance json: generated pictures with boxes, polygons, run lengths and crowds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fapn_zoo.data.sample import Objects
from fapn_zoo.modules.heads.outputs import DetectionOutput, MaskFormerOutput
from fapn_zoo.zoo.spec import DataSpec, ModelSpec

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


class Witness(nn.Module):
    """A model that answers the truth of a data set, image after image; evaluate it with a batch size of 1.

    Args:
        err: changes the objects of an image before it answers: (objects, rng) -> objects.
    """

    def __init__(self, data: Any, task: str, err: Callable[[Objects, np.random.Generator], Objects] | None = None):
        super().__init__()
        labels = {"labels": data.labels.names, "things": data.labels.things, "category_ids": data.labels.category_ids}
        spec = DataSpec(mean=(0.0,) * 3, std=(1.0,) * 3, **labels)
        head = {"detection": "faster_rcnn", "instance": "maskformer"}[task]
        self.spec = ModelSpec("toy", head, "fpn", "toy", data.labels.num_classes, data=spec, task=task)
        self.dataset, self.task, self.err, self.place = data, task, err, 0
        self.gain = nn.Parameter(torch.ones(()))

    @property
    def data(self) -> DataSpec:
        return self.spec.data

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes

    def forward(self, x: Tensor, sizes: Tensor | None = None, targets: object = None) -> Any:
        self.place += 1
        return self.output(self.place - 1)

    def output(self, index: int) -> Any:
        sample = self.dataset.sample(index)
        objects, rng = sample.objects, np.random.default_rng(index)
        if self.err is not None:
            objects = self.err(objects, rng)
        rows = np.flatnonzero(~objects.crowd & np.isin(objects.classes, self.data.things))
        classes, scores = torch.from_numpy(objects.classes[rows]), torch.from_numpy(rng.uniform(0.5, 1, len(rows)))
        if self.task == "detection":
            order = scores.argsort(descending=True)
            boxes = torch.from_numpy(objects.boxes[rows].astype(np.float32))[order]
            return DetectionOutput((boxes,), (scores[order].float(),), (classes[order],))
        masks = torch.from_numpy(objects.masks(rows.tolist(), sample.size))
        logits = torch.zeros(1, len(rows), self.num_classes + 1)
        logits[0, range(len(rows)), classes] = 8 + 4 * scores.float()
        return MaskFormerOutput(logits * self.gain, (masks * 40.0 - 20)[None], stride=1)


def write_splits(root: Path, ids: tuple[int, ...] = (1, 2, 3)) -> Path:
    """train and val of three pictures each, none of them alike; returns the root."""
    for before, split in ((0, "train"), (3, "val")):  # a picture's colour is its id's
        content = table(ids=ids)
        for entry in (*content["images"], *content["annotations"]):
            entry["id" if "file_name" in entry else "image_id"] += before
        write(root, content, f"annotations_{split}.json", f"{split}/images")
    return root
