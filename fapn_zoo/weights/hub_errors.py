"""What went wrong between us, the Hub and the disk, in one line each and with what to do about it."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSING_STATUS = (408, 429, 500, 502, 503, 504)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
# Exceptions of the transport, by their package, since huggingface_hub has changed it more than once.
TRANSPORTS = {"requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2", "hf_xet"}


class Failure(Exception):
    """Why something could not be had.

    Args:
        reason: what is wrong.
        advice: what to do about it.
        passing: another attempt may help.
        pause: seconds to wait before it, where the Hub named them.
    """

    def __init__(self, reason: str, advice: str = "", *, passing: bool = False, pause: float | None = None):
        super().__init__("; ".join(filter(None, (reason, advice))))
        self.reason, self.advice, self.passing, self.pause = reason, advice, passing, pause


class Absent(Failure):
    """The Hub says that there is no such revision or file, so an older state in the cache is no answer."""


class Missing(Absent):
    """The repository and the revision are there, the file is not."""


class Local(Failure):
    """Something on this side is wrong, which no other way to the Hub can help."""


class Offline(Local):
    """The user has forbidden to ask the Hub."""


@dataclass(frozen=True)
class _Wish:
    """What was asked for, for the messages."""

    repo_id: str
    revision: str
    filename: str
    cache: Path
    size: int | None


@contextlib.contextmanager
def explained(repo_id: str, revision: str, filename: str, *, cache: Path, size: int | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a `Failure`; what is no trouble of Hub, network or disk stays itself.

    Args:
        repo_id, revision, filename: what is asked for.
        cache: where it would lie.
        size: of the file in bytes, where known.
    """
    try:
        yield
    except Exception as error:
        failure = _failure(error, _Wish(repo_id, revision, filename, cache, size))
        if failure is None:
            raise
        raise failure from error


def _failure(error: BaseException, wish: _Wish) -> Failure | None:
    from huggingface_hub import constants, errors

    elsewhere = "name another place with cache_dir= or HF_HOME"
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Offline(
            f"HF_HUB_OFFLINE is set and {wish.filename} is not in the cache {str(wish.cache)!r}",
            "unset it, or name a cache that has the file with cache_dir= or HF_HOME",
        )
    if getattr(error, "response", None) is not None:
        return _refusal(error, wish)
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    cause = " ".join(str(error).split()) or type(error).__name__
    # hf_xet gives the system's number in its text only.
    number = getattr(error, "errno", None) or int(next(iter(re.findall(r"\(os error (\d+)\)", cause)), 0))
    if number in NO_ROOM:
        return Local(_no_room(wish), f"make room, or {elsewhere}")
    if packages & TRANSPORTS or isinstance(error, (ConnectionError, RuntimeError)):  # hf_xet raises RuntimeError, too
        return Failure(
            f"no answer from {constants.ENDPOINT} for {wish.filename} ({cause[:150]})",
            "check connection, proxy and HF_ENDPOINT and try again: what arrived whole is kept",
            passing=True,
        )
    if number in NOT_WRITABLE:
        return Local(f"the cache {str(wish.cache)!r} cannot be written ({cause})", elsewhere)
    if isinstance(error, OSError) and "Consistency check failed" in cause:
        return Failure(
            f"{wish.filename} arrived with a wrong length", "try again later or over another connection", passing=True
        )
    return Failure(cause) if isinstance(error, (OSError, errors.HFValidationError)) else None


def _refusal(error: Any, wish: _Wish) -> Failure:
    """An answer of the Hub that is no success."""
    from huggingface_hub import constants, errors

    repo_id, page, status = wish.repo_id, f"{constants.ENDPOINT}/{wish.repo_id}", error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return Failure(
            f"{repo_id} is gated",
            f"accept its terms at {page} and set HF_TOKEN to a token of that account that may read gated repositories",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return Absent(f"{repo_id} has no revision {wish.revision!r}", f"{page} lists its branches and tags")
    if isinstance(error, errors.EntryNotFoundError):
        return Missing(f"{repo_id} holds no {wish.filename}", f"{page} lists its files")
    if status == 401 and "Invalid credentials" in str(error):
        return Failure(
            "the token is not valid",
            f"set HF_TOKEN to one from {constants.ENDPOINT}/settings/tokens, or unset it for a public repository",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return Failure(
            f"there is no repository {repo_id}, or it is private",
            "check the name, or set HF_TOKEN to a token that may read it",
        )
    if status in (401, 403):
        return Failure(f"the Hub refuses {wish.filename} ({status})", "set HF_TOKEN to a token that may read it")
    if status == 429:
        seconds = _asked_pause(error.response.headers)
        wait = "a while" if seconds is None else f"{seconds} s"
        return Failure(
            "the Hub limits requests from here (429)",
            f"wait {wait}, or set HF_TOKEN for a higher limit",
            passing=True,
            pause=seconds,
        )
    return Failure(f"the Hub answers {status} for {wish.filename}", "try again later", passing=status in PASSING_STATUS)


def _asked_pause(headers: Any) -> int | None:
    """Seconds until the Hub takes requests again: ``ratelimit: "api";r=0;t=55`` or ``retry-after: 55``."""
    asked, after = headers.get("ratelimit", ""), headers.get("retry-after", "")
    match = re.search(r"\bt=(\d+)", asked) or re.fullmatch(r"(\d+)", after)
    return int(match[1]) if match else None


def _no_room(wish: _Wish) -> str:
    needed = f"{wish.filename} of {wish.size / 1e6:.1f} MB" if wish.size else wish.filename
    free = ""
    with contextlib.suppress(OSError):
        free = f" ({shutil.disk_usage(wish.cache).free / 1e6:.1f} MB free)"
    return f"no room for {needed} in {str(wish.cache)!r}{free}"
