"""Predictions as data sets for labelling tools and other trainers, by the name of the format."""

from __future__ import annotations

from collections.abc import Mapping

from fapn_zoo.predict.formats.imagefolder import ImageFolder
from fapn_zoo.predict.formats.objects import CocoFolder, LabelMeFiles, VocFiles, YoloFiles
from fapn_zoo.predict.formats.writer import FolderWriter

FORMATS: Mapping[str, type[FolderWriter]] = {
    "coco": CocoFolder,
    "imagefolder": ImageFolder,
    "labelme": LabelMeFiles,
    "voc": VocFiles,
    "yolo": YoloFiles,
}


def format_for(name: str) -> type[FolderWriter]:
    """The writer of a format; ValueError, which names those there are."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]
