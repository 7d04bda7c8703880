"""COCO panoptic folders of generated scenes, and a model that reads its answers from the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from fapn_zoo.data.scenes import CLASSES, PALETTE, THINGS, generate_scene

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
