"""What the tests of downloads and uploads share: a table of faults and outcomes at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

FAULT = "hub fault"


@pytest.fixture
def outcome(request) -> Callable[[str, str], None]:
    """``outcome(fault, what came of it)`` adds a row to the table, once the test has passed."""
    def add(fault: str, text: str) -> None:
        # properties of a report reach the process that prints, whichever process ran the test
        request.node.user_properties.append((FAULT, (fault, text)))

    return add


def pytest_terminal_summary(terminalreporter) -> None:
    rows = [
        row for report in terminalreporter.stats.get("passed", []) for name, row in report.user_properties
        if name == FAULT and report.when == "call"
    ]
    if not rows:
        return
    width = max(len(fault) for fault, _ in rows)
    terminalreporter.section("faults and outcomes")
    for fault, text in rows:
        terminalreporter.write_line(f"{fault:{width}}  {text}")
