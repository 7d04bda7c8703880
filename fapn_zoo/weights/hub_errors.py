"""What went wrong between us, the Hub and the disk, in one line each and with what to do about it."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fapn_zoo.runtime.files import NO_ROOM
from fapn_zoo.weights.failures import PASSING_STATUS, Failure, Local, is_unresolved, system_number

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
# Exceptions of the transport, by their package, since huggingface_hub has changed it more than once.
TRANSPORTS = {"requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2", "hf_xet"}


class Absent(Failure):
    """The Hub says that there is no such revision or file, so an older state in the cache is no answer."""


class Missing(Absent):
    """The repository and the revision are there, the file is not."""


class Offline(Local):
    """The user has forbidden to ask the Hub."""


def irreplaceable(failure: Failure, damage: str) -> Failure:
    """The failure to fetch a file whose copy in the cache is no good; `damage` is a clause that names it."""
    if isinstance(failure, Offline):
        words = {"reason": f"{damage}, and HF_HUB_OFFLINE is set", "advice": "unset it to fetch the file again"}
    else:
        words = {"reason": f"{damage}, and no other can be had: {failure.reason}"}
    return dataclasses.replace(failure, **words)


@contextlib.contextmanager
def explained(wish: Download | Upload) -> Iterator[None]:
    """Turns what huggingface_hub raises into a `Failure`; what is no trouble of Hub, network or disk stays itself."""
    try:
        yield
    except Exception as error:
        if (failure := _failure(error, wish)) is None:
            raise
        raise failure from error


def _failure(error: Exception, wish: Download | Upload) -> Failure | None:
    from huggingface_hub import errors

    # The client wraps what happened to one file.
    if isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    said = " ".join(str(getattr(error, "server_message", None) or error).split())[:300] or type(error).__name__
    response = getattr(error, "response", None)
    if response is not None:
        return _refused(wish, error, response.status_code, said)
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    # hf_xet, which carries large files, says everything with RuntimeError.
    broken = packages & TRANSPORTS or isinstance(error, (ConnectionError, TimeoutError, RuntimeError))
    return wish.failed(error, said, bool(broken))


def _refused(wish: Download | Upload, error: Any, status: int, said: str) -> Failure:
    """An answer of the Hub that is no success, in the words of refusals.json."""
    from huggingface_hub import constants, errors

    def fits(row: dict[str, Any]) -> bool:
        known = "error" not in row or isinstance(error, getattr(errors, row["error"]))
        return known and status in row.get("status", [status]) and row.get("says", "") in str(error)

    table = json.loads((files("fapn_zoo") / "weights" / "refusals.json").read_text(encoding="utf-8"))
    row = next(filter(fits, table["download" if isinstance(wish, Download) else "upload"]))
    pause = _asked_pause(error) if status in PASSING_STATUS else None
    facts = {"status": status, "said": said, "wait": "a while" if pause is None else f"{pause} s"}
    facts |= {"endpoint": constants.ENDPOINT, "page": f"{constants.ENDPOINT}/{wish.repo_id}"} | vars(wish)
    reason, advice = row["reason"].format(**facts), row["advice"].format(**facts)
    kinds = {"Absent": Absent, "Missing": Missing}
    kind = getattr(builtins, row.get("raises", "OSError"))
    failure = kinds.get(row.get("missing"), Failure)
    return failure(reason, advice, passing=status in PASSING_STATUS, pause=pause, kind=kind)


@dataclass(frozen=True)
class Download:
    """A file that is asked for.

    Attributes:
        repo_id, revision, filename: which one.
        cache: where it would lie.
        size: of the file in bytes, where known.
    """

    repo_id: str
    revision: str
    filename: str
    cache: Path
    size: int | None = None

    def failed(self, error: Exception, said: str, broken: bool) -> Failure | None:
        """All that is no answer. `broken`: the connection is, or there is none."""
        from huggingface_hub import constants, errors

        elsewhere = "name another place with cache_dir= or HF_HOME"
        number = system_number(error)
        if isinstance(error, errors.OfflineModeIsEnabled):
            reason = f"HF_HUB_OFFLINE is set and {self.filename} is not in the cache {str(self.cache)!r}"
            return Offline(reason, "unset it, or name a cache that has the file with cache_dir= or HF_HOME")
        if number in NO_ROOM:
            needed = f"{self.filename} of {self.size / 1e6:.1f} MB" if self.size else self.filename
            free = ""
            with contextlib.suppress(OSError):
                free = f" ({shutil.disk_usage(self.cache).free / 1e6:.1f} MB free)"
            return Local(f"no room for {needed} in {str(self.cache)!r}{free}", f"make room, or {elsewhere}")
        if broken:
            reason = f"no answer from {constants.ENDPOINT} for {self.filename} ({said[:150]})"
            advice = "check connection, proxy and HF_ENDPOINT and try again: what arrived whole is kept"
            return Failure(reason, advice, passing=not is_unresolved(error))
        if number in NOT_WRITABLE:
            return Local(f"the cache {str(self.cache)!r} cannot be written ({said})", elsewhere)
        if isinstance(error, OSError) and "Consistency check failed" in said:
            advice = "try again later or over another connection"
            return Failure(f"{self.filename} arrived with a wrong length", advice, passing=True)
        return Failure(said) if isinstance(error, (OSError, errors.HFValidationError)) else None


@dataclass(frozen=True)
class Upload:
    """A commit to a repository."""

    repo_id: str

    def failed(self, error: Exception, said: str, broken: bool) -> Failure | None:
        from huggingface_hub import constants

        if isinstance(error, ValueError):
            return Failure(f"the Hub refuses the upload to {self.repo_id} (card: {said})")
        if not broken:
            return None
        manner = {"passing": not is_unresolved(error), "kind": ConnectionError}
        reason = f"no connection to {constants.ENDPOINT}, or it broke ({said})"
        return Failure(reason, "nothing is half there, push again", **manner)


def _asked_pause(error: Any) -> int | None:
    """Seconds until the Hub takes requests again: `ratelimit: "api";r=0;t=55` or `retry-after: 55`."""
    asked, after = (error.response.headers.get(name, "") for name in ("ratelimit", "retry-after"))
    match = re.search(r"\bt=(\d+)", asked) or re.fullmatch(r"(\d+)", after)
    return int(match[1]) if match else None
