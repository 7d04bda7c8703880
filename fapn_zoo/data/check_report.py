"""What a check of a data set has found, and the text that says so."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from fapn_zoo.data.check_pictures import PictureFacts
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import printable
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.sample import Dataset
from fapn_zoo.data.supervision import SplitCounts
from fapn_zoo.runtime.tables import aligned

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
    layout: str  # that it is read as
    labels: LabelMap | None = None  # None: no classes.json and no num_classes, or they disagree
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    pictures: PictureFacts = field(default_factory=lambda: PictureFacts(Reading()))
    facts: list[str] = field(default_factory=list)  # sentences below the table

    opened: dict[str, Dataset] = field(default_factory=dict)  # the splits as they can be read
    seen: Seen = field(default_factory=lambda: defaultdict(list))  # pictures that are alike

    @property
    def ok(self) -> bool:
        return not any(p.error for p in self.problems)

    def add(self, kind: str, path: Path, detail: object, error: bool = True) -> None:
        """Adds a finding; paths in `detail` become relative to the root, as `path` does."""
        shown = str(detail).replace(f"{self.root}{os.sep}", "")
        file = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        if error or all(shown != one.detail for one in self.problems[-100:]):  # what is said of every split alike
            self.problems.append(Problem(kind, file.as_posix(), shown, error))

    def remember(self, split: str, path: Path, content: bytes | None = None) -> None:
        """Takes down a picture by its content, which is that of the file where it is not given."""
        content = path.read_bytes() if content is None else content
        self.seen[hashlib.blake2b(content, digest_size=16).digest()].append((split, path))

    def render(self, limit: int = 10) -> str:
        """Class table (pixels in percent, images with the class) and the findings, at most `limit` per kind."""
        lines = [f"{self.root} ({self.layout}): " + ", ".join(f"{s} {c.samples}" for s, c in self.splits.items())]
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
        return printable("\n".join([*lines, "", self.verdict()]))

    def verdict(self) -> str:
        errors = sum(p.error for p in self.problems)
        notes = len(self.problems) - errors
        if errors:
            return f"{errors} error{'s' if errors > 1 else ''} found"
        return f"no errors, {notes} note{'s' if notes > 1 else ''}" if notes else "all good"

    def _table(self) -> list[str]:
        rows = [["class", "id", *self.splits]]
        objects = any(counts.unit == "object" for counts in self.splits.values())
        for i, name in enumerate((*self.labels.names, *["(ignored)"] * (not objects))):
            row = [name, str(self.labels.ignore_index if i == self.labels.num_classes else i)]
            for counts in self.splits.values():
                share = f"{100 * counts.pixels[i] / max(int(counts.pixels.sum()), 1):.2f}%"
                row.append(f"{f'{counts.pixels[i]:,}' if objects else share} ({counts.images[i]})")
            rows.append(row)
        what = "objects that are no crowds" if objects else "share of the pixels"
        return [*aligned(rows), f"   ({what}, in brackets the number of images with the class)"]
