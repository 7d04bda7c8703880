"""Look at every entry and every picture of a folder with annotated objects."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fapn_zoo.data.annotated import AnnotatedPictures
from fapn_zoo.data.check_pictures import PictureFacts
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import printable
from fapn_zoo.data.reading import UnreadableFile
from fapn_zoo.data.sample import DataError
from fapn_zoo.data.supervision import SplitCounts
from fapn_zoo.runtime.progress import bar

Add = Callable[..., None]  # kind, path, detail, error=True
SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}  # pixels up to which an object counts as such
MOST = 100  # detections of one class in one image that average precision reads


def check_objects(
    kind: type[AnnotatedPictures],
    root: Path,
    add: Add,
    progress: bool,
    pictures: PictureFacts,
    seen: Callable[[str, Path], None],
) -> tuple[LabelMap | None, dict[str, SplitCounts], list[str]]:
    """Checks every split: its json, its pictures and its masks; `pictures` takes down what they tell.

    Args:
        seen: is told every picture that can be read, with its split.

    Returns:
        The classes (of the first split that can be opened), the objects of each split by class, and a sentence on each
        split: its pictures, and the sizes of its objects.
    """
    labels, counts, facts = None, {}, []
    for split in kind.splits(root):
        try:
            data = kind(root, split, reading=pictures.reading, strict=False)
        except (DataError, FileNotFoundError) as error:
            add("split that cannot be opened", root, error)
            continue
        for fault in data.faults:
            add(fault.kind, fault.file or data.file, fault.text, error=fault.error)
        for text in data.remarks:
            add("what is used", data.file, text, error=False)
        ours = (data.labels.names, data.labels.category_ids)
        if labels is not None and ours != (labels.names, labels.category_ids):
            add("other categories", data.file, f"{data.file} has other categories than the splits before it")
            continue
        labels, shown = data.labels, split or data.file.stem
        counts[shown] = SplitCounts.of(len(data), labels.num_classes, "object")
        facts.append(_check_split(data, shown, counts[shown], add, progress, pictures, seen))
    return labels, counts, facts


def _check_split(
    data: AnnotatedPictures,
    split: str,
    counts: SplitCounts,
    add: Add,
    progress: bool,
    pictures: PictureFacts,
    seen: Callable[[str, Path], None],
) -> str:
    sizes, empty, crowds = dict.fromkeys(SIZES, 0), 0, 0
    for index in bar(progress, iterable=range(len(data)), desc="check", unit="image"):
        path = data.files(index)[0]
        row = data.listed(index)
        counts.add(row)
        empty += not data.pictures[index].objects
        _check_picture(data, index, add, pictures, seen, split)
        if row.max() > MOST:
            text = f"{path} has {row.max()} objects of one class; AP reads {MOST} detections of a class in an image"
            add("very many objects", path, text, error=False)
        if areas := _check_masks(data, index, add):
            found = np.array(areas)
            crowds += len(data.pictures[index].objects) - len(found)
            places = np.searchsorted([*SIZES.values()], found, side="left")
            for name, number in zip(SIZES, np.bincount(places, minlength=len(SIZES)), strict=True):
                sizes[name] += int(number)
        else:
            crowds += len(data.pictures[index].objects)
    shown = ", ".join(f"{number:,} {name}" for name, number in sizes.items())
    objects = f"{sum(sizes.values()):,} objects ({shown}), {crowds:,} crowds"
    return f"{split}: {len(data):,} pictures, {empty:,} without objects; {objects}; {' and '.join(sorted(data.holds))}"


def _check_picture(
    data: AnnotatedPictures, index: int, add: Add, pictures: PictureFacts, seen: Callable[[str, Path], None], split: str
) -> None:
    path, *files = data.files(index)
    if not path.is_file():
        return  # said already
    for file in files:
        pictures.pair(path, file, data.size(index))
    deep = True
    try:
        image = data.image(index)
        deep = image.is_floating_point()
        seen(split, path)
    except UnreadableFile as error:
        add("unreadable file", path, error)
    except DataError as error:
        add("size mismatch", path, error)
    if deep:
        with contextlib.suppress(DataError):  # said already
            pictures.read(path)


def _check_masks(data: AnnotatedPictures, index: int, add: Add) -> list[float]:
    """The areas of all objects that are no crowds, as they are scored."""
    areas, picture = [], data.picture(index)
    for one in picture.objects:
        where, own = f"{picture.source}: {one.name} of {printable(picture.file_name)}", 0.0
        if one.shape is not None:
            try:
                own = float(np.count_nonzero(data.crop(picture, one).pixels))
            except DataError as error:
                add("bad mask", picture.source, error)
                continue
            if not own:
                add("masks without a pixel", picture.source, f"{where}: it is not trained", error=False)
        elif one.box is not None:
            own = (one.box[2] - one.box[0]) * (one.box[3] - one.box[1])
        if one.area == 0 < own:
            add("areas of 0", picture.source, f"{where}: it is scored as a small object", error=False)
        if not one.crowd:
            areas.append(own if one.area is None else one.area)
    return areas
