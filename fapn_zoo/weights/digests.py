"""Whether a file's content is what its digest says, hashing large files once only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fapn_zoo.runtime.files import cache_root, write_text

REMEMBERED = 2**20  # bytes; smaller files are hashed every time, which takes milliseconds


def has_digest(path: Path, digest: str) -> bool:
    """Whether a file has this content.

    A file of `REMEMBERED` bytes or more that passed is noted below `cache_root`, and not read again for as long as
    its place, size and time of change stay the same.

    Args:
        path: an existing file.
        digest: 64 hexadecimal digits are a sha256. 40 are git's id of the file (a sha1 that counts a header in), which
            is how the Hub names small files; some mirrors give the plain sha1, so that passes too.

    Raises:
        ValueError: digits of another number. OSError: the file cannot be read.
    """
    path = path.resolve()
    seen = path.stat()
    facts = {"path": str(path), "size": seen.st_size, "mtime_ns": seen.st_mtime_ns}
    note = cache_root() / "verified" / f"{digest}.json"
    if seen.st_size >= REMEMBERED:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(note.read_text(encoding="utf-8")) == facts:
                return True
    if digest not in digests(path, len(digest)):
        return False
    if seen.st_size >= REMEMBERED:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, json.dumps(facts))
    return True


def digests(path: Path, length: int) -> list[str]:
    """Hexadecimal digests of that length which could name a file's content; see `has_digest`."""
    if length == 64:
        return [file_digest(path)]
    if length == 40:
        git = hashlib.sha1(b"blob %d\0" % os.path.getsize(path))
        return [file_digest(path, lambda: git), file_digest(path, "sha1")]
    raise ValueError(f"a digest of {length} hexadecimal digits; expected 64 (sha256) or 40 (git)")


def file_digest(path: Path, algorithm: str | Callable[[], Any] = "sha256") -> str:
    """Hex digest of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
