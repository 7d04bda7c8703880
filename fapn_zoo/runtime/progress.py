"""Progress bars on stderr: drawn in place on a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from typing import Any, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

SECONDS = 30.0  # between two lines in a file


def bar(shown: bool = True, **options: Any) -> tqdm:
    """A bar of tqdm, whose `options` are `iterable`, `total`, `initial`, `unit`, `desc` and `leave`.

    On a terminal, what is logged while it is up goes above it. Where stderr is no terminal, it writes a whole line
    every half minute: none for what takes less. Close it before an error is printed.
    """
    if sys.stderr.isatty():
        return _Drawn(disable=not shown, **options)
    return _Lines(disable=not shown, delay=SECONDS, mininterval=SECONDS, miniters=1, **options)


class _Drawn(tqdm):
    _above: contextlib.ExitStack | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not self.disable and any(getattr(h, "stream", None) is sys.stderr for h in logging.root.handlers):
            self._above = contextlib.ExitStack()
            self._above.enter_context(logging_redirect_tqdm())

    def close(self) -> None:
        super().close()
        if self._above is not None:
            self._above.close()


class _Lines(tqdm):
    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        self.fp.write(f"{self}\n")

    def close(self) -> None:
        self.delay = math.inf  # no last line: who asked for the work says what came of it
        super().close()

    @classmethod
    def write(cls, s: str, file: TextIO | None = None, end: str = "\n", nolock: bool = False) -> None:
        print(s, file=file, end=end)  # no line to be wiped before and drawn again behind it
