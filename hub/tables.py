"""Writes the table of measured scores into README.md from hub/results/semantic.csv; a test keeps the two in step.

    python hub/tables.py
"""

from __future__ import annotations

import csv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "hub" / "results" / "semantic.csv"
BEGIN, END = "<!-- results: written by hub/tables.py -->\n", "<!-- end of results -->"
COLUMNS = {"model": "model", "weights": "weights", "data": "data", "split": "split", "miou": "mIoU",
           "pixel_acc": "pixel acc", "params": "parameters", "seed": "seed"}


def table() -> str:
    """The rows of the CSV file as Markdown."""
    with open(RESULTS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        row["params"] = f"{int(row['params']) / 1e6:.2f} M"
        lines.append("| " + " | ".join(row[name] for name in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def updated(text: str) -> str:
    """README text with a fresh table. Raises ValueError where the markers are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README} lacks the line {BEGIN.strip()!r} or {END!r}")
    return before + begin + table() + end + after


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
