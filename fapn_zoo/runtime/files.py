"""Writing files so that readers see the old or the new one, never a half, and a full disk is one line.

What is being written has a name of its own (`.NAME.XXXXXXXX.part`). What a killed process leaves of that is removed by
a later writer in that folder.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The last two were written by earlier versions: checkpoints and weights folders.
LEAVING = re.compile(r"\.(.+\.[0-9a-f]{8}\.part|step-\d+\.\d+\.tmp|writing-\w{8})")
NAME_BYTES = 220  # of 255 that most file systems have: room for an ending, and for what `_part` adds
DAY = 24 * 60 * 60.0  # seconds; what is older has no writer any more

_SWEPT: set[Path] = set()  # folders in which this process has looked for leavings


def write_whole(path: Path, write: Callable[[BinaryIO], Any], *, sync: bool = False) -> None:
    """Runs `write` on a file beside `path` and renames it; after an error or Ctrl-C nothing of it is left.

    Args:
        write: gets a file that takes everything: an error of the disk is raised here, after `write` has returned.
        sync: wait until the bytes are on the disk.

    Raises:
        OSError: one line with the path and the reason; where there is no room, also with the bytes that the file needs
            and those that are free. `errno` is the system's number.
    """
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    target = _Target()
    try:
        with _part(path, lambda part: part.touch(exist_ok=False)) as part:
            target.file = open(part, "wb")  # noqa: SIM115 - finish() closes it
            try:
                write(target)
            finally:
                target.finish(sync)
            if target.error is not None:
                raise target.error
            os.replace(part, path)
    except Exception as error:
        told = target.error or error
        if not isinstance(told, OSError):
            raise
        raise _failure(told, path, target.size) from error


class _Target(io.RawIOBase):
    """What `write` gets. After the first error of the disk it only counts: libraries turn such errors into their own.

    Attributes:
        size: bytes that were written, or would have been. error: the first error of the disk.
    """

    file: BinaryIO

    def __init__(self) -> None:
        self.size = 0
        self.error: OSError | None = None

    def _try(self, action: Callable[..., Any], *arguments: Any) -> None:
        try:
            if self.error is None:
                action(*arguments)
        except OSError as error:
            self.error = error

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self._try(self.file.write, data)
        self.size += length
        return length

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._try(self.file.flush)

    def finish(self, sync: bool) -> None:
        """Some file systems say only now that there is no room."""
        self.flush()
        if sync:
            self._try(os.fsync, self.file.fileno())
        try:
            self.file.close()
        except OSError as error:  # also where an earlier error left bytes in the buffer
            self.error = self.error or error

    def writable(self) -> bool:
        return True


def _failure(error: OSError, path: Path, size: int) -> OSError:
    """What the system said of writing a file, in one line."""
    text = f"cannot write {path}: {error.strerror or error}"
    if error.errno in NO_ROOM:
        folder = next(above for above in path.absolute().parents if above.is_dir())
        text += f"; it needs {size} bytes, {shutil.disk_usage(folder).free} are free there"
    found = type(error)(text)
    found.errno = error.errno
    return found


@contextlib.contextmanager
def _part(path: Path, make: Callable[[Path], Any]) -> Iterator[Path]:
    """A new file or folder beside `path`, as `make` makes it; what is left of it in the end is removed."""
    folder = path.parent.absolute()
    if folder not in _SWEPT:
        remove_leavings(folder)
        _SWEPT.add(folder)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        make(part)
        yield part
    finally:
        _remove(part)


def remove_leavings(folder: Path, alone: bool = False) -> None:
    """Removes what killed processes have left half written in a folder, if it is there.

    Args:
        alone: nobody else writes in this folder now; else what is younger than a `DAY` stays.
    """
    if not folder.is_dir():
        return
    for path in [folder / name for name in os.listdir(folder) if LEAVING.fullmatch(name)]:
        with contextlib.suppress(OSError):  # another process was faster
            if alone or time.time() - path.stat().st_mtime > DAY:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, called: Path | None = None) -> Iterator[Path]:
    """A folder beside `path` to fill before it, or its files, get their place; it is gone in the end.

    An OSError that names it names `path` instead, or `called`.
    """
    with _part(path, Path.mkdir) as folder:
        try:
            yield folder
        except OSError as error:
            if str(folder) not in str(error):
                raise
            told = type(error)(str(error).replace(str(folder), str(called or path)))
            told.errno = error.errno
            raise told from error


def remove_folder(path: Path) -> None:
    """Removes a folder so that readers see all of it or nothing."""
    dead = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    os.rename(path, dead)
    shutil.rmtree(dead, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Puts files that belong together into a folder, in place of older ones.

    The last name is the file that readers begin with. Its older one goes first: a process that is killed here leaves
    a folder that nobody can read, and not a mixture of old and new.
    """
    (target / names[-1]).unlink(missing_ok=True)
    for name in names:
        os.replace(source / name, target / name)


def append_line(path: Path, text: str) -> None:
    """Adds a line to a text file; OSError as of `write_whole`, after which a part of the line may be there."""
    data = f"{text}\n".encode()
    try:
        with open(path, "ab") as file:
            file.write(data)
    except OSError as error:
        raise _failure(error, path, len(data)) from error


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


def short_name(name: str) -> str:
    """A name, or so much of its beginning that a file may be called so with an ending of at most 20 bytes."""
    name = name[:NAME_BYTES]
    while len(os.fsencode(name)) > NAME_BYTES:
        name = name[:-1]
    return name


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
