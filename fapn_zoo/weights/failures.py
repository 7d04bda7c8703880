"""What everything that talks to a server shares: a failure is one line, and passing trouble is waited for."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

ATTEMPTS = 3
FIRST_PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
LONGEST_PAUSE = 60.0  # seconds; where a server asks for more, the user is told instead
PATIENCE = 60.0  # seconds after which no further attempt is begun; a client makes some of its own, too
PASSING_STATUS = (408, 429, 500, 502, 503, 504)

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


class Local(Failure):
    """Something on this side is wrong, which no other way to the server can help."""


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
