"""Progress bars on stderr: drawn in place on a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import math
import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 30.0  # between two lines in a file


def bar(shown: bool = True, **options: Any) -> tqdm:
    """A bar of tqdm, whose `options` are `iterable`, `total`, `initial`, `unit`, `desc` and `leave`.

    Where stderr is no terminal, it writes a whole line every half minute: none for what takes less.
    """
    if sys.stderr.isatty():
        return tqdm(disable=not shown, **options)
    return _Lines(disable=not shown, delay=SECONDS, mininterval=SECONDS, miniters=1, **options)


class _Lines(tqdm):
    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        self.fp.write(f"{self}\n")

    def close(self) -> None:
        self.delay = math.inf  # no last line: who asked for the work says what came of it
        super().close()

    @classmethod
    def write(cls, s: str, file: TextIO | None = None, end: str = "\n", nolock: bool = False) -> None:
        print(s, file=file, end=end)  # no line to be wiped before and drawn again behind it
