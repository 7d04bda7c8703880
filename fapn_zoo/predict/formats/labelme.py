"""Predictions as LabelMe's json files, to be corrected by hand: polygons of masks, or rectangles."""

from __future__ import annotations

from pathlib import Path

from fapn_zoo.predict.formats.writer import SPLIT, FolderWriter, found
from fapn_zoo.runtime.files import write_json
from fapn_zoo.tasks.result import Result


class LabelMeFiles(FolderWriter):
    """`train/x.json` beside `train/x.jpg`; a shape's description is its score."""

    pictures = SPLIT

    def _add(self, index: int, picture: Path, result: Result) -> None:
        height, width = result.image.shape[:2]
        shapes = []
        for segment, (x1, y1, x2, y2), way in found(result):
            points, kind = ([[x1, y1], [x2, y2]], "rectangle") if way is None else (way.tolist(), "polygon")
            about = {"group_id": None, "description": f"score {segment['score']}", "flags": {}}
            shapes.append({"label": segment["name"], "points": points, "shape_type": kind} | about)
        table = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": picture.name, "imageData": None}
        write_json(picture.with_suffix(".json"), table | {"imageHeight": height, "imageWidth": width})
