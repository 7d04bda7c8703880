"""What lies in a folder: the files that are used, and every other with the reason why it is not. No torch here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fapn_zoo.runtime.tables import some

# What systems leave behind in folders; names that begin with a dot are such leavings too.
LEAVINGS = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"}
DEAD_LINK, LOCKED, SPECIAL, ENDING = "dead link", "cannot be read", "no regular file", "another ending"
ERRORS = (DEAD_LINK, LOCKED, SPECIAL)  # something was meant to be there


class Unused(NamedTuple):
    """Something that was seen and is not used: one of the kinds above, and the same in a sentence about `path`."""

    path: Path
    kind: str
    reason: str

    @property
    def error(self) -> bool:
        return self.kind in ERRORS


class Listing(NamedTuple):
    """Of one folder: the files that are used, and what else was seen; both sorted by path."""

    files: list[Path]
    unused: list[Unused]


def list_folder(
    folder: str | os.PathLike, suffixes: Collection[str], deep: bool = True, others: bool = True
) -> Listing:
    """Regular files whose ending, in any case, is one of `suffixes`; links are followed, but not to a folder above.

    Opens no file, and says nothing of hidden ones.

    Args:
        deep: also in its subfolders; else these are neither searched nor named.
        others: name files of other endings; there may be as many as of these.

    Raises:
        OSError: `folder` itself cannot be read.
    """
    folder, listing = Path(folder), Listing([], [])
    for found in _walk(folder, frozenset(suffixes), deep, {_identity(os.stat(folder))}, others):
        listing[isinstance(found, Unused)].append(found)
    listing.files.sort(key=os.fspath)
    listing.unused.sort(key=lambda one: os.fspath(one.path))
    return listing


def files_in(folder: str | os.PathLike, suffixes: Collection[str], deep: bool = True) -> list[Path]:
    """The files of `list_folder` alone."""
    return list_folder(folder, suffixes, deep, others=False).files


def _walk(
    folder: Path, suffixes: frozenset[str], deep: bool, above: set[tuple[int, int]], others: bool = True
) -> Iterator[Path | Unused]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if is_leaving(name):
                continue
            wanted = os.path.splitext(name)[1].lower() in suffixes
            try:
                if entry.is_dir():
                    if deep:
                        yield from _subfolder(entry, suffixes, above, others)
                elif wanted and entry.is_file():
                    yield folder / name
                elif wanted or others:
                    yield _left_out(entry, wanted)
            except OSError as error:  # of is_dir and is_file: a link that leads back to itself, or a broken disk
                path = folder / name
                shown = missing(path) if path.is_symlink() else f"{path}: {error.strerror}"
                yield Unused(path, DEAD_LINK if path.is_symlink() else LOCKED, shown)


def subfolders(folder: Path, suffixes: Collection[str], leave_out: Path | None = None) -> list[Unused]:
    """Its subfolders that hold such files, however deep, but for `leave_out` and what is in there."""
    found = []
    out = os.path.join(os.path.realpath(leave_out), "") if leave_out else None
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not is_leaving(path.name)):
        try:
            files = files_in(path, suffixes)
        except OSError as error:
            found.append(Unused(path, LOCKED, f"{path}: {error.strerror}"))
            continue
        if files := [file for file in files if not out or not os.path.realpath(file).startswith(out)]:
            kind = f"subfolder with {len(files)} image{'s' * (len(files) > 1)}, not searched"
            found.append(Unused(path, kind, f"{path}: {kind}"))
    return found


def is_leaving(name: str) -> bool:
    """Whether a name is one of those that systems leave behind, or hidden."""
    return name.startswith(".") or name.lower() in LEAVINGS


def _subfolder(
    entry: os.DirEntry, suffixes: frozenset[str], above: set[tuple[int, int]], others: bool
) -> Iterator[Path | Unused]:
    path, here = Path(entry.path), _identity(entry.stat())
    if here in above:
        return
    try:
        yield from _walk(path, suffixes, True, above | {here}, others)
    except OSError as error:
        yield Unused(path, LOCKED, f"{path}: {error.strerror}")


def _left_out(entry: os.DirEntry, wanted: bool) -> Unused:
    path = Path(entry.path)
    if entry.is_symlink() and not path.exists():
        return Unused(path, DEAD_LINK, missing(path))
    if wanted and not entry.is_file():
        return Unused(path, SPECIAL, f"{path}: {SPECIAL}")
    return Unused(path, ENDING, f"{path}: {ENDING} ({path.suffix or 'none'})")


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def missing(path: Path, listed: Path | None = None) -> str:
    """Words for a path that is no file: there is none, it is a link to nowhere, or a pipe or the like.

    `listed` is the file that names it.
    """
    by = f", which {listed} lists" if listed else ""
    if path.is_symlink() and not os.path.exists(path):
        loop = os.path.realpath(path) == os.path.abspath(path)
        return f"{path}{by}: a link to {os.readlink(path)}, which {'leads back to it' if loop else 'is not there'}"
    if os.path.lexists(path):
        return f"{path} is {SPECIAL}{by}"
    return f"{path} is missing{by}" if by else f"{path}: no such file"


def told(unused: Iterable[Unused], root: Path | None = None) -> str:
    """The things that are not used, in one line: of each kind how many, and the first few by name."""
    groups: dict[str, list[Path]] = {}
    for one in unused:
        groups.setdefault(one.kind, []).append(one.path)
    parts = []
    for kind, paths in groups.items():
        endings = Counter(path.suffix.lower() or "none" for path in paths).most_common(5)
        count = ", ".join(f"{n} {ending}" for ending, n in endings) if kind == ENDING else len(paths)
        names = [str(path.relative_to(root) if root else path) for path in paths]
        if kind == DEAD_LINK:
            names = [f"{name} -> {os.readlink(path)}" for name, path in zip(names, paths, strict=True)]
        parts.append(f"{kind} ({count}): {printable(some(names))}")
    return "; ".join(parts)


def printable(name: str) -> str:
    """A file name as text that can be printed and stored: bytes that are no text become escapes."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()
