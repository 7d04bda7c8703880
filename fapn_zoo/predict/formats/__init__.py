"""Predictions as data sets for labelling tools and other trainers, by the name of the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fapn_zoo.data.labels import MAX_ID, LabelMap
from fapn_zoo.predict.formats.imagefolder import ImageFolder, LabelFolder
from fapn_zoo.predict.formats.objects import CocoFolder, LabelMeFiles, VocFiles, YoloFiles
from fapn_zoo.predict.formats.writer import FolderWriter

FORMATS: Mapping[str, type[FolderWriter]] = {
    "coco": CocoFolder,
    "folder": LabelFolder,
    "imagefolder": ImageFolder,
    "labelme": LabelMeFiles,
    "voc": VocFiles,
    "yolo": YoloFiles,
}


def writers_for(
    names: Sequence[str], task: str, classes: Sequence[str], out_dir: Path, *arguments: Any
) -> list[FolderWriter]:
    """A writer of each format into its folder in `out_dir`, for results of a task; `arguments` are all its others.

    ValueError for a format that is unknown or has no place for the task's results, with those that have, for classes of
    equal names, and as `FolderWriter`.
    """
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r}; expected one of {', '.join(FORMATS)}")
        if task not in FORMATS[name].tasks:
            fitting = ", ".join(one for one, kind in FORMATS.items() if task in kind.tasks)
            raise ValueError(f"format {name!r} has no place for {task} results; those of {task} are {fitting}")
    if names:
        LabelMap(tuple(classes), ignore_index=MAX_ID)  # some formats have nothing but the names
    return [FORMATS[name](out_dir / name, *arguments) for name in dict.fromkeys(names)]
