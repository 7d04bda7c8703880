"""Where data sets come from: folders, generated scenes, several of them joined, and `open_dataset`, the door to all."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from fapn_zoo.data import scenes
from fapn_zoo.data.classes import class_difference
from fapn_zoo.data.images import EXTENSIONS as IMAGE_SUFFIXES
from fapn_zoo.data.images import with_channels
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.panoptic_sources import CocoPanoptic, is_panoptic
from fapn_zoo.data.reading import check_ids, check_sizes, label_size, read_image, read_labels
from fapn_zoo.data.reading_rules import Reading, joined_reading, read_rules, reading_of
from fapn_zoo.data.sample import LABELS, SEGMENTS, DataError, Dataset, Objects, Sample

LABEL_SUFFIX = ".png"
SCENE_SIDES = (32, 4096)
SCENE_GRAMMAR = (
    "scenes:N or scenes:N@HxW, N >= 1 scenes of height H and width W, "
    f"each {SCENE_SIDES[0]}..{SCENE_SIDES[1]} pixels, such as scenes:40 or scenes:40@180x240"
)
_SCENE_SPLITS = {"train": 0, "val": 1, "test": 2}
_SCENES_PER_SPLIT = 100_000_000  # seeds of different splits never meet


def find_splits(root: Path) -> list[str]:
    """Names of the folders under `root` that hold `images` or `labels`: train, val, test, then the others."""
    names = [p.name for p in root.iterdir() if (p / "images").is_dir() or (p / "labels").is_dir()]
    usual = ["train", "val", "test"]
    return sorted(names, key=lambda n: (usual.index(n) if n in usual else len(usual), n))


def list_files(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """{stem: files} of one folder, sorted, hidden files left out."""
    found: dict[str, list[Path]] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
                found.setdefault(path.stem, []).append(path)
    return found


def lossy_labels(folder: Path) -> list[str]:
    """Names of picture files in a label folder that are no PNG, and therefore not taken for labels."""
    others = [suffix for suffix in IMAGE_SUFFIXES if suffix != LABEL_SUFFIX]
    return [path.name for files in list_files(folder, others).values() for path in files]


def read_label_map(root: Path, num_classes: int | None = None) -> LabelMap:
    """The label map of a folder: its `classes.json`, or plain names where only `num_classes` is known."""
    file = root / "classes.json"
    if not file.is_file():
        if num_classes is None:
            form = '{"names": [...], "palette": [[r, g, b], ...], "ignore_index": 255}'
            raise DataError(f"how many classes has {root}? Either write {file} ({form}) or give num_classes")
        return LabelMap.default(num_classes)
    try:
        labels = LabelMap.from_json(file)
    except ValueError as error:
        raise DataError(str(error)) from error
    if num_classes is not None and num_classes != labels.num_classes:
        raise DataError(f"num_classes is {num_classes}, but {file} names {labels.num_classes} classes")
    return labels


class FolderDataset:
    """`{root}/{split}/images/NAME.jpg` (or any of `IMAGE_SUFFIXES`) with `{root}/{split}/labels/NAME.png`.

    The value of a label pixel is the class id (8-bit grey or palette, 16-bit grey); `{root}/classes.json` has the
    names, or `num_classes` says how many there are. `reading` says how pictures are read; what it leaves open,
    `classes.json` fills with its `white_level` and `exif`.

    Raises:
        FileNotFoundError: no such root or split; the message names the splits there are.
        DataError: no pictures, pictures without labels or the other way round, unknown classes.
    """

    holds = LABELS

    def __init__(
        self, root: str | Path, split: str, num_classes: int | None = None, reading: Reading | None = None
    ) -> None:
        self.root, self.split = Path(root).expanduser(), split
        self.name = self.root.resolve().name
        if not self.root.is_dir():
            raise FileNotFoundError(f"no data folder {self.root}")
        splits = find_splits(self.root)
        if split not in splits:
            found = f"it has {', '.join(splits)}" if splits else "expected {train,val,test}/{images,labels}/ in it"
            raise FileNotFoundError(f"no split {split!r} in {self.root}; {found}")
        self.labels = read_label_map(self.root, num_classes)
        self.reading = read_rules(self.root, reading)
        folder = self.root / split
        images = list_files(folder / "images", IMAGE_SUFFIXES)
        labels = list_files(folder / "labels", (LABEL_SUFFIX,))
        if not images:
            raise DataError(f"no pictures in {folder / 'images'} (looked for {', '.join(IMAGE_SUFFIXES)})")
        twice = [" and ".join(p.name for p in files) for files in images.values() if len(files) > 1]
        problems = {
            "label files that are no PNG": lossy_labels(folder / "labels"),
            "pictures without label": [f[0].name for s, f in images.items() if s not in labels],
            "labels without picture": [f[0].name for s, f in labels.items() if s not in images],
            "pictures with the same name": twice,
        }
        shown = {what: ", ".join(sorted(names)[:5]) + ", ..." * (len(names) > 5) for what, names in problems.items()}
        found = [f"{len(names)} {what}: {shown[what]}" for what, names in problems.items() if names]
        if found:
            raise DataError(f"{folder}: {'; '.join(found)}")
        self._pairs = [(images[stem][0], labels[stem][0]) for stem in sorted(images)]

    def __len__(self) -> int:
        return len(self._pairs)

    def files(self, index: int) -> tuple[Path, Path]:
        """The picture file and the label file of sample `index`."""
        return self._pairs[index]

    def size(self, index: int) -> tuple[int, int]:
        return label_size(self._pairs[index][1], self.reading)  # of the label: a header is read faster than a JPEG's

    def sample(self, index: int) -> Sample:
        image_path, label_path = self._pairs[index]
        image, labels = read_image(image_path, self.reading), read_labels(label_path, self.reading)
        check_sizes(image.shape[1:], labels.shape, image_path, label_path, self.reading)
        check_ids(labels, self.labels, f"{label_path}: ")
        return Sample(image, image_path.stem, labels)


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
            elif not found and "segments" in self.holds and ours.things != part.labels.things:
                found = "their things are other classes"
            if found:
                raise DataError(f"cannot join {first} and {part.name}: {found}")

    def _where(self, index: int) -> tuple[Dataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part], index - int(self._ends[part] - len(self.parts[part]))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def size(self, index: int) -> tuple[int, int]:
        part, i = self._where(index)
        return part.size(i)

    def files(self, index: int) -> tuple[Path, ...]:
        part, i = self._where(index)
        return part.files(i)

    def sample(self, index: int) -> Sample:
        part, i = self._where(index)
        return part.sample(i)


def open_dataset(
    source: str | Path,
    split: str,
    needs: Collection[str] = ("labels",),
    num_classes: int | None = None,
    reading: Reading | None = None,
) -> Dataset:
    """Opens a data set by its name.

    Args:
        source: a folder (see `FolderDataset`, and `CocoPanoptic` for COCO's panoptic format), `scenes:N` or
            `scenes:N@HxW` (see `ScenesDataset`), or several of them joined with commas; then their class names must
            be equal.
        split: "train", "val", "test", or another that the folder has; "train+val" joins two.
        needs: what samples must hold: "labels", "segments".
        num_classes: number of classes; needed for a folder without `classes.json`, else it must agree.
        reading: how pictures are read; what it leaves open, each folder's `classes.json` says.

    Raises:
        FileNotFoundError: no such folder or split. DataError: everything else; both name the thing.
    """
    text = str(source)
    names = [text] if Path(text).is_dir() else [p.strip() for p in text.split(",")]  # a folder may hold a comma
    if not all(names):
        raise DataError(f"empty name in data source {text!r}; write a folder, {SCENE_GRAMMAR}, or several with commas")
    parts = [(name, part) for name in names for part in split.split("+")]
    opened = [_kind(name, needs)(name, part, num_classes, reading) for name, part in parts]
    return opened[0] if len(opened) == 1 else JoinedDataset(opened)


def _kind(name: str, needs: Collection[str]) -> type[Dataset]:
    # A near miss such as "scenes" or "scene:40" is told the grammar, unless there is a folder of that name.
    if name.startswith("scenes:") or (re.match(r"scenes?\b", name) and not Path(name).exists()):
        return ScenesDataset
    return CocoPanoptic if "segments" in needs or is_panoptic(Path(name)) else FolderDataset
