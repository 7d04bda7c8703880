"""Pictures and their label files in a folder of splits: which belong together, and what is left over."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

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


def other_places(root: Path, depth: int = 2) -> str:
    """Words about the folders that are there where `images` and `labels` are looked for; or ""."""
    names = [below for path in _folders(root) for below in (_folders(path) if depth > 1 else []) or [path]]
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


def instead(name: str, split: Path, unused: Iterable[Unused]) -> str:
    """Words about a file of this name that is not used as a picture; or ""."""
    start = os.fspath(split / "images" / name)
    found = [one for one in unused if os.path.splitext(one.path)[0] == start]
    return f"; {found[0].reason}" if found else ""


def near(name: str, among: Collection[str]) -> str:
    """Words about a name that is nearly the one that is missing: written otherwise, or in another folder; or ""."""
    plain, last = folded(name), name.rpartition("/")[2]
    for other in among:
        if folded(other) == plain:
            return f"; {other} differs from {name} in upper and lower case, or in how its letters are stored"
    for other in among:
        if other.rpartition("/")[2] == last:
            return f"; there is {other}: images and labels must lie in subfolders of the same names"
    return ""


def twins(names: Iterable[str]) -> dict[str, list[str]]:
    """Names that some file systems take for one: the first of them -> the others."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(folded(name), []).append(name)
    return {name: others for name, *others in groups.values() if others}


def folded(name: str) -> str:
    """Equal for names that some file systems take for one."""
    return unicodedata.normalize("NFC", name).casefold()
