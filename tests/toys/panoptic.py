"""COCO panoptic folders of generated scenes, and a model that reads its answers from the picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fapn_zoo import create_model
from fapn_zoo.data.generated import ScenesDataset
from fapn_zoo.data.sample import SEGMENTS, Dataset, Objects, Sample
from fapn_zoo.data.scenes import CLASSES, PALETTE, THINGS, generate_scene
from fapn_zoo.modules.heads.outputs import MaskFormerOutput
from fapn_zoo.zoo.spec import DataSpec, ModelSpec

CATEGORY = tuple(7 * i + 3 for i in range(len(CLASSES)))  # COCO's ids have gaps, too


def write_coco(root: Path, seeds: range, size: tuple[int, int] = (48, 64), split: str | None = "val2017") -> Path:
    """Writes scenes to a folder, with split as COCO is offered, without as a folder of one; returns the JSON file."""
    stem = f"panoptic_{split}" if split else "panoptic"
    file = root / "annotations" / f"{stem}.json" if split else root / f"{stem}.json"
    pictures = root / split if split else root / "images"
    for folder in (file.with_suffix(""), pictures):
        folder.mkdir(parents=True)
    table: dict[str, list] = {"images": [], "annotations": []}
    table["categories"] = [
        {"id": CATEGORY[i], "name": name, "isthing": int(i in THINGS), "color": list(PALETTE[i])}
        for i, name in reversed([*enumerate(CLASSES)])
    ]
    for seed in seeds:
        scene = generate_scene(seed, size)
        rng = np.random.default_rng(seed)
        colours = rng.choice(2**24 - 1, len(scene.segments) + 1, replace=False) + 1
        colours[0] = 0
        ids = colours[scene.panoptic]
        segments = [
            {"id": int(colours[s["id"]]), "category_id": CATEGORY[s["category_id"]], "area": s["area"],
             "bbox": list(s["bbox"]), "iscrowd": int(s["isthing"] and s["id"] % 5 == 0)}
            for s in scene.segments
        ]  # fmt: skip
        name = f"{seed:06d}"
        Image.fromarray(scene.image).save(pictures / f"{name}.png")
        Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(
            file.with_suffix("") / f"{name}.png"
        )
        table["images"].append({"id": seed, "file_name": f"{name}.png", "height": size[0], "width": size[1]})
        table["annotations"].append({"image_id": seed, "file_name": f"{name}.png", "segments_info": segments})
    file.write_text(json.dumps(table))
    return file


class Painted:
    """A data set whose pictures tell the truth: red is the segment, green its class. Some segments become crowds, void.

    Args:
        source: whose segments.
        crowds, void: every so-manieth thing is a crowd, every so-manieth segment void; 0 for none.
    """

    holds = SEGMENTS

    def __init__(self, source: Dataset, crowds: int = 0, void: int = 0):
        self.source, self.crowds, self.void = source, crowds, void
        self.name, self.labels = "painted", source.labels
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.source)

    def size(self, index: int) -> tuple[int, int]:
        return self.source.size(index)

    def files(self, index: int) -> tuple[Path, ...]:
        return self.source.files(index)

    def sample(self, index: int) -> Sample:
        self.asked.append(index)
        sample = self.source.sample(index)
        ids, classes = sample.objects.ids, sample.objects.classes
        image = np.stack([ids, sample.labels, ids * 0]).astype(np.uint8)
        numbers = np.arange(1, len(classes) + 1)
        things = np.isin(classes, self.labels.things)
        crowd = sample.objects.crowd | (things & (numbers % self.crowds == 0) if self.crowds else False)
        kept = numbers % self.void != 0 if self.void else numbers > 0
        new = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)
        objects = Objects(new[ids], classes[kept], crowd[kept])
        return dataclasses.replace(sample, image=torch.from_numpy(image), objects=objects)


class OddScenes(ScenesDataset):
    """Scenes of several sizes."""

    SIZES = ((96, 128), (83, 119), (128, 96), (96, 128))

    def size(self, index: int) -> tuple[int, int]:
        return self.SIZES[index % len(self.SIZES)]


class Oracle(nn.Module):
    """A mask classification model that reads the pictures of `Painted`, and errs as it is told.

    Args:
        err: changes (segments (H, W), class by segment) of one picture before it answers; None for the truth.
        data: fields of its `DataSpec`.
    """

    queries = 60

    def __init__(self, err: Callable[[np.ndarray, dict[int, int]], tuple] | None = None, **data: Any):
        super().__init__()
        plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "labels": tuple(CLASSES), "things": tuple(THINGS)}
        data_spec = DataSpec(**plain | data)
        self.num_classes = len(data_spec.labels) or len(CLASSES)
        self.spec = ModelSpec("maskformer_toy", "maskformer", "fpn", "toy", self.num_classes, data=data_spec)
        self.err = err
        self.gain = nn.Parameter(torch.ones(()))

    @property
    def data(self) -> DataSpec:
        return self.spec.data

    def forward(self, x: Tensor, sizes: Tensor | None = None, targets: object = None) -> MaskFormerOutput:
        classes = torch.zeros(len(x), self.queries, self.num_classes + 1)
        classes[..., -1] = 20.0
        masks = torch.full((len(x), self.queries, *x.shape[2:]), -20.0)
        for n, (segments, labels) in enumerate(x[:, :2].round().int().numpy()):
            table = {int(i): int(labels[segments == i][0]) for i in np.unique(segments) if i and i <= self.queries}
            if self.err is not None:
                segments, table = self.err(segments.copy(), table)
            for i, label in table.items():
                masks[n, i - 1][torch.from_numpy(segments == i)] = 20.0
                classes[n, i - 1, -1] = 0.0
                classes[n, i - 1, label] = 9.0 + i % 7 / 4
        return MaskFormerOutput(classes * self.gain, masks, stride=1)


def mistaken(segments: np.ndarray, table: dict[int, int]) -> tuple[np.ndarray, dict[int, int]]:
    """Every map a pixel off, some segments lost, cut in half, joined or of another class."""
    segments, table = np.roll(segments, 1, 1), dict(table)
    half = segments[:, segments.shape[1] // 2 :]
    for i in list(table):
        if i % 5 == 1:
            table[i] = (table[i] + 1) % len(CLASSES)
        elif i % 5 == 2:
            segments[segments == i] = 0
            del table[i]
        elif i % 5 == 3:
            half[half == i] = 0
    present = set(np.unique(segments).tolist())
    return segments, {i: label for i, label in table.items() if i in present}


def small_maskformer(seed: int = 0, names: tuple[str, ...] = tuple(CLASSES)) -> nn.Module:
    """A mask classification model with random weights that is sure of itself."""
    torch.manual_seed(seed)
    net = create_model(
        "maskformer_fpn",
        backbone="test_efficientnet",
        num_classes=len(names),
        neck_out_channels=16,
        head_mask_channels=16,
        head_channels=32,
        head_layers=1,
        head_feedforward=32,
        head_heads=2,
        head_num_queries=12,
    )
    with torch.no_grad():
        net.head.class_embed.weight.mul_(20)
        net.head.mask_embed[-1].weight.mul_(50)
    data = dataclasses.replace(net.spec.data, labels=names, things=tuple(THINGS))
    net.spec = dataclasses.replace(net.spec, data=data)
    return net
