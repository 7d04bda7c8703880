"""Writing files so that readers see the old or the new one, never a half."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Runs ``write`` on a file beside ``path`` and renames it; after an error or Ctrl-C nothing of it is left."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "xb") as file:
            write(file)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_whole` for UTF-8 text."""
    write_whole(path, lambda file: file.write(text.encode()))


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Where what was fetched is kept: ``cache_dir``, ``FAPN_ZOO_CACHE``, or fapn_zoo in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir)
    if chosen := os.environ.get("FAPN_ZOO_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fapn_zoo"
