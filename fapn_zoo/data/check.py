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

from fapn_zoo.data.annotated import AnnotatedPictures
from fapn_zoo.data.check_objects import check_objects
from fapn_zoo.data.check_pictures import PictureFacts
from fapn_zoo.data.check_segments import check_segments
from fapn_zoo.data.coco_instances import CocoInstances
from fapn_zoo.data.folders import read_label_map
from fapn_zoo.data.formats.labelme import LabelMeFolder
from fapn_zoo.data.formats.voc import VocFolder
from fapn_zoo.data.formats.yolo import YoloFolder
from fapn_zoo.data.hints import id_hint
from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import is_leaving, list_folder, printable
from fapn_zoo.data.pairs import LABEL_SUFFIX, find_splits, has_labels, instead, list_pairs, near, other_places, twins
from fapn_zoo.data.panoptic_sources import is_panoptic
from fapn_zoo.data.reading import UnreadableFile, check_ids, check_sizes, read_labels
from fapn_zoo.data.reading_rules import Reading, read_rules
from fapn_zoo.data.sample import DataError
from fapn_zoo.data.supervision import NOTHING, SplitCounts, findings
from fapn_zoo.runtime.progress import bar
from fapn_zoo.runtime.tables import some

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
class CheckReport:
    """All findings on a data folder; `ok` when none is an error, `render()` gives the table and the list as text."""

    root: Path
    labels: LabelMap | None  # None: no classes.json and no num_classes, or they disagree
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    pictures: PictureFacts = field(default_factory=lambda: PictureFacts(Reading()))
    facts: list[str] = field(default_factory=list)  # sentences below the table

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
            lines += ["", *self._table(), *(f"   {fact}" for fact in self.facts)]
        groups: dict[tuple[bool, str], list[Problem]] = defaultdict(list)
        for problem in self.problems:
            groups[not problem.error, problem.kind].append(problem)
        for (_, kind), found in sorted(groups.items()):
            lines += ["", f"{'error' if found[0].error else 'note'}: {kind} ({len(found)})"]
            lines += [f"  {p.detail}" for p in found[:limit]]
            if len(found) > limit:
                lines.append(f"  ... and {len(found) - limit} more")
        return printable("\n".join([*lines, "", self._verdict()]))

    def _verdict(self) -> str:
        errors = sum(p.error for p in self.problems)
        notes = len(self.problems) - errors
        if errors:
            return f"{errors} error{'s' if errors > 1 else ''} found"
        return f"no errors, {notes} note{'s' if notes > 1 else ''}" if notes else "all good"

    def _table(self) -> list[str]:
        rows = [["id", "class", *self.splits]]
        objects = any(counts.unit == "object" for counts in self.splits.values())
        for i, name in enumerate((*self.labels.names, *["(ignored)"] * (not objects))):
            row = [str(self.labels.ignore_index if i == self.labels.num_classes else i), name]
            for counts in self.splits.values():
                share = f"{100 * counts.pixels[i] / max(int(counts.pixels.sum()), 1):.2f}%"
                row.append(f"{f'{counts.pixels[i]:,}' if objects else share} ({counts.images[i]})")
            rows.append(row)
        widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
        table = []
        for row in rows:
            cells = [row[0].rjust(widths[0]), row[1].ljust(widths[1])]
            table.append("  ".join(cells + [v.rjust(w) for v, w in zip(row[2:], widths[2:], strict=True)]).rstrip())
        what = "objects that are no crowds" if objects else "share of the pixels"
        return [*table, f"   ({what}, in brackets the number of images with the class)"]


