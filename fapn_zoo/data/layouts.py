"""Which kind of data set a name stands for: one row for each layout of folders, one prefix for each other source."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from fapn_zoo.data.coco_instances import CocoInstances
from fapn_zoo.data.folders import FolderDataset
from fapn_zoo.data.formats.hub import HubDataset
from fapn_zoo.data.formats.labelme import LabelMeFolder
from fapn_zoo.data.formats.masks import MaskPairs, has_masks
from fapn_zoo.data.formats.official import OfficialMasks, which
from fapn_zoo.data.formats.voc import VocFolder
from fapn_zoo.data.formats.yolo import YoloFolder
from fapn_zoo.data.generated import ScenesDataset
from fapn_zoo.data.pairs import has_labels
from fapn_zoo.data.panoptic_sources import CocoPanoptic, is_panoptic
from fapn_zoo.data.sample import LABELS, MASKS, OBJECTS, SEGMENTS, Dataset


class Layout(NamedTuple):
    """One layout of a data folder.

    Attributes:
        name: also a prefix, `name:FOLDER`, that opens a folder so whatever else it looks like.
        found: true of a path that is a folder of this layout; it opens few files and none of the samples.
        kind: the data set, made of (folder, split, num_classes, reading); where it has `takes_table`, also of `table`.
        holds: what its samples have at most.
    """

    name: str
    found: Callable[[Path], object]
    kind: type[Dataset]
    holds: frozenset[str]


# In order of preference among those that hold what is needed.
LAYOUTS: tuple[Layout, ...] = (
    Layout("coco", CocoInstances.splits, CocoInstances, MASKS),
    Layout("yolo", YoloFolder.splits, YoloFolder, MASKS),
    Layout("voc", VocFolder.splits, VocFolder, MASKS),
    Layout("labelme", LabelMeFolder.splits, LabelMeFolder, MASKS),
    Layout("coco-panoptic", is_panoptic, CocoPanoptic, SEGMENTS),
    Layout("official", which, OfficialMasks, LABELS),
    Layout("folder", has_labels, FolderDataset, LABELS),
    Layout("masks", has_masks, MaskPairs, LABELS),
)
# Sources that are no folders, by what their names begin with; they are made of the whole name.
PREFIXES: Mapping[str, Callable[..., Dataset]] = {"scenes": ScenesDataset, "hf": HubDataset}


def choose(name: str, needs: Collection[str]) -> tuple[Callable[..., Dataset], str]:
    """The kind of data set that a name stands for, and what it is opened with.

    Of the layouts that a folder has, the first that holds all that is needed is taken, else the first that holds some
    of its objects. Where there is none, it is the usual one for these needs, whose error says what is looked for.
    """
    prefix, colon, rest = name.partition(":")
    named = {layout.name: layout for layout in LAYOUTS}
    if colon and prefix in PREFIXES:
        return PREFIXES[prefix], name
    if colon and prefix in named and not Path(name).exists():
        return named[prefix].kind, rest
    # A near miss such as "scenes" or "scene:40" is told the grammar, unless there is a folder of that name.
    if re.match(r"scenes?\b", name) and not Path(name).exists():
        return ScenesDataset, name
    root, needed = Path(name).expanduser(), {*needs}
    if "?" in name and not root.exists():
        return MaskPairs, name
    fitting = [layout for layout in LAYOUTS if needed <= layout.holds]
    partly = [layout for layout in LAYOUTS if not OBJECTS & needed or OBJECTS & layout.holds]
    usual = "folder" if not OBJECTS & needed else "coco-panoptic" if "segments" in needed else "coco"
    # One by one: looking through a large folder for what is not needed takes seconds.
    found = next((layout for layout in (*fitting, *partly) if layout.found(root)), named[usual])
    return found.kind, name
