"""Pictures and their label files in a folder of splits: which belong together, and what is left over."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fapn_zoo.data.coco_annotations import Fault
from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.listing import DEAD_LINK, ENDING, LOCKED, Listing, Unused, list_folder, missing
from fapn_zoo.runtime.tables import some

LABEL_SUFFIX = ".png"


class Pairs(NamedTuple):
    """What one split holds.

    Attributes:
        images, labels: name -> files; the name is the path below `images` or `labels` without its ending: "aachen/x".
        lossy: pictures among the labels that are no PNG, and therefore not taken for labels.
        unused: what else lies there.
    """

    images: dict[str, list[Path]]
    labels: dict[str, list[Path]]
    lossy: list[Path]
    unused: list[Unused]


def find_splits(root: Path) -> list[str]:
    """Names of the folders under `root` that hold `images` or `labels`: train, val, test, then the others."""
    names = [p.name for p in root.iterdir() if (p / "images").is_dir() or (p / "labels").is_dir()]
    usual = ["train", "val", "test"]
    return sorted(names, key=lambda n: (usual.index(n) if n in usual else len(usual), n))


def has_labels(root: Path) -> bool:
    """Whether it has a split with label files; YOLO's, texts in a folder of that name, are none."""
    folders = [root / split / "labels" for split in find_splits(root)] if root.is_dir() else []
    return any(not name.endswith(".txt") for folder in folders if folder.is_dir() for name in os.listdir(folder))


def other_places(root: Path) -> str:
    """Words about the folders that are there where `images` and `labels` are looked for; or ""."""
    names = [below for path in _folders(root) for below in _folders(path) or [path]]
    return f"; it has {some(path.relative_to(root).as_posix() for path in names)}" if names else ""


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(root / one.name for one in entries if os.path.isdir(one) and not one.name.startswith("."))


def list_pairs(split: Path) -> Pairs:
    """All files below `split/images` and `split/labels`."""
    images, labels = _listing(split / "images", EXTENSIONS), _listing(split / "labels", (LABEL_SUFFIX,))
    lossy = {one for one in labels.unused if one.kind == ENDING and one.path.suffix.lower() in EXTENSIONS}
    unused = [*images.unused, *(one for one in labels.unused if one not in lossy)]
    named = _by_name(split / "images", images.files), _by_name(split / "labels", labels.files)
    return Pairs(*named, sorted(one.path for one in lossy), unused)


def _listing(folder: Path, suffixes: Collection[str]) -> Listing:
    if not folder.is_dir():
        return Listing([], [Unused(folder, DEAD_LINK, missing(folder))] if folder.is_symlink() else [])
    try:
        return list_folder(folder, suffixes)
    except OSError as error:
        return Listing([], [Unused(folder, LOCKED, f"{folder}: {error.strerror}")])


def _by_name(folder: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    start = len(os.path.join(os.fspath(folder), ""))
    for path in files:
        found.setdefault(os.path.splitext(os.fspath(path)[start:])[0].replace(os.sep, "/"), []).append(path)
    return found


def faults(split: Path, found: Pairs) -> Iterator[Fault]:
    """What lies in a folder and is of no pair; an error where one was meant."""
    for one in found.unused:
        yield Fault(one.kind, one.reason, one.error, one.path)
    if not found.images:
        looked = f"no pictures in {split / 'images'} (looked for {', '.join(EXTENSIONS)})"
        yield Fault("no pictures", looked, file=split / "images")
        return
    for name, (file, *others) in found.images.items():
        if name not in found.labels:
            yield Fault("picture without label", f"{file} has no labels/{name}{LABEL_SUFFIX}", file=file)
        if others:
            text = f"{file} and {', '.join(other.name for other in others)} share one label"
            yield Fault("name used twice", text, file=file)
    for name, (file, *_) in found.labels.items():
        if name not in found.images:
            yield Fault("label without picture", f"{file} has no images/{name}.*", file=file)
    for file in found.lossy:
        yield Fault("label that is no PNG", f"{file}: only PNG keeps class ids as they are", file=file)
