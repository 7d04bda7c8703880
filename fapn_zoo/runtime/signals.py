"""Being asked to stop: SIGINT and SIGTERM as a list that a loop looks at, or as an exception where they come.

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


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception: what is saved at Ctrl-C is saved here too. The command line ends with code 143."""


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is put into the list and nothing else happens; a second one raises at once.

    It raises KeyboardInterrupt or Terminated wherever the main thread is. In other threads the list stays empty.
    """
    seen: list[int] = []
    with _handled((signal.SIGINT, signal.SIGTERM), seen.append):
        yield seen


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM raises Terminated in the main thread, as SIGINT raises KeyboardInterrupt. Does nothing in other threads.

    A signal that the caller of the process has it ignore is still ignored.
    """
    wanted = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    with _handled(wanted, _interrupt):
        yield


def _interrupt(number: int) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def _handled(numbers: tuple[int, ...] | list[int], first: Callable[[int], None]) -> Iterator[None]:
    """Calls `first` with the first of these signals."""
    since: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not since:
            since.append(now)
            first(number)
        elif now > since[0] + ECHO:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _interrupt(number)

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread: signals are someone else's business
        for number in numbers:
            before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
