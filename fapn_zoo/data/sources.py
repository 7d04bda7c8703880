"""Data sets of pictures with class ids: folders, generated scenes, and several of them joined."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from fapn_zoo.data.labels import LabelMap

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIX = ".png"
SCENE_SIDES = (32, 4096)
SCENE_GRAMMAR = (
    "scenes:N or scenes:N@HxW, N >= 1 scenes of height H and width W, "
    f"each {SCENE_SIDES[0]}..{SCENE_SIDES[1]} pixels, such as scenes:40 or scenes:40@180x240"
)
SCENE_SIZE = (360, 480)
_SCENE_SPLITS = {"train": 0, "val": 1, "test": 2}
_SCENES_PER_SPLIT = 100_000_000  # seeds of different splits never meet


class DataError(ValueError):
    """A data set, or one file of it, that cannot be used; the message names the file and says why."""


class UnreadableFile(DataError):
    """A picture or label file that cannot be decoded at all."""


@dataclass(frozen=True)
class Sample:
    """One picture: `image` (H, W, 3) uint8 RGB, `labels` (H, W) class ids (uint8 or int32), `name`."""

    image: np.ndarray
    labels: np.ndarray
    name: str


@runtime_checkable
class SegmentationDataset(Protocol):
    """What training and evaluation ask of a data set."""

    name: str
    labels: LabelMap

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Read picture `index` (0..len-1); `DataError` names a file that is bad."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of picture `index`, without decoding it."""
        ...


# ---------------------------------------------------------------- reading files


