"""Predictions as pictures and masks: in our own layout, and as `datasets.load_dataset` reads and the Hub shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from fapn_zoo.predict.formats.writer import SPLIT, FolderWriter
from fapn_zoo.runtime.files import make_folder, write_json, write_text
from fapn_zoo.tasks.coco import detections, panoptic
from fapn_zoo.tasks.drawing import save_image
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec

BOX = {"list": "float64"}
RUNS = [{"name": "size", "list": "int64"}, {"name": "counts", "dtype": "string"}]


class LabelFolder(FolderWriter):
    """`train/images/x.jpg` with `train/labels/x.png`, whose pixels are class ids, in the colours of the classes."""

    tasks = frozenset({"semantic", "panoptic"})
    pictures = f"{SPLIT}/images"

    def _add(self, index: int, picture: Path, result: Result) -> None:
        file = self.folder / SPLIT / "labels" / f"{picture.stem}.png"
        make_folder(file.parent)
        save_image(result.label_image(), file)


class ImageFolder(FolderWriter):
    """`train/metadata.jsonl` with a row per picture, `id2label.json`, and the columns' types in the readme.

    Semantic results have `image` and `mask`, a PNG of class ids; panoptic ones `image`, `label` (a pixel's segment is
    red + 256 green + 65536 blue) and `segments_info`; others `image` and `objects`: lists `id`, `bbox` [x, y, width,
    height], `area`, `category` and `score`, and where there are masks `segmentation`, COCO's run lengths.
    """

    tasks = FolderWriter.tasks | {"semantic"}
    pictures = f"{SPLIT}/images"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._rows: list[str] = []
        self._task = ""

    def _keeps(self, index: int) -> bool:
        """`datasets` knows no AVIF."""
        return super()._keeps(index) and Path(self._inputs[index]).suffix.lower() != ".avif"

    def _add(self, index: int, picture: Path, result: Result) -> None:
        row: dict[str, Any] = {"file_name": f"images/{picture.name}"}
        classes = [segment["category_id"] for segment in result.segments]
        self._task = result.task
        if result.task in ("semantic", "panoptic"):
            column = "mask" if result.task == "semantic" else "label"
            image, segments = (result.label_image(), []) if column == "mask" else panoptic(result)
            file = self.folder / SPLIT / f"{column}s" / f"{picture.stem}.png"
            make_folder(file.parent)
            save_image(image, file)
            row[f"{column}_file_name"] = f"{column}s/{file.name}"
            if result.task == "panoptic":
                row["segments_info"] = [s | {"category_id": k} for s, k in zip(segments, classes, strict=True)]
        else:
            found, keys = detections(result, 0), ("bbox", "score", *["segmentation"] * (result.task == "instance"))
            row["objects"] = {key: [entry[key] for entry in found] for key in keys}
            areas = [segment["area"] for segment in result.segments]
            row["objects"] |= {"id": list(range(1, len(found) + 1)), "area": areas, "category": classes}
        self._rows.append(json.dumps(row))

    def _end(self, model: str, data: DataSpec) -> str:
        names = {str(i): name for i, name in enumerate(data.labels)}
        make_folder(self.folder / SPLIT)
        write_text(self.folder / SPLIT / "metadata.jsonl", "".join(f"{row}\n" for row in self._rows))
        write_json(self.folder / "id2label.json", names)
        columns = [{"name": "image", "dtype": "image"}, *_columns(self._task, {"class_label": {"names": names}})]
        files = [{"split": SPLIT, "path": f"{SPLIT}/**"}]  # and not the json files beside it
        config = {"config_name": "default", "data_files": files, "features": columns}
        return f"---\n{yaml.safe_dump({'configs': [config]}, sort_keys=False, allow_unicode=True)}---\n"


def _columns(task: str, category: dict[str, Any]) -> list[dict[str, Any]]:
    """The columns beside the picture, as readmes on the Hub describe them."""
    if task == "semantic":
        return [{"name": "mask", "dtype": "image"}]
    if task == "panoptic":
        kinds = dict.fromkeys(("id", "isthing", "iscrowd"), "int64") | {"area": "float64", "score": "float64"}
        parts = [{"name": key, "dtype": kind} for key, kind in kinds.items()]
        parts += [{"name": "bbox", **BOX}, {"name": "category_id", "dtype": category}]
        return [{"name": "label", "dtype": "image"}, {"name": "segments_info", "list": parts}]
    lists: dict[str, Any] = {"id": "int64", "bbox": BOX, "area": "float64", "category": category, "score": "float64"}
    lists |= {"segmentation": RUNS} if task == "instance" else {}
    return [{"name": "objects", "struct": [{"name": key, "list": kind} for key, kind in lists.items()]}]
