"""Being asked to stop: SIGINT, SIGTERM and SIGHUP as a list that a loop looks at, or as an exception where they come.

Who asks may do so twice within an instant: GNU `timeout` signals its child and then the child's group, torchrun sends
what it got, or a SIGTERM, on to processes that Ctrl-C has already reached. That counts as once. Whoever asks again
after that wants the end at once: the second signal raises, and a third one has the effect that it has without us.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

ECHO = 1.0  # seconds after the first signal in which others say the same


# Ctrl-C, what `kill` and batch systems send, and the end of the terminal.
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, as an exception: what is saved at Ctrl-C is saved here too."""

    number: int = signal.SIGTERM


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The first of these signals is put into the list and nothing else happens; a second one raises at once.

    It raises KeyboardInterrupt or Terminated wherever the main thread is. In other threads the list stays empty.
    """
    seen: list[int] = []
    with _handled(seen.append):
        yield seen


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated in the main thread, as SIGINT raises KeyboardInterrupt; nothing in others."""
    with _handled(_interrupt):
        yield


def _interrupt(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    stop = Terminated()
    stop.number = number
    raise stop


@contextlib.contextmanager
def _handled(first: Callable[[int], None]) -> Iterator[None]:
    """Calls `first` with the first of these signals, but for those that the process was started to ignore (nohup)."""
    since: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not since:
            since.append(now)
            first(number)
        elif now > since[0] + ECHO:
            for other in before:
                signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_DFL)
            _interrupt(number)

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread: signals are someone else's business
        for number in STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
