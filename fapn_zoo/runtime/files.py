"""Writing files so that readers see the old or the new one, never a half."""

from __future__ import annotations

import codecs
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Runs `write` on a file beside `path` and renames it; after an error or Ctrl-C nothing of it is left."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "xb") as file:
            write(file)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_whole` for UTF-8 text; makes the folder."""
    make_folder(path.parent)
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """`write_text` for plain JSON values; ValueError, which names the file, for a number that is NaN or infinite."""
    write_text(path, json_text(value, path) + "\n")


def json_text(value: Any, path: Path, **style: Any) -> str:
    """The value as JSON for `path`. JSON has no NaN and no infinity: ValueError, for what is undefined is None."""
    try:
        return json.dumps(value, allow_nan=False, **({"indent": 1} | style))
    except ValueError as error:
        raise ValueError(f"cannot write {path}: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError, which names the file, where it is none."""
    value = load_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not readable JSON: it holds no object")
    return value


def load_json(path: Path, strict: bool = False) -> Any:
    """The value in a JSON file, UTF-8 with a byte-order mark or without; ValueError, which names the file and its line.

    `strict` also refuses a key that an object has twice: the first of its values would be lost.
    """
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw[:4]:
        raise ValueError(f"{path} is not readable JSON: it is UTF-16 text; save it as UTF-8")
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unlike_keys if strict else None)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not readable JSON: line {line} is no UTF-8 text; save it as UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path} is not readable JSON: its brackets are nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None


def _unlike_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return value


def read_text(path: Path) -> str:
    """The UTF-8 text of a file; ValueError, which names it, where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from None


def make_folder(path: Path) -> None:
    """Makes a folder and those above it where they are missing; OSError, which names `path`, where that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next((above for above in (path, *path.parents) if above.is_file()), path)
        raise NotADirectoryError(f"cannot make the folder {path}: {file} is a file") from None
    except OSError as error:
        raise type(error)(f"cannot make the folder {path}: {error.strerror}") from None


def check_writable(path: Path) -> None:
    """OSError where a file could not be written to `path`: to be called before work that takes long."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {path}: no permission to write in {above}")


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Where what was fetched is kept: `cache_dir`, `FAPN_ZOO_CACHE`, or fapn_zoo in the user's cache folder."""
    if chosen := cache_dir or os.environ.get("FAPN_ZOO_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fapn_zoo"