def check_data(
    root: str | Path, num_classes: int | None = None, progress: bool = True, reading: Reading | None = None
) -> CheckReport:
    """Check every split of a data folder; reads all files and never stops at the first problem.

    Errors are pictures without labels, labels without pictures, names used twice and unreadable files. So are colour
    pictures or lossy files in place of labels, sizes that differ, ids out of range and unknown classes. The same file
    in two splits is one too: the model would be scored on what it was trained on. So are links to nowhere, pipes,
    folders that cannot be read, and classes from which nothing can be learnt (`fapn_zoo.data.supervision.findings`).
    Notes are the same picture twice in one split, classes that never occur, and what lies there and is not used.

    Args:
        root: folder as `FolderDataset`, `CocoPanoptic` or `CocoInstances` describes it.
        num_classes: number of classes where there is no `classes.json`; else it must agree.
        progress: show a progress bar on stderr where that is a terminal.
        reading: the rules that a training is to read pictures by; what they leave open, `classes.json` says.

    Raises:
        FileNotFoundError: no such folder.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}")
    report, splits = CheckReport(root, None), find_splits(root)
    if not splits and is_panoptic(root):
        report.pictures = PictureFacts(read_rules(root, reading))
        report.labels, report.splits = check_segments(root, report.add, progress, report.pictures)
        _add_facts(report)
        if report.labels is not None:
            _check_classes(report)
        return report
    listed = next((kind for kind in (CocoInstances, YoloFolder, VocFolder, LabelMeFolder) if kind.splits(root)), None)
    if not has_labels(root) and listed:
        return _check_instances(listed, report, progress, reading)
    try:
        report.labels = read_label_map(root, num_classes)
        report.pictures = PictureFacts(read_rules(root, reading))
    except ValueError as error:
        report.problems.append(Problem("classes unknown", "classes.json", str(error)))
    _check_places(report, splits)
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
    _add_facts(report)
    if report.labels is not None:
        _check_classes(report)
    return report


def _check_instances(
    kind: type[AnnotatedPictures], report: CheckReport, progress: bool, reading: Reading | None
) -> CheckReport:
    seen: Seen = defaultdict(list)
    report.pictures = PictureFacts(read_rules(report.root, reading))
    found = check_objects(kind, report.root, report.add, progress, report.pictures, partial(_remember, seen))
    report.labels, report.splits, report.facts = found
    _check_repeats(report, seen)
    _add_facts(report)
    if report.labels is not None:
        _check_classes(report)
    return report


def _remember(seen: Seen, split: str, path: Path) -> None:
    """Takes down the bytes of a picture."""
    seen[hashlib.blake2b(path.read_bytes(), digest_size=16).digest()].append((split, path))


def _add_facts(report: CheckReport) -> None:
    for fact in report.pictures.facts():
        report.add(fact.kind, fact.file, fact.detail, fact.error)


def _check_places(report: CheckReport, splits: list[str]) -> None:
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


def _check_pair(report: CheckReport, split: str, image_path: Path, label_path: Path, seen: Seen) -> set[int]:
    """Check one picture with its labels, count its classes, remember its bytes; returns the label ids found."""
    pictures = report.pictures
    image = _read(report, pictures.read, image_path)
    labels = _read(report, partial(read_labels, reading=pictures.reading), label_path)
    pictures.pair(image_path, label_path)
    if image is not None:
        _remember(seen, split, image_path)
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


def _check_repeats(report: CheckReport, seen: Seen) -> None:
    for found in (found for found in seen.values() if len(found) > 1):
        shared = len({split for split, _ in found}) > 1
        kind = "same picture in two splits" if shared else "same picture twice in a split"
        report.add(kind, found[0][1], " = ".join(str(file) for _, file in found), error=shared)


def _check_classes(report: CheckReport) -> None:
    """Whether there is something to learn from splits for training, and what the others lack."""
    named = [split for split in report.splits if split.startswith("train")]
    trained = named or [split for split in report.splits if not split.startswith(("val", "test"))]
    for split, counts in report.splits.items():
        for found in findings(split, report.labels, counts) if counts.samples else ():
            kind = "nothing to score" if found.stops and split not in trained else found.kind
            report.add(kind, report.root / split, found.text, error=kind == NOTHING)
        values = sorted({*counts.others, *_values(report.labels, counts)})
        hint = id_hint(values, report.labels) if counts.others else ""
        if hint and not any(hint in problem.detail for problem in report.problems):
            report.add("values that may mean other ids", report.root / split, f"{split}: {hint}", error=False)
    whole = sum(report.splits[split].pixels for split in trained)
    for split, counts in report.splits.items() if trained else ():
        strange = [name for i, name in enumerate(report.labels.names) if counts.pixels[i] and not whole[i]]
        if strange and split not in trained:
            text = f"{split}: {', '.join(strange)} (in no split for training)"
            report.add("classes that are never trained", report.root / split, text, error=False)


def _values(labels: LabelMap, counts: SplitCounts) -> list[int]:
    return [i if i < labels.num_classes else labels.ignore_index for i in np.flatnonzero(counts.pixels).tolist()]
