"""What can go wrong with servers, in one line with what to do about it; passing trouble is waited for."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import json
import logging
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from importlib.resources import files
from typing import Any, TypeVar

from fapn_zoo.runtime.files import NO_ROOM

logger = logging.getLogger(__name__)

ATTEMPTS = 3
FIRST_PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
LONGEST_PAUSE = 60.0  # seconds; where a server asks for more, the user is told instead
PATIENCE = 60.0  # seconds after which no further attempt is begun; a client makes some of its own, too
PASSING_STATUS = (408, 429, 500, 502, 503, 504)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
# Exceptions of the transport, by their package, since huggingface_hub has changed it more than once.
TRANSPORTS = {"requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2", "hf_xet"}

T = TypeVar("T")


@dataclass(eq=False)
class Failure(Exception):
    """Why something could not be had.

    Attributes:
        reason: what is wrong.
        advice: what to do about it.
        passing: another attempt may help.
        pause: seconds to wait before it, where the server named them.
        kind: the built-in error that fits, for callers who raise one.
    """

    reason: str
    advice: str = ""
    _: KW_ONLY
    passing: bool = False
    pause: float | None = None
    kind: type[OSError] = OSError

    def __str__(self) -> str:
        return "; ".join(filter(None, (self.reason, self.advice)))


def patiently(call: Callable[[], T], attempts: int, progress: Callable[[], int] | None = None) -> T:
    """Calls up to so many times for as long as the `Failure` may pass.

    Args:
        call: what may raise a `Failure`.
        attempts: at least 1.
        progress: measures what has arrived. Attempts are then counted since it last grew, however long they take.
    """
    begin, most, attempt = time.monotonic(), progress() if progress else 0, 1
    while True:
        try:
            return call()
        except Failure as failure:
            if progress and (now := progress()) > most:
                most, attempt = now, 1
            pause = max(FIRST_PAUSE * 2 ** (attempt - 1), failure.pause or 0)
            late = progress is None and time.monotonic() - begin > PATIENCE
            if not failure.passing or attempt == attempts or pause > LONGEST_PAUSE or late:
                raise
            logger.warning("%s; trying again in %.0f s (%d of %d)", failure.reason, pause, attempt, attempts - 1)
            time.sleep(pause)
            attempt += 1


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those it wraps, the innermost last; some libraries keep them among their arguments."""
    while error is not None:
        yield error
        inside = (error.__cause__, getattr(error, "reason", None), *error.args)
        error = next((inner for inner in inside if isinstance(inner, BaseException)), None)


def is_unresolved(error: BaseException) -> bool:
    """Whether a host name has no address, as on a machine without a network: asking again only takes time."""
    return any(isinstance(cause, socket.gaierror) for cause in causes(error))


def system_number(error: BaseException) -> int:
    """The system's number of an error, 0 without one; hf_xet and safetensors give it in their text only."""
    return getattr(error, "errno", None) or int(next(iter(re.findall(r"\(os error (\d+)\)", str(error))), 0))


class Absent(Failure):
    """The Hub says that there is no such revision or file, so an older state in the cache is no answer."""


class Missing(Absent):
    """The repository and the revision are there, the file is not."""


class Offline(Failure):
    """The user has forbidden to ask the Hub."""


def irreplaceable(failure: Failure, damage: str) -> Failure:
    """The failure to fetch a file whose copy in the cache is no good; `damage` is a clause that names it."""
    if isinstance(failure, Offline):
        words = {"reason": f"{damage}, and HF_HUB_OFFLINE is set", "advice": "unset it to fetch the file again"}
    else:
        words = {"reason": f"{damage}, and no other can be had: {failure.reason}"}
    return dataclasses.replace(failure, **words)


CLASSES = {"Absent": Absent, "Missing": Missing, "Offline": Offline}


@dataclass(frozen=True)
class Wish:
    """What is asked of the Hub.

    Attributes:
        kind: "download" of a file or "upload" of a commit, keys of refusals.json.
        repo_id, revision, filename: which one.
        cache: where a file would lie. size: its bytes, where known.
    """

    kind: str
    repo_id: str
    revision: str = ""
    filename: str = ""
    cache: str = ""
    size: int | None = None


@contextlib.contextmanager
def explained(wish: Wish) -> Iterator[None]:
    """Turns what huggingface_hub raises into a `Failure`; what is no trouble of Hub, network or disk stays itself."""
    try:
        yield
    except Exception as error:
        if (failure := _failure(error, wish)) is None:
            raise
        raise failure from error


def _failure(error: Any, wish: Wish) -> Failure | None:
    """An error in the words of refusals.json; None where none of its rows fits."""
    from huggingface_hub import constants, errors

    # The client wraps what happened to one file.
    if isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    said = " ".join(str(getattr(error, "server_message", None) or error).split())[:300] or type(error).__name__
    response = getattr(error, "response", None)
    status = 0 if response is None else response.status_code
    cases = _cases(error, said) if response is None else {"answer"}

    def fits(row: dict[str, Any]) -> bool:
        known = "error" not in row or isinstance(error, getattr(errors, row["error"]))
        told = status in row.get("status", [status]) and row.get("says", "") in str(error)
        return known and told and row.get("when", "answer") in cases

    table = json.loads((files("fapn_zoo") / "weights" / "refusals.json").read_text(encoding="utf-8"))
    if (row := next(filter(fits, table[wish.kind]), None)) is None:
        return None
    pause = _asked_pause(error) if status in PASSING_STATUS else None
    facts = {"status": status, "said": said, "wait": "a while" if pause is None else f"{pause} s"}
    facts |= {"endpoint": constants.ENDPOINT, "page": f"{constants.ENDPOINT}/{wish.repo_id}"} | vars(wish)
    facts |= {"of_size": f" of {wish.size / 1e6:.1f} MB" if wish.size else "", "free": ""}
    with contextlib.suppress(OSError):
        facts["free"] = f" ({shutil.disk_usage(wish.cache).free / 1e6:.1f} MB free)"
    passing = status in PASSING_STATUS or (row.get("passing", False) and not is_unresolved(error))
    manner = {"passing": passing, "pause": pause, "kind": getattr(builtins, row.get("raises", "OSError"))}
    failure = CLASSES.get(row.get("class"), Failure)
    return failure(row["reason"].format(**facts), row["advice"].format(**facts), **manner)


def _cases(error: Exception, said: str) -> set[str]:
    """What an error that is no answer of the Hub may be: words of refusals.json."""
    from huggingface_hub import errors

    number, packages = system_number(error), {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    cases = {
        "offline": isinstance(error, errors.OfflineModeIsEnabled),
        "no room": number in NO_ROOM,
        # hf_xet, which carries large files, says everything with RuntimeError.
        "broken": packages & TRANSPORTS or isinstance(error, (ConnectionError, TimeoutError, RuntimeError)),
        "not writable": number in NOT_WRITABLE,
        "cut": isinstance(error, OSError) and "Consistency check failed" in said,
        "value": isinstance(error, ValueError),
        "other": isinstance(error, (OSError, errors.HFValidationError)),
    }
    return {case for case, found in cases.items() if found}


def _asked_pause(error: Any) -> int | None:
    """Seconds until the Hub takes requests again: `ratelimit: "api";r=0;t=55` or `retry-after: 55`."""
    asked, after = (error.response.headers.get(name, "") for name in ("ratelimit", "retry-after"))
    match = re.search(r"\bt=(\d+)", asked) or re.fullmatch(r"(\d+)", after)
    return int(match[1]) if match else None
