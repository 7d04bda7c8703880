"""Faults that the loopback Hub can play, as plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

CHUNK = 2**16  # bytes written at a time


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match, or with all of them where it is None.

    Attributes:
        kind: `status` answers `status` with `headers` and `message` and nothing of the file; `mute` takes the
            request and never answers; the others concern the body: `slow` waits `seconds` before each chunk,
            `stall` stops at `fraction` and keeps the connection open, `cut` closes it there, `wrong` flips the
            middle byte, `short` sends the first `fraction` of the file under a length that says it is whole.
        match: regular expression searched in `"METHOD /path"`; by default the transfer of the weights file.
    """

    kind: str
    match: str = r"^GET /cdn/"
    times: int | None = None
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    fraction: float = 0.4
    seconds: float = 0.1

    def strikes(self, line: str) -> bool:
        """Whether it concerns this request; counts it if so. Called with the Hub's lock held."""
        if self.times == 0 or not re.search(self.match, line):
            return False
        if self.times is not None:
            self.times -= 1
        return True
