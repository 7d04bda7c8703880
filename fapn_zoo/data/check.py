"""Look at every file of a data folder and say all that is wrong with it."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from fapn_zoo.data.check_pictures import PictureFacts
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.reading import UnreadableFile, check_ids, check_sizes, read_labels
from fapn_zoo.data.reading_rules import Reading, read_rules
from fapn_zoo.data.sample import DataError
from fapn_zoo.data.sources import IMAGE_SUFFIXES, LABEL_SUFFIX, find_splits, list_files, lossy_labels, read_label_map
from fapn_zoo.runtime.progress import bar

Seen = dict[bytes, list[tuple[str, Path]]]  # split and file of every picture, by a digest of its bytes


@dataclass(frozen=True)
class Problem:
    """One finding: `kind` groups them, `file` is relative to the root, `detail` is a sentence that names the file.

    `error` False means worth knowing, but no reason to stop.
    """

    kind: str
    file: str
    detail: str
    error: bool = True


@dataclass
class SplitCounts:
    """What one split holds: sample count, and per class (last entry: ignored) the pixels and the images with it."""

    samples: int
    pixels: np.ndarray
    images: np.ndarray


@dataclass
class CheckReport:
    """All findings on a data folder; `ok` when none is an error, `render()` gives the table and the list as text."""

    root: Path
    labels: LabelMap | None  # None: no classes.json and no num_classes, or they disagree
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    pictures: PictureFacts = field(default_factory=lambda: PictureFacts(Reading()))

    @property
    def ok(self) -> bool:
        return not any(p.error for p in self.problems)

    def add(self, kind: str, path: Path, detail: object, error: bool = True) -> None:
        """Adds a finding; paths in `detail` become relative to the root, as `path` does."""
        shown = str(detail).replace(f"{self.root}{os.sep}", "")
        self.problems.append(Problem(kind, path.relative_to(self.root).as_posix(), shown, error))

    def render(self, limit: int = 10) -> str:
        """Class table (pixels in percent, images with the class) and the findings, at most `limit` per kind."""
        lines = [f"{self.root}: " + ", ".join(f"{s} {c.samples}" for s, c in self.splits.items())]
        if self.labels is not None:
            lines += ["", *self._table()]
        groups: dict[tuple[bool, str], list[Problem]] = defaultdict(list)
        for problem in self.problems:
            groups[not problem.error, problem.kind].append(problem)
        for (_, kind), found in sorted(groups.items()):
            lines += ["", f"{'error' if found[0].error else 'note'}: {kind} ({len(found)})"]
            lines += [f"  {p.detail}" for p in found[:limit]]
            if len(found) > limit:
                lines.append(f"  ... and {len(found) - limit} more")
        errors = sum(p.error for p in self.problems)
        return "\n".join([*lines, "", "all good" if self.ok else f"{errors} error{'s' if errors > 1 else ''} found"])

    def _table(self) -> list[str]:
        rows = [["id", "class", *self.splits]]
        for i, name in enumerate((*self.labels.names, "(ignored)")):
            row = [str(self.labels.ignore_index if i == self.labels.num_classes else i), name]
            for counts in self.splits.values():
                total = max(int(counts.pixels.sum()), 1)
                row.append(f"{100 * counts.pixels[i] / total:.2f}% ({counts.images[i]})")
            rows.append(row)
        widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
        table = []
        for row in rows:
            cells = [row[0].rjust(widths[0]), row[1].ljust(widths[1])]
            table.append("  ".join(cells + [v.rjust(w) for v, w in zip(row[2:], widths[2:], strict=True)]).rstrip())
        return [*table, "   (share of the pixels, in brackets the number of images with the class)"]


def check_data(root: str | Path, num_classes: int | None = None, progress: bool = True) -> CheckReport:
    """Check every split of a data folder; reads all files and never stops at the first problem.

    Errors are pictures without labels, labels without pictures, names used twice and unreadable files. So are colour
    pictures or lossy files in place of labels, sizes that differ, ids out of range and unknown classes. The same file
    in two splits is one too: the model would be scored on what it was trained on. Notes are the same picture twice in
    one split, and classes that never occur.

    Args:
        root: folder as `FolderDataset` describes it.
        num_classes: number of classes where there is no `classes.json`; else it must agree.
        progress: show a progress bar on stderr where that is a terminal.

    Raises:
        FileNotFoundError: no such folder.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}")
    report = CheckReport(root, None)
    try:
        report.labels = read_label_map(root, num_classes)
        report.pictures = PictureFacts(read_rules(root, None))
    except ValueError as error:
        report.problems.append(Problem("classes unknown", "classes.json", str(error)))
    splits = find_splits(root)
    if not splits:
        report.add("no splits", root, f"expected {{train,val,test}}/{{images,labels}}/ in {root}")
    pairs = {split: _pair_files(report, split) for split in splits}
    shown = bar(progress, total=sum(map(len, pairs.values())), desc="check", unit="image")
    seen: Seen = defaultdict(list)
    ids: set[int] = set()
    with shown:
        for split in splits:
            for image_path, label_path in pairs[split]:
                ids |= _check_pair(report, split, image_path, label_path, seen)
                shown.update()
    if report.labels is None and ids:
        report.add("ids found in the labels", root, _ranges(sorted(ids)), error=False)
    _check_repeats(report, seen)
    for fact in report.pictures.facts(root):
        report.add(fact.kind, fact.file, fact.detail, fact.error)
    if report.labels is not None:
        _check_classes(report)
    return report


