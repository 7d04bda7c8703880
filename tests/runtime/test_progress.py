"""Progress in a file or a pipe: whole lines, far apart, and none for what is soon done."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from fapn_zoo.runtime import progress

CODE = """
import sys, time
from fapn_zoo.runtime import progress
progress.SECONDS = float(sys.argv[1])
start = time.monotonic()
with progress.bar(total=60, unit="image") as shown:
    for index in range(60):
        time.sleep(0.01)
        if index == 30:
            shown.write("error: no image", file=sys.stderr)
        shown.update()
print(time.monotonic() - start)
for item in progress.bar(iterable=iter("abc"), unit="image"):
    pass
with progress.bar(False, total=1, unit="image", leave=False) as shown:
    shown.update()
"""


def written(seconds: float) -> tuple[str, float]:
    """What came through the pipe, and how many seconds the first bar was up."""
    done = subprocess.run([sys.executable, "-c", CODE, str(seconds)], capture_output=True, check=True)
    return done.stderr.decode(), float(done.stdout)


@pytest.mark.unit
def test_a_pipe_gets_whole_lines_far_apart() -> None:
    text, took = written(0.2)
    lines = text.split("\n")
    assert lines.pop() == "" and "error: no image" in lines
    lines.remove("error: no image")
    assert 1 <= len(lines) <= took / 0.2
    assert all(re.fullmatch(r" *\d+%\|.{10}\| \d+/60 \[\S+<\S+, .+image/?s?\]", line) for line in lines), lines


@pytest.mark.unit
def test_what_is_soon_done_is_not_worth_a_line() -> None:
    assert written(progress.SECONDS)[0] == "error: no image\n"


@pytest.mark.unit
def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.bar(total=2, unit="image") as shown:
        shown.update(2)
    err = capsys.readouterr().err
    assert err.startswith("\r  0%|") and "2/2" in err
