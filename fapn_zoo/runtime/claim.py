"""A folder that one process at a time may write to."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fapn_zoo.runtime.files import check_writable, make_folder

logger = logging.getLogger(__name__)

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems


@contextlib.contextmanager
def claimed(folder: Path, work: str) -> Iterator[None]:
    """Holds a folder, made if missing, for the block; others may read there, but not claim it.

    The system frees the claim of a process that dies, however it dies. At the end nothing is left of the claim, nor of
    a folder that was made for it and holds nothing else.

    Args:
        work: what is done there, for the error of whoever comes second.

    Raises:
        ValueError: another process or thread holds it. OSError: it cannot be made, or not be written to.
    """
    file = folder / LOCK
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    check_writable(file)
    lock = FileLock(file, fallback_to_soft=False)  # a file alone would outlive a killed process
    try:
        lock.acquire(timeout=0)
    except Timeout:
        hint = "wait for it or choose another folder"
        raise ValueError(f"{folder} is in use by another {work}; {hint}") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise type(error)(f"cannot write {file}: {error.strerror}") from None
        logger.warning("%s cannot be locked here (%s): start no second %s in it", folder, error.strerror, work)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # before it is freed, so that nobody's else is removed
        lock.release()
        for path in missing:
            with contextlib.suppress(OSError):  # it is in use
                path.rmdir()
