"""Predictions as YOLO's text files: polygons of masks, or boxes, in shares of the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from fapn_zoo.predict.formats.writer import SPLIT, FolderWriter, found
from fapn_zoo.runtime.files import write_text
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec


class YoloFiles(FolderWriter):
    """`data.yaml`, and for `images/train/x.jpg` the objects in `labels/train/x.txt`."""

    def _add(self, index: int, picture: Path, result: Result) -> None:
        height, width = result.image.shape[:2]
        rows = []
        for segment, (x1, y1, x2, y2), way in found(result):
            values = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) if way is None else way.ravel()
            shares = values / np.resize([width, height], len(values))
            rows.append(" ".join([str(segment["category_id"]), *(f"{share:.12g}" for share in shares)]))
        write_text(self.folder / "labels" / SPLIT / f"{picture.stem}.txt", "".join(f"{row}\n" for row in rows))

    def _end(self, model: str, data: DataSpec) -> str:
        spec = {SPLIT: self.pictures, "nc": len(data.labels), "names": dict(enumerate(data.labels))}
        write_text(self.folder / "data.yaml", yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
        return ""
