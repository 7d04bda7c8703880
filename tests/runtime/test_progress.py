"""Progress in a file or a pipe: whole lines, far apart, and none for what is soon done."""

from __future__ import annotations

import logging
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


def on_terminal(text: str) -> list[str]:
    """The lines that a terminal shows in the end: what follows a carriage return is written over what was there."""
    shown = []
    for line in text.split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        shown.append("".join(cells).rstrip())
    return shown


@pytest.mark.unit
def test_what_is_logged_goes_above_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    handler = logging.StreamHandler(sys.stderr)
    logging.root.addHandler(handler)
    request.addfinalizer(lambda: logging.root.removeHandler(handler))
    before = list(logging.root.handlers)
    with progress.bar(total=2, unit="image", ncols=60) as shown:
        shown.update()
        with progress.bar(total=2, unit="step", ncols=60, leave=False):
            logging.warning("within both")
        logging.warning("within one")
    logging.warning("after")
    assert logging.root.handlers == before
    lines = on_terminal(capsys.readouterr().err.replace("\x1b[A", ""))
    for words in ("within both", "within one", "after"):
        assert lines.count(words) == 1, lines


@pytest.mark.unit
def test_a_library_without_log_gets_no_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(logging.root, "handlers", [])
    with progress.bar(total=1, unit="image"):
        assert logging.root.handlers == []
