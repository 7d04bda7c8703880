"""Predictions as data sets for labelling tools and other trainers, by the name of the format."""

from __future__ import annotations

from collections.abc import Mapping

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


def format_for(name: str, task: str) -> type[FolderWriter]:
    """The writer of a format; ValueError, which names those there are, also where it has no place for such results."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; expected one of {', '.join(FORMATS)}")
    if task not in FORMATS[name].tasks:
        fitting = ", ".join(one for one, kind in FORMATS.items() if task in kind.tasks)
        raise ValueError(f"format {name!r} has no place for {task} results; those of {task} are {fitting}")
    return FORMATS[name]
