"""What a training process needs besides training: a thread that loads ahead, stop signals, one voice of many."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has written a checkpoint; the message says how to continue."""


def in_background(items: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """The same items, made by a background thread that stays `depth` ahead; an error comes out in its place."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: Any, error: BaseException | None) -> bool:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=0.1)
                return True
        return False

    def fill() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=fill, daemon=True, name="batches")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join()


def on_main(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """Runs the action on the main process; all processes get its result or its error."""
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = action()
        except (ValueError, OSError) as error:
            answer[1] = error
    answer = broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM append to the list instead of ending the process; a second one ends it."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in seen:  # torchrun adds a SIGTERM of its own to the first SIGINT
            raise KeyboardInterrupt
        seen.append(number)

    try:
        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are someone else's business
        before = {}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
