"""A report as a text table, a JSON file and a row of a CSV table."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from fapn_zoo.runtime.files import check_writable, make_folder, read_text, write_text

FIRST_COLUMNS = (
    "model weights data split task images miou pixel_acc mean_acc fwiou params amp device seconds "
    "torch fapn_zoo commit seed date command"
).split()
CSV_COLUMNS = (
    FIRST_COLUMNS
    + (
        "scales flip window class_map band_3 band_5 band_8 band_12 boundary_iou "
        "boundary_f_3 boundary_f_5 boundary_f_9 boundary_f_12 "
        "pq sq rq pq_things pq_stuff ap ap50 ap75 aps apm apl ar box_ap"
    ).split()
)
MEANS = {
    "semantic": {"miou": "mean IoU", "pixel_acc": "pixel acc", "mean_acc": "mean acc", "fwiou": "fw IoU"},
    "panoptic": {
        f"{name}{group}": f"{name.upper()}{group.replace('_', ', ')}"
        for group in ("", "_things", "_stuff") for name in ("pq", "sq", "rq")
    },
    "instance": {
        "ap": "AP", "ap50": "AP50", "ap75": "AP75", "aps": "AP small", "apm": "AP medium", "apl": "AP large",
        "ar1": "AR, 1 per image", "ar10": "AR, 10 per image", "ar": "AR", "box_ap": "box AP", "box_ap50": "box AP50",
        "box_ap75": "box AP75", "box_ar": "box AR",
    },
}  # fmt: skip
BY_CLASS = {
    "semantic": {"iou": "IoU", "acc": "acc"},
    "panoptic": {"pq": "PQ", "sq": "SQ", "rq": "RQ"},
    "instance": {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ar": "AR", "box_ap": "box AP"},
}
NEAR_BOUNDARIES = {
    "band_3": "mIoU, 3 px band", "band_5": "mIoU, 5 px band", "band_8": "mIoU, 8 px band",
    "band_12": "mIoU, 12 px band", "boundary_iou": "Boundary IoU", "boundary_f_3": "boundary F, 3 px",
    "boundary_f_5": "boundary F, 5 px", "boundary_f_9": "boundary F, 9 px", "boundary_f_12": "boundary F, 12 px",
}  # fmt: skip


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
    near, columns, means = report.get("boundary", {}), BY_CLASS[report["task"]], MEANS[report["task"]]
    labels = [*means.values(), *(NEAR_BOUNDARIES[name] for name in near)]
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
    lines += [f"{NEAR_BOUNDARIES[name]:<{width}}  {percent(value)}" for name, value in near.items()]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """Six characters: percent with two decimals, or a dash."""
    return f"{'-':>6}" if value is None else f"{100 * value:6.2f}"


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
        write(Path(csv), _with_row(Path(csv), report))


def to_json(report: dict[str, Any]) -> str:
    """Text of a JSON file."""
    return json.dumps(report, indent=1) + "\n"


def check_csv(path: str | os.PathLike) -> list[list[str]]:
    """The lines of a CSV table, none where there is no file.

    Raises:
        ValueError: other columns than `write_report` has, or no UTF-8 text.
        OSError: nothing could be written there.
    """
    path = Path(path)
    check_writable(path)
    rows = list(csv.reader(io.StringIO(read_text(path)))) if path.is_file() else []
    header = rows[0] if rows else CSV_COLUMNS
    if header != CSV_COLUMNS[: len(header)] or len(header) < len(FIRST_COLUMNS):
        raise ValueError(f"{path} has the columns {','.join(header)}; expected {','.join(CSV_COLUMNS)}")
    return [row for row in rows[1:] if row]


def _with_row(path: Path, report: dict[str, Any]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in [CSV_COLUMNS, *check_csv(path)]:
        writer.writerow([*row, *[""] * (len(CSV_COLUMNS) - len(row))])
    writer.writerow(csv_row(report).values())
    return buffer.getvalue()


def csv_row(report: dict[str, Any]) -> dict[str, Any]:
    """The cells of a report's row, by column."""
    row: dict[str, Any] = {name: report.get(name, "") for name in CSV_COLUMNS}
    scores = {name: report[name] for name in MEANS[report["task"]]} | report.get("boundary", {})
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