def read_image(path: Path) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 RGB, read exactly as `predict` reads it (EXIF turn, transparency over white,
    16-bit greys scaled to 0..255, rounded). Raises UnreadableFile, naming the file.
    """
    from fapn_zoo.data.images import ImageError, load_image  # imports torch

    try:
        pixels = load_image(path).pixels.permute(1, 2, 0).numpy()
    except (ImageError, FileNotFoundError) as error:
        raise UnreadableFile(str(error)) from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise _unreadable(path, "image", error) from error
    return np.ascontiguousarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels).clip(0, 255), dtype=np.uint8)


def read_labels(path: Path) -> np.ndarray:
    """A label PNG as (H, W) class ids: the stored pixel values, uint8, or int32 for 16-bit files.

    Raises:
        DataError: naming the file; colour pictures are refused, since a colour is no class id.
    """
    try:
        with Image.open(path) as file:
            file.load()
            mode, kind, values = file.mode, file.format, np.asarray(file)
        depth = _grey_depth(path) if mode == "L" and kind == "PNG" else 8
    except Exception as error:
        raise _unreadable(path, "label file", error) from error
    if kind != "PNG":
        raise DataError(f"{path} is a {kind} file with another ending; only PNG keeps class ids as they are")
    if mode in ("L", "P", "1"):
        # Pillow stretches 2- and 4-bit greys to 0..255 (3 -> 255, 15 -> 255); take the stored values back.
        return values.astype(np.uint8) // (255 // (2**depth - 1))
    if mode.startswith("I"):
        return values.astype(np.int32)
    raise DataError(
        f"{path} holds colours (mode {mode}), not class ids; save labels as 8-bit grey or palette PNG "
        "whose pixel value is the class id"
    )


def _grey_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]  # the bit depth byte of a PNG's IHDR chunk


def _unreadable(path: Path, what: str, error: Exception) -> UnreadableFile:
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "not a picture in a known format"
    else:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UnreadableFile(f"cannot read {what} {path}: {reason}")


def bad_ids(labels: np.ndarray, label_map: LabelMap) -> dict[int, int]:
    """{value: pixel count} of the values that are neither a class id nor the ignore index."""
    counts = np.bincount(labels.ravel()) if labels.min(initial=0) >= 0 else None
    if counts is None:
        values, number = np.unique(labels, return_counts=True)
    else:
        values = np.flatnonzero(counts)
        number = counts[values]
    return {
        int(v): int(n)
        for v, n in zip(values, number, strict=True)
        if not 0 <= v < label_map.num_classes and v != label_map.ignore_index
    }


def describe_bad_ids(found: dict[int, int], label_map: LabelMap) -> str:
    shown = ", ".join(f"{v} ({n} pixels)" for v, n in list(found.items())[:8])
    more = f" and {len(found) - 8} more values" if len(found) > 8 else ""
    allowed = f"allowed: 0..{label_map.num_classes - 1}, ignore_index {label_map.ignore_index}"
    return f"class ids out of range: {shown}{more}; {allowed}"


# ---------------------------------------------------------------- folders


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
            raise DataError(
                f"how many classes has {root}? Either write {file} "
                '({"names": [...], "palette": [[r, g, b], ...], "ignore_index": 255}) or give num_classes'
            )
        return LabelMap.default(num_classes)
    try:
        labels = LabelMap.from_json(file)
    except ValueError as error:
        raise DataError(str(error)) from error
    if num_classes is not None and num_classes != labels.num_classes:
        raise DataError(f"num_classes is {num_classes}, but {file} names {labels.num_classes} classes")
    return labels


class FolderDataset:
    """`{root}/{split}/images/NAME.jpg` (or png, bmp, webp, tif) with `{root}/{split}/labels/NAME.png`.

    The value of a label pixel is the class id (8-bit grey or palette, 16-bit grey); `{root}/classes.json` has the
    names, or `num_classes` says how many there are.

    Raises:
        FileNotFoundError: no such root or split; the message names the splits there are.
        DataError: no pictures, pictures without labels or the other way round, unknown classes.
    """

    def __init__(self, root: str | Path, split: str, num_classes: int | None = None):
        self.root, self.split = Path(root).expanduser(), split
        self.name = self.root.resolve().name
        if not self.root.is_dir():
            raise FileNotFoundError(f"no data folder {self.root}")
        splits = find_splits(self.root)
        if split not in splits:
            found = f"it has {', '.join(splits)}" if splits else "expected {train,val,test}/{images,labels}/ in it"
            raise FileNotFoundError(f"no split {split!r} in {self.root}; {found}")
        self.labels = read_label_map(self.root, num_classes)
        self._pairs = self._find_pairs()

    def _find_pairs(self) -> list[tuple[Path, Path]]:
        folder = self.root / self.split
        images = list_files(folder / "images", IMAGE_SUFFIXES)
        labels = list_files(folder / "labels", (LABEL_SUFFIX,))
        if not images:
            raise DataError(f"no pictures in {folder / 'images'} (looked for {', '.join(IMAGE_SUFFIXES)})")
        twice = [" and ".join(p.name for p in files) for files in images.values() if len(files) > 1]
        problems = [
            _first_few("label files that are no PNG", lossy_labels(folder / "labels")),
            _first_few("pictures without label", [f[0].name for s, f in images.items() if s not in labels]),
            _first_few("labels without picture", [f[0].name for s, f in labels.items() if s not in images]),
            _first_few("pictures with the same name", twice),
        ]
        if any(problems):
            raise DataError(f"{folder}: {'; '.join(p for p in problems if p)}")
        return [(images[stem][0], labels[stem][0]) for stem in sorted(images)]

    def __len__(self) -> int:
        return len(self._pairs)

    def files(self, index: int) -> tuple[Path, Path]:
        """The picture file and the label file of sample `index`."""
        return self._pairs[index]

    def size(self, index: int) -> tuple[int, int]:
        path = self._pairs[index][1]  # of the label: it needs no turning
        try:
            with Image.open(path) as file:
                return file.size[1], file.size[0]
        except Exception as error:
            raise _unreadable(path, "label file", error) from error

    def sample(self, index: int) -> Sample:
        image_path, label_path = self._pairs[index]
        image, labels = read_image(image_path), read_labels(label_path)
        check_sizes(image, labels, image_path, label_path)
        found = bad_ids(labels, self.labels)
        if found:
            raise DataError(f"{label_path}: {describe_bad_ids(found, self.labels)}")
        return Sample(image, labels, image_path.stem)


def check_sizes(image: np.ndarray, labels: np.ndarray, image_path: Path, label_path: Path) -> None:
    """DataError with both files and sizes where picture and labels differ in size."""
    if image.shape[:2] == labels.shape:
        return
    (h, w), (lh, lw) = image.shape[:2], labels.shape
    turned = (w, h) == (lh, lw)
    hint = " (a picture is turned as its EXIF orientation says; its labels must be turned alike)" if turned else ""
    raise DataError(f"sizes differ: {label_path} is {lw}x{lh}, {image_path} is {w}x{h}{hint}")


def _first_few(what: str, names: Sequence[str], few: int = 5) -> str:
    if not names:
        return ""
    return f"{len(names)} {what}: {', '.join(sorted(names)[:few])}{', ...' if len(names) > few else ''}"


# ---------------------------------------------------------------- generated and joined


class ScenesDataset:
    """Generated street scenes, made when they are asked for: `scenes:N` (360x480) or `scenes:N@HxW`.

    Scene i of a split is always the same; train, val and test never share a scene.
    """

    def __init__(self, spec: str, split: str, num_classes: int | None = None):
        from fapn_zoo.data import scenes

        spec = spec.strip()
        match = re.fullmatch(r"scenes:(\d{1,9})(?:@(\d{1,5})x(\d{1,5}))?", spec)
        count = int(match[1]) if match else 0
        low, high = SCENE_SIDES
        self._size = tuple(int(v) for v in match.groups()[1:]) if match and match[2] else SCENE_SIZE
        if not 1 <= count <= _SCENES_PER_SPLIT or not all(low <= v <= high for v in self._size):
            raise DataError(f"cannot understand {spec!r}; write {SCENE_GRAMMAR}")
        if split not in _SCENE_SPLITS:
            raise FileNotFoundError(f"no split {split!r} in {spec}; it has {', '.join(_SCENE_SPLITS)}")
        self.name, self.split, self._count = spec, split, count
        self.labels = LabelMap(tuple(scenes.CLASSES), tuple(tuple(c) for c in scenes.PALETTE), 255)
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

    def sample(self, index: int) -> Sample:
        from fapn_zoo.data import scenes

        seed = self.seed(index)
        scene = scenes.generate_scene(seed, self._size)
        return Sample(scene.image, scene.semantic, f"scene_{seed:09d}")


class JoinedDataset:
    """Several data sets one after the other; their class names must be the same, in the same order."""

    def __init__(self, parts: Sequence[SegmentationDataset]):
        if not parts:
            raise DataError("nothing to join")
        self.parts = tuple(parts)
        self.labels = parts[0].labels
        self.name = "+".join(p.name for p in parts)
        for part in parts[1:]:
            self._check_same(part)
        self._ends = np.cumsum([len(p) for p in parts])

    def _check_same(self, part: SegmentationDataset) -> None:
        ours, theirs = self.labels, part.labels
        first = self.parts[0].name
        if ours.ignore_index != theirs.ignore_index:
            raise DataError(
                f"cannot join {first} and {part.name}: ignore_index {ours.ignore_index} against {theirs.ignore_index}"
            )
        if ours.names == theirs.names:
            return
        if ours.num_classes != theirs.num_classes:
            only = [f"only {first}: {n}" for n in ours.names if n not in theirs.names]
            only += [f"only {part.name}: {n}" for n in theirs.names if n not in ours.names]
            what = f"{ours.num_classes} classes against {theirs.num_classes} ({_listed(only)})"
        else:
            pairs = zip(ours.names, theirs.names, strict=True)
            what = "class " + _listed([f"{i} is {a!r} against {b!r}" for i, (a, b) in enumerate(pairs) if a != b])
        raise DataError(f"cannot join {first} and {part.name}, their class names differ: {what}")

    def _where(self, index: int) -> tuple[SegmentationDataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part], index - int(self._ends[part] - len(self.parts[part]))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def size(self, index: int) -> tuple[int, int]:
        part, i = self._where(index)
        return part.size(i)

    def sample(self, index: int) -> Sample:
        part, i = self._where(index)
        return part.sample(i)


def _listed(items: Sequence[str], few: int = 6) -> str:
    return ", ".join(items[:few]) + (f" and {len(items) - few} more" if len(items) > few else "")


def open_dataset(source: str | Path, split: str, num_classes: int | None = None) -> SegmentationDataset:
    """Open a data set by its name.

    Args:
        source: a folder (see `FolderDataset`), `scenes:N` or `scenes:N@HxW` (see `ScenesDataset`), or several of
            them joined with commas; then their class names must be equal.
        split: "train", "val", "test", or another folder name where the source is a folder; "train+val" joins two.
        num_classes: number of classes; needed for a folder without `classes.json`, else it must agree.

    Raises:
        FileNotFoundError: no such folder or split. DataError: everything else; both name the thing.
    """
    text = str(source)
    names = [text] if Path(text).is_dir() else [p.strip() for p in text.split(",")]  # a folder may hold a comma
    if not all(names):
        raise DataError(f"empty name in data source {text!r}; write a folder, {SCENE_GRAMMAR}, or several with commas")
    kinds = [ScenesDataset if _is_scenes(name) else FolderDataset for name in names]
    opened = [
        kind(name, part, num_classes) for kind, name in zip(kinds, names, strict=True) for part in split.split("+")
    ]
    return opened[0] if len(opened) == 1 else JoinedDataset(opened)


def _is_scenes(name: str) -> bool:
    # A near miss such as "scenes" or "scene:40" is told the grammar, unless there is a folder of that name.
    return name.startswith("scenes:") or bool(re.match(r"scenes?\b", name) and not Path(name).exists())
