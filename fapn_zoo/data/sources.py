"""Where data sets come from: folders, generated scenes, several of them joined, and `open_dataset`, the door to all."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from fapn_zoo.data import scenes
from fapn_zoo.data.classes import class_difference
from fapn_zoo.data.coco_instances import CocoInstances
from fapn_zoo.data.formats.labelme import LabelMeFolder
from fapn_zoo.data.formats.voc import VocFolder
from fapn_zoo.data.formats.yolo import YoloFolder
from fapn_zoo.data.images import EXTENSIONS, with_channels
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import ERRORS, missing, printable, told
from fapn_zoo.data.pairs import Pairs, find_splits, has_labels, instead, list_pairs, near, other_places
from fapn_zoo.data.panoptic_sources import CocoPanoptic, is_panoptic
from fapn_zoo.data.reading import check_ids, check_sizes, read_image, read_labels, stored_size
from fapn_zoo.data.reading_rules import Reading, joined_reading, read_rules, reading_of
from fapn_zoo.data.sample import LABELS, OBJECTS, SEGMENTS, DataError, Dataset, Objects, Sample
from fapn_zoo.runtime.processes import processes

logger = logging.getLogger(__name__)

SCENE_SIDES = (32, 4096)
SCENE_GRAMMAR = (
    "scenes:N or scenes:N@HxW, N >= 1 scenes of height H and width W, "
    f"each {SCENE_SIDES[0]}..{SCENE_SIDES[1]} pixels, such as scenes:40 or scenes:40@180x240"
)
_SCENE_SPLITS = {"train": 0, "val": 1, "test": 2}
_SCENES_PER_SPLIT = 100_000_000  # seeds of different splits never meet


def read_label_map(root: Path, num_classes: int | None = None, table: LabelMap | None = None) -> LabelMap:
    """The label map of a folder: its `classes.json`, else plain names for `num_classes`, else `table`, said once."""
    file = root / "classes.json"
    if not file.is_file():
        if os.path.lexists(file) or (num_classes is None and table is None):
            raise DataError(_classes_wanted(root, file))
        if num_classes is not None:
            return LabelMap.default(num_classes)
        _warn(f"{root} has no classes.json: its classes are taken to be the {table.num_classes} of the model")
        return table
    try:
        labels = LabelMap.from_json(file)
    except ValueError as error:
        raise DataError(str(error)) from error
    if num_classes is not None and num_classes != labels.num_classes:
        raise DataError(f"num_classes is {num_classes}, but {file} names {labels.num_classes} classes")
    return labels


def _warn(text: str) -> None:
    if processes().main:  # one voice is enough
        logger.warning("%s", text)


def _classes_wanted(root: Path, file: Path) -> str:
    form = '{"names": [...], "palette": [[r, g, b], ...], "ignore_index": 255}'
    fix = f"Either write {file} ({form}) or give num_classes (train: num_classes=N, check-data: --num-classes N)"
    if os.path.lexists(file):
        fix = f"{missing(file)}. {fix}"
    else:
        names = {path.name.lower(): path.name for path in root.iterdir()}
        close = difflib.get_close_matches(file.name, names, 1, 0.7)
        fix += f"; is {names[close[0]]} meant to be it?" if close else ""
    return f"how many classes has {root}? {fix}"


class FolderDataset:
    """`{root}/{split}/images/NAME.jpg` (or any of `data.images.EXTENSIONS`) with `{root}/{split}/labels/NAME.png`.

    NAME may lie in subfolders, the same ones on both sides, and is then "aachen/x". What lies there and is no pair is
    refused where one was meant, and else named in `unused`.

    The value of a label pixel is the class id (8-bit grey or palette, 16-bit grey); `{root}/classes.json` has the
    names, or `num_classes` says how many there are, or they are those of `table`. `reading` says how pictures are
    read; what it leaves open, `classes.json` fills with its `white_level` and `exif`.

    Raises:
        FileNotFoundError: no such root or split; the message names the splits there are.
        DataError: no pictures, pictures without labels or the other way round, unknown classes.
    """

    holds = LABELS

    def __init__(
        self,
        root: str | Path,
        split: str,
        num_classes: int | None = None,
        reading: Reading | None = None,
        table: LabelMap | None = None,
    ) -> None:
        self.root, self.split = Path(root).expanduser(), split
        self.name = os.path.basename(os.path.realpath(self.root))
        if not self.root.is_dir():
            raise FileNotFoundError(f"no data folder {self.root}")
        splits = find_splits(self.root)
        if split not in splits:
            found = f"it has {', '.join(splits)}"
            if not splits:
                found = f"expected {{train,val,test}}/{{images,labels}}/ in it{other_places(self.root)}"
            if (self.root / split).is_symlink():
                found = f"{missing(self.root / split)}; {found}"
            raise FileNotFoundError(f"no split {split!r} in {self.root}; {found}")
        self.labels = read_label_map(self.root, num_classes, table)
        self.reading = read_rules(self.root, reading)
        folder = self.root / split
        found = list_pairs(folder)
        if problems := _problems(folder, found):
            raise DataError(f"{folder}: {'; '.join(problems)}")
        if not found.images:
            raise DataError(f"no pictures in {folder / 'images'} (looked for {', '.join(EXTENSIONS)})")
        self.unused = (f"{folder}: not used: {told(found.unused, folder)}",) if found.unused else ()
        self._names = sorted(found.images)
        self._pairs = [(found.images[name][0], found.labels[name][0]) for name in self._names]

    def __len__(self) -> int:
        return len(self._pairs)

    def files(self, index: int) -> tuple[Path, Path]:
        """The picture file and the label file of sample `index`."""
        return self._pairs[index]

    def size(self, index: int) -> tuple[int, int]:
        return stored_size(self._pairs[index][1], self.reading)  # of the label: a header is read faster than a JPEG's

    def sample(self, index: int) -> Sample:
        image_path, label_path = self._pairs[index]
        image, labels = read_image(image_path, self.reading), read_labels(label_path, self.reading)
        check_sizes(image.shape[1:], labels.shape, image_path, label_path, self.reading)
        check_ids(labels, self.labels, f"{label_path}: ")
        return Sample(image, printable(self._names[index]), labels)


def _problems(folder: Path, found: Pairs) -> list[str]:
    """What makes a split unusable: how many, of what, and the first few by name."""
    images, labels = found.images, found.labels
    orphans = {"images": [n for n in images if n not in labels], "labels": [n for n in labels if n not in images]}
    lists = {
        "label files that are no PNG": found.lossy,
        "pictures without label": [images[name][0] for name in orphans["images"]],
        "labels without picture": [labels[name][0] for name in orphans["labels"]],
    }
    problems = [told([one for one in found.unused if one.kind == kind], folder) for kind in ERRORS]
    if not images and not any(problems):
        return []  # said in other words
    for what, paths in lists.items():
        below = sorted(printable(path.relative_to(folder).as_posix().partition("/")[2]) for path in paths)
        problems.append(f"{len(below)} {what}: {', '.join(below[:5])}{', ...' * (len(below) > 5)}" if below else "")
    twice = [" and ".join(path.name for path in files) for files in images.values() if len(files) > 1]
    problems.append(f"{len(twice)} pictures with the same name: {', '.join(twice[:5])}" if twice else "")
    problems = [text for text in problems if text]
    if problems:
        problems[-1] += _hint(folder, found, orphans)
    return problems


def _hint(folder: Path, found: Pairs, orphans: dict[str, list[str]]) -> str:
    """What probably made a split lose its first pair; or ""."""
    if not (folder / "labels").is_dir() and not any(one.path == folder / "labels" for one in found.unused):
        return f"; there is no folder labels{other_places(folder, 1)}"
    if orphans["images"]:
        return near(orphans["images"][0], orphans["labels"])
    return instead(orphans["labels"][0], folder, found.unused) if orphans["labels"] else ""


class ScenesDataset:
    """Generated street scenes, made when they are asked for: `scenes:N` (360x480) or `scenes:N@HxW`.

    Scene i of a split is always the same; train, val and test never share a scene. Cars, pedestrians and bicyclists
    are things, never crowds.
    """

    holds = SEGMENTS

    def __init__(self, spec: str, split: str, num_classes: int | None = None, reading: Reading | None = None) -> None:
        self.reading = (reading or Reading()).plain()
        spec = spec.strip()
        match = re.fullmatch(r"scenes:(\d{1,9})(?:@(\d{1,5})x(\d{1,5}))?", spec)
        count = int(match[1]) if match else 0
        low, high = SCENE_SIDES
        self._size = tuple(int(v) for v in match.groups()[1:]) if match and match[2] else (360, 480)
        if not 1 <= count <= _SCENES_PER_SPLIT or not all(low <= v <= high for v in self._size):
            raise DataError(f"cannot understand {spec!r}; write {SCENE_GRAMMAR}")
        if split not in _SCENE_SPLITS:
            raise FileNotFoundError(f"no split {split!r} in {spec}; it has {', '.join(_SCENE_SPLITS)}")
        self.name, self.split, self._count = spec, split, count
        self.labels = LabelMap(tuple(scenes.CLASSES), scenes.PALETTE, 255, tuple(scenes.THINGS))
        if num_classes is not None and num_classes != self.labels.num_classes:
            raise DataError(f"num_classes is {num_classes}, but {spec} has {self.labels.num_classes} classes")

    def __len__(self) -> int:
        return self._count

    def seed(self, index: int) -> int:
        """The seed that makes scene `index` of this split."""
        if not 0 <= index < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        return _SCENE_SPLITS[self.split] * _SCENES_PER_SPLIT + index

    def size(self, index: int) -> tuple[int, int]:
        return self._size

    def files(self, index: int) -> tuple[Path, ...]:
        return ()

    def sample(self, index: int) -> Sample:
        seed = self.seed(index)
        scene = scenes.generate_scene(seed, self.size(index))
        classes = np.array([segment["category_id"] for segment in scene.segments], np.int64)
        objects = Objects(scene.panoptic, classes, np.zeros(len(classes), bool))
        image = torch.from_numpy(scene.image).permute(2, 0, 1)
        image = with_channels(image, self.reading.in_chans, self.name)
        return Sample(image, f"scene_{seed:09d}", scene.semantic, objects)


class JoinedDataset:
    """Several data sets one after the other; their class names must be the same, in the same order."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = tuple(parts)
        self.labels = parts[0].labels
        self.reading = joined_reading([reading_of(part) for part in parts])
        self.holds = frozenset.intersection(*(part.holds for part in parts))
        self.name = "+".join(p.name for p in parts)
        self._ends = np.cumsum([len(p) for p in parts])
        first, ours = parts[0].name, self.labels
        for part in parts[1:]:
            found = class_difference(first, ours.names, part.name, part.labels.names)
            if ours.ignore_index != part.labels.ignore_index:
                found = f"ignore_index {ours.ignore_index} against {part.labels.ignore_index}"
            elif not found and "boxes" in self.holds and ours.things != part.labels.things:
                found = "their things are other classes"
            if found:
                raise DataError(f"cannot join {first} and {part.name}: {found}")

    def where(self, index: int) -> tuple[Dataset, int]:
        """The part that sample `index` is of, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part], index - int(self._ends[part] - len(self.parts[part]))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def size(self, index: int) -> tuple[int, int]:
        part, i = self.where(index)
        return part.size(i)

    def files(self, index: int) -> tuple[Path, ...]:
        part, i = self.where(index)
        return part.files(i)

    def sample(self, index: int) -> Sample:
        part, i = self.where(index)
        return part.sample(i)


def open_dataset(
    source: str | Path,
    split: str,
    needs: Collection[str] = ("labels",),
    num_classes: int | None = None,
    reading: Reading | None = None,
    table: LabelMap | None = None,
) -> Dataset:
    """Opens a data set by its name.

    Args:
        source: a folder (see `FolderDataset`; `CocoPanoptic` and `CocoInstances` for COCO's formats), `scenes:N` or
            `scenes:N@HxW` (see `ScenesDataset`), or several of them joined with commas; then their class names must
            be equal.
        split: "train", "val", "test", or another that the folder has; "train+val" joins two.
        needs: what samples are for: "labels", "segments", "masks", "boxes". It chooses in a folder that can be read in
            two ways; what is opened may hold less (`check_holds`).
        num_classes: number of classes; for a folder without `classes.json`, else it must agree.
        reading: how pictures are read; what it leaves open, each folder's `classes.json` says.
        table: the classes of a folder that says nothing of them, where `num_classes` is not known either.

    Raises:
        FileNotFoundError: no such folder or split. DataError: everything else; both name the thing.
    """
    text = str(source)
    names = [text] if Path(text).is_dir() else [p.strip() for p in text.split(",")]  # a folder may hold a comma
    if not all(names):
        raise DataError(f"empty name in data source {text!r}; write a folder, {SCENE_GRAMMAR}, or several with commas")
    opened = [_open(name, part, needs, num_classes, reading, table) for name in names for part in split.split("+")]
    return opened[0] if len(opened) == 1 else JoinedDataset(opened)


def _open(
    name: str,
    split: str,
    needs: Collection[str],
    num_classes: int | None,
    reading: Reading | None,
    table: LabelMap | None,
) -> Dataset:
    kind = _kind(name, needs)
    options = {"table": table} if kind is FolderDataset else {}
    opened = kind(name, split, num_classes, reading, **options)
    for text in getattr(opened, "unused", ()):
        _warn(text)
    return opened


def _kind(name: str, needs: Collection[str]) -> type[Dataset]:
    # A near miss such as "scenes" or "scene:40" is told the grammar, unless there is a folder of that name.
    if name.startswith("scenes:") or (re.match(r"scenes?\b", name) and not Path(name).exists()):
        return ScenesDataset
    root, needed = Path(name).expanduser(), {*needs}
    listed = [CocoInstances, YoloFolder, VocFolder, LabelMeFolder]
    if "segments" in needed:
        wanted = [CocoPanoptic, *listed]
    else:
        wanted = [*listed, CocoPanoptic] if OBJECTS & needed else [CocoPanoptic, FolderDataset, *listed]
    usual = wanted[0] if OBJECTS & needed else FolderDataset  # its error says what is looked for
    return next((kind for kind in wanted if _is_of(kind, root)), usual)


def _is_of(kind: type[Dataset], root: Path) -> bool:
    if kind is CocoPanoptic:
        return is_panoptic(root)
    return has_labels(root) if kind is FolderDataset else bool(kind.splits(root))
