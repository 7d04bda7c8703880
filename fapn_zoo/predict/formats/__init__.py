"""Predictions as data sets for labelling tools and other trainers, by the name of the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fapn_zoo.data.labels import MAX_ID, LabelMap
from fapn_zoo.predict.formats.imagefolder import ImageFolder, MaskFiles
from fapn_zoo.predict.formats.objects import CocoFolder, LabelMeFiles, VocFiles, YoloFiles
from fapn_zoo.predict.formats.writer import FolderWriter

FORMATS: Mapping[str, type[FolderWriter]] = {
    "coco": CocoFolder,
    "imagefolder": ImageFolder,
    "labelme": LabelMeFiles,
    "masks": MaskFiles,
    "voc": VocFiles,
    "yolo": YoloFiles,
}


def formats_for(names: Sequence[str], task: str, classes: Sequence[str]) -> dict[str, type[FolderWriter]]:
    """The writers of these formats, for results of a task with classes of these names.

    ValueError for a format that is unknown or cannot hold the task's results, with those that can, and for equal names.
    """
    found = {}
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r}; expected one of {', '.join(FORMATS)}")
        found[name] = kind = FORMATS[name]
        if task not in kind.tasks:
            able = ", ".join(other for other, kind in FORMATS.items() if task in kind.tasks)
            held = " and ".join(kind.tasks)
            raise ValueError(f"format {name!r} holds {held} results; those of task {task!r} go into {able}")
    if found:
        LabelMap(tuple(classes), ignore_index=MAX_ID)  # some formats have nothing but the names
    return found
