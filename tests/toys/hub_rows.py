"""Tiny data sets in the layouts of the Hugging Face Hub, as parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

H, W = 24, 36
NAMES = ["sky", "road", "car"]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 255, (H, W, 3), np.uint8)


def ids(i: int) -> np.ndarray:
    found = np.zeros((H, W), np.uint8)
    found[:, i + 3 :] = 1
    found[4:9, 20:30] = 2
    found[0, 0] = 255
    return found


def write(
    folder: Path, rows: Sequence[dict[str, Any]], split: str = "train", alone: bool = False, **kinds: Any
) -> Path:
    """A split as parquet, images as structs of bytes unless `kinds` say otherwise; beside train another one."""
    folder.mkdir(exist_ok=True)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    table = datasets.Dataset.from_dict({k: _images(v) for k, v in columns.items()})
    for key, kind in kinds.items():
        table = table.cast_column(key, kind)
    table.to_parquet(folder / f"{split}.parquet")
    if split == "train" and not alone:
        table.select([0]).to_parquet(folder / "validation.parquet")
    return folder


def _images(values: list[Any]) -> list[Any]:
    return [{"bytes": value, "path": None} if isinstance(value, bytes) else value for value in values]


def semantic(count: int = 4, image: str = "image", mask: str = "label") -> list[dict[str, Any]]:
    return [{image: png(picture(i)), mask: png(ids(i))} for i in range(count)]


def named(folder: Path) -> Path:
    (folder / "id2label.json").write_text(json.dumps({str(i): name for i, name in enumerate(NAMES)}))
    return folder
