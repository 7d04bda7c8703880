"""Predictions as a folder of COCO's: the json, the pictures, and of panoptic results the PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fapn_zoo.predict.formats.writer import SPLIT, FolderWriter
from fapn_zoo.tasks.coco import CocoFile
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec


class CocoFolder(FolderWriter):
    """`annotations_train.json`, or `panoptic_train.json` with its folder; pictures in `images/train`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._file: CocoFile | None = None

    def _table(self, what: str) -> CocoFile:
        if self._file is None:
            inputs = [self.target(index) for index in range(len(self._inputs))]
            self._file = CocoFile(self.folder / f"{what}_{SPLIT}.json", inputs, self._stems, self.folder)
        return self._file

    def _add(self, index: int, picture: Path, result: Result) -> None:
        self._table("panoptic" if result.task == "panoptic" else "annotations").add(index, result)

    def _end(self, model: str, data: DataSpec) -> str:
        self._table("annotations").write(model, data)
        return ""
