"""Look at every file of a data folder and say all that is wrong with it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .labels import LabelMap
from .sources import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIX,
    DataError,
    bad_ids,
    check_sizes,
    describe_bad_ids,
    find_splits,
    list_files,
    read_image,
    read_label_map,
    read_labels,
)


@dataclass(frozen=True)
class Problem:
    """One finding. `kind` groups them, `file` is relative to the root, `error` False means worth knowing only."""

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
    labels: LabelMap | None
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any(p.error for p in self.problems)

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
            lines += [f"  {p.file}: {p.detail}" for p in found[:limit]]
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

    Finds pictures without labels and the other way round, names used twice, unreadable files, colour pictures in
    place of labels, size mismatches, ids out of range, the same picture in two splits, classes that never occur.

    Args:
        root: folder as `FolderDataset` describes it.
        num_classes: number of classes where there is no `classes.json`; else it must agree.
        progress: show a progress bar on stderr where that is a terminal.

    Raises:
        FileNotFoundError: no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}")
    report = CheckReport(root, None)
    try:
        report.labels = read_label_map(root, num_classes)
    except ValueError as error:
        report.problems.append(Problem("classes unknown", "classes.json", str(error)))
    splits = find_splits(root)
    if not splits:
        report.problems.append(Problem("no splits", ".", "expected {train,val,test}/{images,labels}/ here"))
    pairs = {split: _pair_files(report, split) for split in splits}
    bar = tqdm(total=sum(map(len, pairs.values())), desc="check", unit="image", disable=None if progress else True)
    seen: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    with bar:
        for split in splits:
            counts = report.splits[split]
            for image_path, label_path in pairs[split]:
                _check_pair(report, counts, image_path, label_path)
                digest = hashlib.blake2b(image_path.read_bytes(), digest_size=16).digest()
                seen[digest].append((split, _short(report, image_path)))
                bar.update()
    _check_repeats(report, seen)
    _check_classes(report)
    return report


def _short(report: CheckReport, path: Path) -> str:
    return path.relative_to(report.root).as_posix()


def _pair_files(report: CheckReport, split: str) -> list[tuple[Path, Path]]:
    folder = report.root / split
    images = list_files(folder / "images", IMAGE_SUFFIXES)
    labels = list_files(folder / "labels", (LABEL_SUFFIX,))
    add = report.problems.append
    if not images:
        add(Problem("no pictures", f"{split}/images", f"looked for {', '.join(IMAGE_SUFFIXES)}"))
    for stem, files in images.items():
        if stem not in labels:
            add(Problem("picture without label", _short(report, files[0]), f"no {split}/labels/{stem}{LABEL_SUFFIX}"))
        if len(files) > 1:
            also = ", ".join(f.name for f in files[1:])
            add(Problem("name used twice", _short(report, files[0]), f"also {also}"))
    for stem, files in labels.items():
        if stem not in images:
            add(Problem("label without picture", _short(report, files[0]), f"no {split}/images/{stem}.*"))
    both = [(file, labels[stem][0]) for stem, files in sorted(images.items()) if stem in labels for file in files]
    size = (report.labels.num_classes if report.labels else 0) + 1
    report.splits[split] = SplitCounts(len(both), np.zeros(size, np.int64), np.zeros(size, np.int64))
    return both


def _check_pair(report: CheckReport, counts: SplitCounts, image_path: Path, label_path: Path) -> None:
    image = labels = None
    try:
        image = read_image(image_path)
    except DataError as error:
        report.problems.append(Problem("unreadable", _short(report, image_path), str(error)))
    try:
        labels = read_labels(label_path)
    except DataError as error:
        kind = "unreadable" if "cannot read" in str(error) else "colours in place of class ids"
        report.problems.append(Problem(kind, _short(report, label_path), str(error)))
    if labels is None:
        return
    if image is not None:
        try:
            check_sizes(image, labels, image_path, label_path)
        except DataError as error:
            report.problems.append(Problem("size mismatch", _short(report, label_path), str(error)))
    if report.labels is None:
        return
    found = bad_ids(labels, report.labels)
    if found:
        detail = describe_bad_ids(found, report.labels)
        report.problems.append(Problem("ids out of range", _short(report, label_path), detail))
    _count(counts, labels, report.labels)


def _count(counts: SplitCounts, labels: np.ndarray, label_map: LabelMap) -> None:
    number = np.bincount(labels.ravel(), minlength=max(label_map.num_classes, label_map.ignore_index + 1))
    here = np.append(number[: label_map.num_classes], number[label_map.ignore_index])
    if label_map.ignore_index == 0:  # named and ignored at once: count it as ignored
        here[0] = 0
    counts.pixels += here
    counts.images += here > 0


def _check_repeats(report: CheckReport, seen: dict[bytes, list[tuple[str, str]]]) -> None:
    for files in seen.values():
        if len(files) < 2:
            continue
        shared = len({split for split, _ in files}) > 1
        kind = "same picture in two splits" if shared else "same picture twice in a split"
        report.problems.append(Problem(kind, files[0][1], "also " + ", ".join(f for _, f in files[1:]), error=shared))


def _check_classes(report: CheckReport) -> None:
    if report.labels is None:
        return
    for split, counts in report.splits.items():
        named = enumerate(report.labels.names)
        never = [n for i, n in named if not counts.pixels[i] and i != report.labels.ignore_index]
        if never and counts.samples:
            report.problems.append(Problem("classes that never occur", split, ", ".join(never), error=False))