def _pair_files(report: CheckReport, split: str) -> list[tuple[Path, Path]]:
    folder = report.root / split
    images = list_files(folder / "images", IMAGE_SUFFIXES)
    labels = list_files(folder / "labels", (LABEL_SUFFIX,))
    if not images:
        looked = f"no pictures in {folder / 'images'} (looked for {', '.join(IMAGE_SUFFIXES)})"
        report.add("no pictures", folder / "images", looked)
    for stem, (file, *others) in images.items():
        if stem not in labels:
            report.add("picture without label", file, f"{file} has no {split}/labels/{stem}{LABEL_SUFFIX}")
        if others:
            report.add("name used twice", file, f"{file} and {', '.join(f.name for f in others)} share one label")
    for stem, (file, *_) in labels.items():
        if stem not in images:
            report.add("label without picture", file, f"{file} has no {split}/images/{stem}.*")
    for name in lossy_labels(folder / "labels"):
        file = folder / "labels" / name
        report.add("label that is no PNG", file, f"{file}: only PNG keeps class ids as they are")
    both = [(file, labels[stem][0]) for stem, files in sorted(images.items()) if stem in labels for file in files]
    size = (report.labels.num_classes if report.labels else 0) + 1
    report.splits[split] = SplitCounts(len(both), np.zeros(size, np.int64), np.zeros(size, np.int64))
    return both


def _check_pair(report: CheckReport, split: str, image_path: Path, label_path: Path, seen: Seen) -> set[int]:
    """Check one picture with its labels, count its classes, remember its bytes; returns the label ids found."""
    pictures = report.pictures
    image = _read(report, pictures.read, image_path)
    labels = _read(report, partial(read_labels, reading=pictures.reading), label_path)
    pictures.pair(image_path, label_path)
    if image is not None:
        digest = hashlib.blake2b(image_path.read_bytes(), digest_size=16).digest()
        seen[digest].append((split, image_path))
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
    _count(report.splits[split], labels, report.labels)
    return set()


def _read(report: CheckReport, reader: Callable[[Path], np.ndarray], path: Path) -> np.ndarray | None:
    try:
        return reader(path)
    except UnreadableFile as error:
        report.add("unreadable file", path, error)
    except DataError as error:
        report.add("file without class ids", path, error)
    return None


def _count(counts: SplitCounts, labels: np.ndarray, label_map: LabelMap) -> None:
    number = np.bincount(labels.ravel(), minlength=max(label_map.num_classes, label_map.ignore_index + 1))
    here = np.append(number[: label_map.num_classes], number[label_map.ignore_index])
    if label_map.ignore_index == 0:  # named and ignored at once: count it as ignored
        here[0] = 0
    counts.pixels += here
    counts.images += here > 0


def _ranges(values: list[int]) -> str:
    """[0, 1, 2, 5, 255] -> "0-2, 5, 255"."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _check_repeats(report: CheckReport, seen: Seen) -> None:
    for found in (found for found in seen.values() if len(found) > 1):
        shared = len({split for split, _ in found}) > 1
        kind = "same picture in two splits" if shared else "same picture twice in a split"
        report.add(kind, found[0][1], " = ".join(str(file) for _, file in found), error=shared)


def _check_classes(report: CheckReport) -> None:
    for split, counts in report.splits.items():
        named = enumerate(report.labels.names)
        never = [n for i, n in named if not counts.pixels[i] and i != report.labels.ignore_index]
        if never and counts.samples:
            report.add("classes that never occur", report.root / split, f"{split}: {', '.join(never)}", error=False)
