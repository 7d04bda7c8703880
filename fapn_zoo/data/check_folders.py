"""Look at every file of a folder in the house's own format: pictures with label files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from fapn_zoo.data.check_pictures import PictureFacts
from fapn_zoo.data.check_report import CheckReport, Problem
from fapn_zoo.data.folders import FolderDataset, read_label_map
from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.listing import is_leaving, list_folder
from fapn_zoo.data.pairs import LABEL_SUFFIX, find_splits, instead, list_pairs, near, other_places, twins
from fapn_zoo.data.reading import UnreadableFile, check_ids, check_sizes, read_class_ids, read_labels
from fapn_zoo.data.reading_rules import Reading, read_rules
from fapn_zoo.data.sample import DataError
from fapn_zoo.data.supervision import SplitCounts
from fapn_zoo.runtime.progress import bar
from fapn_zoo.runtime.tables import some


def check_folder(report: CheckReport, num_classes: int | None, progress: bool, reading: Reading | None) -> None:
    """Checks every pair of every split, and what lies there and is none."""
    root, splits = report.root, find_splits(report.root)
    try:
        report.labels = read_label_map(root, num_classes)
        report.pictures = PictureFacts(read_rules(root, reading))
    except ValueError as error:
        report.problems.append(Problem("classes unknown", "classes.json", str(error)))
    _places(report, splits)
    pairs = {split: _pair_files(report, split) for split in splits}
    ids: set[int] = set()
    with bar(progress, total=sum(map(len, pairs.values())), desc="check", unit="image") as shown:
        for split in splits:
            for image_path, label_path in pairs[split]:
                ids |= _check_pair(report, split, image_path, label_path)
                shown.update()
    for split in splits if report.labels is not None else ():
        with contextlib.suppress(DataError):  # said already
            report.opened[split] = FolderDataset(root, split, num_classes, reading, strict=False)
    if report.labels is None and ids:
        report.add("ids found in the labels", root, _ranges(sorted(ids)), error=False)


def _places(report: CheckReport, splits: list[str]) -> None:
    """What lies beside the splits, and in them beside `images` and `labels`: it is not read."""
    root = report.root
    if not splits:
        text = f"expected {{train,val,test}}/{{images,labels}}/ in {root}{other_places(root)}"
        report.add("no splits", root, text)
    for folder, read in (
        (root, splits or ["train", "val", "test"]),
        *((root / split, ["images", "labels"]) for split in splits),
    ):
        beside = list_folder(folder, EXTENSIONS, deep=False)
        folders = [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name not in read and not is_leaving(p.name)]
        for one in beside.unused:
            if one.error and one.path.name not in ("images", "labels", "classes.json"):  # of these more is said
                report.add(one.kind, one.path, one.reason)
        for path in folders if splits else ():
            report.add("folder that is not read", path, f"{path}: only {', '.join(read)} are read", error=False)
        if beside.files:
            text = f"{folder}: {len(beside.files)} outside of images and labels: {some(p.name for p in beside.files)}"
            report.add("pictures that are not read", folder, text, error=False)


def _pair_files(report: CheckReport, split: str) -> list[tuple[Path, Path]]:
    folder = report.root / split
    found = list_pairs(folder)
    images, labels = found.images, found.labels
    for one in found.unused:
        report.add(one.kind, one.path, one.reason, error=one.error)
    if not images:
        looked = f"no pictures in {folder / 'images'} (looked for {', '.join(EXTENSIONS)})"
        report.add("no pictures", folder / "images", looked)
    orphans = [name for name in labels if name not in images]
    for name, (file, *others) in images.items():
        if name not in labels:
            text = f"{file} has no {split}/labels/{name}{LABEL_SUFFIX}{near(name, orphans)}"
            report.add("picture without label", file, text)
        if others:
            report.add("name used twice", file, f"{file} and {', '.join(f.name for f in others)} share one label")
    for name in orphans:
        text = f"{labels[name][0]} has no {split}/images/{name}.*{instead(name, folder, found.unused)}"
        report.add("label without picture", labels[name][0], text)
    for file in found.lossy:
        report.add("label that is no PNG", file, f"{file}: only PNG keeps class ids as they are")
    for name, others in twins(images).items():
        text = f"{images[name][0]} and {', '.join(str(images[other][0]) for other in others)} are one file elsewhere"
        report.add("names that differ in case only", images[name][0], text, error=False)
    both = [(file, labels[name][0]) for name, files in sorted(images.items()) if name in labels for file in files]
    report.splits[split] = SplitCounts.of(len(both), report.labels.num_classes if report.labels else 0)
    return both


def _check_pair(report: CheckReport, split: str, image_path: Path, label_path: Path) -> set[int]:
    """Check one picture with its labels, count its classes, remember its bytes; returns the label ids found."""
    pictures = report.pictures
    image = _read(report, pictures.read, image_path)
    raw = report.labels.raw if report.labels is not None else None
    reader = partial(read_class_ids, labels=report.labels) if raw else read_labels
    labels = _read(report, partial(reader, reading=pictures.reading), label_path)
    pictures.turned.add(image_path, label_path, None)
    if image is not None:
        report.remember(split, image_path)
    if labels is None:
        return set()
    if image is not None:
        try:
            check_sizes(image.shape[1:], labels.shape, image_path, label_path, pictures.reading)
        except DataError as error:
            report.add("size mismatch", label_path, error)
    if report.labels is None:
        return set(np.unique(labels).tolist())
    try:
        check_ids(labels, report.labels, f"{label_path}: ")
    except DataError as error:
        report.add("ids out of range", label_path, error)
    report.splits[split].add_labels(labels, report.labels)
    return set()


def _read(report: CheckReport, reader: Callable[[Path], np.ndarray], path: Path) -> np.ndarray | None:
    try:
        return reader(path)
    except UnreadableFile as error:
        report.add("unreadable file", path, error)
    except DataError as error:
        report.add("file without class ids", path, error)
    return None


def _ranges(values: list[int]) -> str:
    """[0, 1, 2, 5, 255] -> "0-2, 5, 255"."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
