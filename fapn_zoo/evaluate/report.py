"""A report as a text table, a JSON file and a row of a CSV table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fapn_zoo.runtime import tables
from fapn_zoo.runtime.files import make_folder, write_text
from fapn_zoo.runtime.tables import append_rows, read_rows
from fapn_zoo.tasks import TASKS


def csv_columns() -> list[str]:
    """The columns of result tables: facts, the first task's scores among them, and then those of all others."""
    first, *others = (task.columns for task in TASKS.values())
    return [
        *_first_columns(),
        *"scales flip window class_map".split(),
        *first.near,
        *(name for columns in others for name in columns.table),
    ]


def _first_columns() -> list[str]:
    """The columns that tables of the first version had."""
    facts = "params amp device seconds torch fapn_zoo commit seed date command".split()
    return [*"model weights data split task images".split(), *next(iter(TASKS.values())).columns.table, *facts]


CSV_COLUMNS = csv_columns()


def manner(report: dict[str, Any]) -> str:
    """How the images were shown and scored, where it was not one whole image at one size; else nothing."""
    words = []
    if report["scales"]:
        words.append("scales " + ", ".join(f"{scale:g}" for scale in report["scales"]))
    if report["flip"]:
        words.append("mirrored")
    if report["window"]:
        words.append("windows {} x {} every {} x {}".format(*report["window"], *report["stride"]))
    if report["amp"] != "no":
        words.append(report["amp"])
    if report["class_map"]:
        words.append("classes mapped")
    if report["unscored"]:
        words.append(f"not scored: {', '.join(report['unscored'])}")
    return "; ".join(words)


def render(report: dict[str, Any]) -> str:
    """The report as a text table, in percent."""
    near, names = report.get("boundary", {}), TASKS[report["task"]].columns
    columns, means = names.by_class, names.means
    labels = [*means.values(), *(names.near[name] for name in near)]
    width = max(map(len, [*labels, *(row["name"] for row in report["classes"])]))
    extra = "  5 px band  b. IoU" if near else ""
    lines = [
        f"{report['model']}  {report['weights']}".rstrip(),
        f"{report['data']} {report['split']}: {report['images']} images, {report['seconds']} s on {report['device']}",
        *filter(None, [manner(report)]),
        "",
        f"{'class':<{width}}" + "".join(f"  {label:>6}" for label in columns.values()) + extra,
    ]
    for row in report["classes"]:
        line = f"{row['name']:<{width}}" + "".join(f"  {percent(row[name])}" for name in columns)
        lines.append(line + (f"  {percent(row['band_5']):>9}  {percent(row['boundary_iou'])}" if near else ""))
    lines.append("")
    lines += [f"{label:<{width}}  {percent(report[name])}" for name, label in means.items()]
    lines += [f"{names.near[name]:<{width}}  {percent(value)}" for name, value in near.items()]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """Six characters: percent with two decimals, or a dash."""
    return f"{tables.percent(value):>6}"


def write_report(
    report: dict[str, Any], json: str | os.PathLike | None = None, csv: str | os.PathLike | None = None
) -> None:
    """Writes the report as a JSON file and/or appends it as one row to a CSV table.

    Both are written beside their place and renamed. The CSV has the columns of `CSV_COLUMNS`, scores in percent with
    two decimals; a missing file is made with its header, and a file with the first of these columns only, of an older
    version, gets the others, empty in its rows.

    Raises:
        ValueError: the CSV file has another header.
    """
    if json is not None:
        write(Path(json), to_json(report))
    if csv is not None:
        append_rows(Path(csv), csv_columns(), [csv_row(report)], len(_first_columns()))


def to_json(report: dict[str, Any]) -> str:
    """Text of a JSON file."""
    return json.dumps(report, indent=1) + "\n"


def check_csv(path: str | os.PathLike) -> None:
    """ValueError where a CSV table has other columns than `write_report` writes; OSError where none can be written."""
    read_rows(Path(path), csv_columns(), len(_first_columns()))


def csv_row(report: dict[str, Any]) -> dict[str, Any]:
    """The cells of a report's row, by column."""
    row: dict[str, Any] = {name: report.get(name, "") for name in csv_columns()}
    scores = {name: report[name] for name in TASKS[report["task"]].columns.means} | report.get("boundary", {})
    for name, value in scores.items():
        if name in row:
            row[name] = "" if value is None else f"{100 * value:.2f}"
    row["torch"], row["fapn_zoo"] = report["versions"].get("torch", ""), report["versions"].get("fapn-zoo", "")
    row["seed"] = "" if report["seed"] is None else report["seed"]
    row["scales"] = " ".join(f"{scale:g}" for scale in report["scales"])
    row["flip"] = "yes" if report["flip"] else ""
    row["window"] = "{}x{}/{}x{}".format(*report["window"], *report["stride"]) if report["window"] else ""
    row["class_map"] = "yes" if report["class_map"] else ""
    return row


def write(path: Path, text: str) -> None:
    """Writes a text file whole, making its folder."""
    make_folder(path.parent)
    write_text(path, text)
