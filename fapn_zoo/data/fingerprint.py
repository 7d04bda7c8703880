"""What a data set is made of, so that a run that goes on can tell whether it is still the same.

Names are relative to the data set's folder: it may be moved, or named by another path. Contents are compared where
reading them all is cheap, else the files' times of change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fapn_zoo.data.reading_rules import reading_of
from fapn_zoo.runtime.tables import some
from fapn_zoo.zoo.spec import FROM_DATA

CHEAP = 1 << 28  # bytes: a quarter of a second from memory, some seconds from a disk
LISTED = 5000  # files of which each is remembered; of more there is one digest, so that a run's folder stays small
KINDS = {"all": "contents", "none": "times"}  # by what files are compared


@dataclass(frozen=True)
class Fingerprint:
    """A data set as it was.

    Attributes:
        classes: what the labels mean, but for their colours, and by what rules pictures are read.
        sources: generated parts, by what generates them: "scenes:40 train".
        read: a key of `KINDS`.
        count: of files. digest: of their names, sizes, and contents or times.
        files: name -> size and contents or time, for at most `LISTED` files; else empty.
    """

    classes: Mapping[str, Any]
    sources: tuple[str, ...]
    read: str
    count: int
    digest: str
    files: Mapping[str, str]

    @classmethod
    def of(cls, dataset: Any, read: str | None = None) -> Fingerprint:
        """Looks at all files of a `Dataset`; `read` asks for a way that was taken before, None takes what is cheap."""
        sources = tuple(f"{p.name} {getattr(p, 'split', len(p))}" for p in _parts(dataset) if not _has_files(p))
        paths = dict(sorted(_files(dataset)))
        facts = {name: _stat(path) for name, path in paths.items()}
        if read not in KINDS:
            read = "all" if sum(size for size, _ in facts.values()) <= CHEAP else "none"
        files = {
            name: f"{size} {_contents(paths[name]) if read == 'all' else time}" for name, (size, time) in facts.items()
        }
        known = dataclasses.asdict(dataset.labels)
        classes = {k: v for k, v in known.items() if k != "palette" and (v or k not in FROM_DATA)}
        rules = reading_of(dataset)
        classes |= {"white_level": rules.white_level, "exif": rules.exif or "apply"}
        listed = files if len(files) <= LISTED else {}
        return cls(classes, sources, read, len(files), _digest(files.items()), listed)

    def __str__(self) -> str:
        whole = _digest([self.classes, self.sources, self.digest])
        return f"{self.count} files, {whole} by names, sizes and {KINDS[self.read]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `to_dict` after a trip through JSON; ValueError for anything else."""
        try:
            known = cls(**values)
            kinds = {"classes": dict, "sources": list, "count": int, "digest": str, "files": dict}
            if known.read in KINDS and all(isinstance(getattr(known, name), kind) for name, kind in kinds.items()):
                return dataclasses.replace(known, sources=tuple(known.sources))
        except TypeError:
            pass
        raise ValueError("it does not describe a data set")

    def differences(self, now: Fingerprint) -> str:
        """How a data set that was looked at in the same way differs from this one, in words; "" where it does not."""
        then, classes = _plain(self.classes), _plain(now.classes)
        keys = [key for key in classes if then.get(key, classes[key]) != classes[key]]
        found = [f"{key} {then[key]!r} then, {classes[key]!r} now" for key in keys]
        if self.sources != now.sources:
            found.append(f"{', '.join(self.sources) or 'files'} then, {', '.join(now.sources) or 'files'} now")
        if self.count != now.count:
            found.append(f"{self.count} files then, {now.count} now")
        if self.digest != now.digest and self.files and now.files:
            both = self.files.keys() & now.files.keys()
            found += _named("missing", self.files.keys() - now.files.keys())
            found += _named("new", now.files.keys() - self.files.keys())
            found += _named("changed", [name for name in both if self.files[name] != now.files[name]])
        elif self.digest != now.digest:
            found.append("names, sizes or contents differ")
        if self.digest != now.digest and self.read != "all":
            found.append(f"too much to read, so compared by {KINDS[self.read]}")
        return "; ".join(found)


def _digest(items: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _named(what: str, names: Iterable[str]) -> list[str]:
    shown = some(sorted(names))
    return [f"{what}: {shown}"] if shown else []


def _plain(classes: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as the lists that JSON makes of them."""
    return json.loads(json.dumps(classes))


def _parts(dataset: Any) -> list[Any]:
    """The data sets that were joined, in their order."""
    return [one for part in getattr(dataset, "parts", ()) for one in _parts(part)] or [dataset]


def _has_files(dataset: Any) -> bool:
    return len(dataset) > 0 and bool(dataset.files(0))


def _files(dataset: Any) -> Iterator[tuple[str, Path]]:
    """(name, path) of all files; of joined data sets the name begins with the number."""
    parts = _parts(dataset)
    for number, part in enumerate(parts, 1):
        above = f"{getattr(part, 'root', '')}{os.sep}"
        for index in range(len(part)):
            for path in part.files(index):
                name = text.removeprefix(above) if (text := str(path)).startswith(above) else path.name
                yield (f"{number}/{name}" if len(parts) > 1 else name), path


def _stat(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns; -1 of a file that is not there, which whoever reads it will name."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _contents(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError:
        return "-"
