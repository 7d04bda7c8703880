"""Look at every file of a folder in COCO's panoptic format."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fapn_zoo.data.check_pictures import PictureFacts
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.panoptic_sources import CocoPanoptic, panoptic_splits
from fapn_zoo.data.sample import DataError
from fapn_zoo.data.supervision import SplitCounts
from fapn_zoo.runtime.progress import bar

Add = Callable[..., None]  # kind, path, detail, error=True


def check_segments(
    root: Path, add: Add, progress: bool, pictures: PictureFacts
) -> tuple[LabelMap | None, dict[str, SplitCounts]]:
    """Checks every split: its table, its files, and what there is of segments; `pictures` takes down what they tell.

    Returns:
        The classes (of the first split that can be opened) and the pixels of each split by class.
    """
    labels, counts = None, {}
    for split in panoptic_splits(root):
        try:
            data = CocoPanoptic(root, split, reading=pictures.reading)
        except (DataError, FileNotFoundError) as error:
            add("split that cannot be opened", root, error)
            continue
        if labels is not None and (data.labels.names, data.labels.things) != (labels.names, labels.things):
            add("other categories", data.file, f"{data.file} has other categories than the splits before it")
            continue
        labels, shown = data.labels, split or data.file.stem
        for text in data.unused:
            add("files that are not used", data.file, text, error=False)
        counts[shown] = _check_split(data, shown, add, progress, pictures)
    return labels, counts


def _check_split(data: CocoPanoptic, split: str, add: Add, progress: bool, pictures: PictureFacts) -> SplitCounts:
    table = data.labels
    counts = SplitCounts.of(len(data), table.num_classes)
    single, all_of_them = np.zeros((2, table.num_classes + 1), np.int64)
    for index in bar(progress, iterable=range(len(data)), desc="check", unit="image"):
        single += data.listed(index, crowds=False)
        all_of_them += data.listed(index, crowds=True)
        image, segments, _ = data.files(index)
        pictures.pair(image, segments)
        deep = True
        try:
            sample = data.sample(index)
            deep = sample.image.is_floating_point()
            counts.add_labels(sample.labels, table)
        except DataError as error:
            add("bad file", segments, error)
        if deep:
            with contextlib.suppress(DataError):  # said already
                pictures.read(image)
    if not single.any():
        what = "all segments are crowds" if all_of_them.any() else "no segments at all"
        add("nothing to learn of objects", data.file, f"{split}: {what}")
    crowds = [table.names[i] for i in table.things if all_of_them[i] and not single[i]]
    if crowds and single.any():
        add("things that occur as crowds only", data.file, f"{split}: {', '.join(crowds)}", error=False)
    return counts
