"""Tables of numbers: as aligned text, and as CSV files of known columns that rows are added to."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fapn_zoo.runtime.files import check_writable, read_text, write_text


def percent(value: float | None, width: int = 0) -> str:
    """A fraction in percent with two decimals, "-" for None, to the right of `width` characters."""
    return ("-" if value is None else f"{100 * value:.2f}").rjust(width)


def some(items: Iterable[Any], most: int = 5) -> str:
    """The first items with commas, and how many more there are."""
    shown = [str(item) for item in items]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line of text per row, the first cell to the left and the others to the right; the first row is the longest."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return ["  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def as_csv(rows: Iterable[Iterable[Any]]) -> str:
    """The text of a CSV file, its lines ending in "\\n"."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def read_rows(path: Path, columns: list[str], least: int | None = None) -> list[list[str]]:
    """The rows of a CSV file below its header, without empty lines; none where there is no file.

    Args:
        columns: what the header must hold, in this order.
        least: a file of an older version may have only the first so many columns or more; None asks for all.

    Raises:
        ValueError: other columns, or no UTF-8 text.
        OSError: nothing could be written to `path`: rows are read where some are to be added.
    """
    check_writable(path)
    rows = list(csv.reader(io.StringIO(read_text(path)))) if path.is_file() else []
    header = rows[0] if rows else columns
    if header != columns[: len(header)] or len(header) < (least or len(columns)):
        raise ValueError(f"{path} has the columns {','.join(header)}; expected {','.join(columns)}")
    return [row for row in rows[1:] if row]


def append_rows(path: Path, columns: list[str], rows: Iterable[Mapping[str, Any]], least: int | None = None) -> None:
    """Appends rows, cells by column, to a CSV file. It is made with its folder and header where it is missing.

    An older file gets the columns that it lacks, empty in its rows. The file is replaced whole, or not at all.
    Arguments and errors as for `read_rows`.
    """
    old = [[*row, *[""] * (len(columns) - len(row))] for row in read_rows(path, columns, least)]
    new = [[row.get(name, "") for name in columns] for row in rows]
    write_text(path, as_csv([columns, *old, *new]))
