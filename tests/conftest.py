"""Shared by all tests: one thread per process, since tests run one process per core and sums then never vary.

A test that does `record_property("row of TITLE", {"column": "text", ...})` gets its row printed in a table of that
title at the end of the run, whichever process it ran in.
"""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["toys.hub.fixtures"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    tables: dict[str, list[dict[str, str]]] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for key, row in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ():
            if key.startswith("row of "):
                tables.setdefault(key.removeprefix("row of "), []).append(row)
    for title, rows in tables.items():
        columns = list(rows[0])
        rows.insert(0, dict(zip(columns, columns, strict=True)))
        widths = [max(len(str(row[column])) for row in rows) for column in columns]
        terminalreporter.section(title)
        for row in rows:
            cells = [str(row[column]).ljust(width) for column, width in zip(columns, widths, strict=True)]
            terminalreporter.line("  ".join(cells).rstrip())
