"""Look at everything of a data set, without a model, and say all that is wrong with it."""

from __future__ import annotations

from pathlib import Path

from fapn_zoo.data.check_report import CheckReport, Problem
from fapn_zoo.data.check_samples import check_samples
from fapn_zoo.data.folders import FolderDataset
from fapn_zoo.data.formats.masks import MaskPairs, parse
from fapn_zoo.data.layouts import LAYOUTS, PREFIXES, choose
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.supervision import NOTHING, findings
from fapn_zoo.runtime.tables import some

__all__ = ["CheckReport", "Problem", "check_data"]


def check_data(
    source: str | Path, num_classes: int | None = None, progress: bool = True, reading: Reading | None = None
) -> CheckReport:
    """Check every split of a data set; reads all files and never stops at the first problem.

    Errors are pictures without labels, labels without pictures, names used twice and unreadable files. So are colour
    pictures or lossy files in place of labels, sizes that differ, ids out of range and unknown classes, and entries
    with objects that make none. The same picture in two splits is one too: the model would be scored on what it was
    trained on. So are links to nowhere, pipes, folders that cannot be read, and classes from which nothing can be
    learnt (`fapn_zoo.data.supervision.findings`). Notes are the same picture twice in one split, classes that never
    occur, what lies there and is not used, and what was taken for granted.

    Args:
        source: what `open_dataset` takes, one alone.
        num_classes: number of classes where nothing names them; else it must agree.
        progress: show a progress bar on stderr where that is a terminal.
        reading: the rules that a training is to read pictures by; what they leave open, `classes.json` says.

    Raises:
        FileNotFoundError: no such folder. ValueError: a source that cannot be understood.
    """
    kind, path = choose(str(source), ())
    root, named = Path(path).expanduser(), kind in PREFIXES.values()
    if issubclass(kind, MaskPairs):
        root = parse(str(path))[0]
    if not named and not (root.is_dir() if kind is FolderDataset else root.exists()):
        raise FileNotFoundError(f"no data folder {root}")
    names = [layout.name for layout in LAYOUTS if not named and (layout.kind is kind or layout.found(root))]
    name = next((layout.name for layout in LAYOUTS if layout.kind is kind), "generated")
    report = CheckReport(root, name)
    if also := [other for other in names if other != name and path == str(source)]:
        text = f"{root} is read as {name}; it looks like {some(also)} too: write {also[0]}:{root} if that is meant"
        report.add("several layouts", root, text, error=False)
    check_samples(report, kind, path if named or kind is MaskPairs else root, num_classes, progress, reading)
    _check_repeats(report)
    report.facts += report.pictures.summary()
    for fault in report.pictures.faults():
        report.add(fault.kind, fault.file, fault.text, fault.error)
    if report.labels is not None:
        _check_classes(report)
    return report


def _check_repeats(report: CheckReport) -> None:
    for found in (found for found in report.seen.values() if len(found) > 1):
        shared = len({split for split, _ in found}) > 1
        kind = "same picture in two splits" if shared else "same picture twice in a split"
        report.add(kind, found[0][1], " = ".join(str(file) for _, file in found), error=shared)


def _check_classes(report: CheckReport) -> None:
    """Whether there is something to learn from splits for training, and what the others lack."""
    named = [split for split in report.splits if split.startswith("train")]
    trained = named or [split for split in report.splits if not split.startswith(("val", "test"))]
    for split, counts in report.splits.items():
        for found in findings(split, report.labels, counts) if counts.samples else ():
            kind = "nothing to score" if found.error and split not in trained else found.kind
            report.add(kind, report.root / split, found.text, error=kind == NOTHING)
    whole = sum(report.splits[split].pixels for split in trained)
    for split, counts in report.splits.items() if trained else ():
        strange = [name for i, name in enumerate(report.labels.names) if counts.pixels[i] and not whole[i]]
        if strange and split not in trained:
            text = f"{split}: {', '.join(strange)} (in no split for training)"
            report.add("classes that are never trained", report.root / split, text, error=False)
