"""What benchmarks print and write: rows, and under which circumstances they were measured."""

from __future__ import annotations

import csv
import datetime
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def print_row(row: Mapping[str, Any]) -> None:
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def run_facts(commit: str | None = None) -> dict[str, str]:
    """The columns that tell one run from another: commit (None: git's), date and command."""
    from fapn_zoo.runtime.provenance import git_commit  # not above: loading.py measures memory, and imports for itself

    return {
        "commit": commit or git_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"tests/benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any] | None = None) -> None:
    """Writes rows, which may lack columns of others; `facts` are the last columns of all."""
    facts = facts or {}
    columns = dict.fromkeys(name for row in rows for name in row)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *facts], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)
    print(f"wrote {path}")
