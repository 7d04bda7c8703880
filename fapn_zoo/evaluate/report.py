"""What is written of an evaluation: its report as a text table and a row of a CSV table, and a folder of everything.

report.json, report.txt    the report
images.csv                 the score of every image
classes.png                the score of every class
confusion.csv, .png        pixel counts of (true, predicted) class, where every pixel has one
worst/01_NAME.png ...      prediction, truth and errors of the images with the lowest score, worst first
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fapn_zoo.evaluate.measure import Measured, load_batch
from fapn_zoo.runtime.files import check_writable, short_name, write_json, write_text
from fapn_zoo.runtime.tables import aligned, append_rows, as_csv, percent, read_rows
from fapn_zoo.tasks import TASKS, fonts
from fapn_zoo.tasks.result import shown_pixels
from fapn_zoo.visualize.plots import plot_classes, plot_confusion, require_matplotlib, write_answer


def csv_columns() -> tuple[list[str], int]:
    """The columns of result tables, of all tasks, and how many of them tables of the first version had."""
    first, *others = (task.columns for task in TASKS.values())
    facts = "params amp device seconds torch fapn_zoo commit seed date command".split()
    old = [*"model weights data split task images".split(), *first.table, *facts]
    new = [*"scales flip window class_map".split(), *first.near, *(name for one in others for name in one.table)]
    new += [name for one in others for name in list(one.near)[:1]]
    return list(dict.fromkeys([*old, *new])), len(old)


CSV_COLUMNS = csv_columns()[0]


def manner(report: dict[str, Any]) -> str:
    """How the images were shown and scored, where it was not one whole image at one size; else nothing."""
    words = []
    if report["scales"]:
        words.append("scales " + ", ".join(f"{scale:g}" for scale in report["scales"]))
    if report["flip"]:
        words.append("mirrored")
    if report["window"]:
        every = "every {} x {}".format(*report["stride"]) if any(report["stride"]) else "spread evenly"
        words.append("windows {} x {} ".format(*report["window"]) + every)
    if report["amp"] != "no":
        words.append(report["amp"])
    if report["class_map"]:
        words.append("classes mapped")
    if report["unscored"]:
        words.append(f"not scored: {', '.join(report['unscored'])}")
    return "; ".join(words)


def doubts(report: dict[str, Any]) -> list[str]:
    """Sentences about scores that say little, because the truth holds nothing, or one class only."""
    columns, where = TASKS[report["task"]].columns, f"{report['data']} {report['split']}"
    if not columns.truth:
        return []
    present = [row["name"] for row in report["classes"] if sum(row[name] for name in columns.truth)]
    if not present:
        return [f"nothing is scored: {where} has no {columns.unit} of a class that is scored"]
    if len(present) == 1 and columns.unit == "pixel":
        return [f"only {present[0]!r} has pixels in {where}: the scores do not say whether classes are told apart"]
    return []


def render(report: dict[str, Any]) -> str:
    """The report as a text table, in percent."""
    near, names = report.get("boundary", {}), TASKS[report["task"]].columns
    means, columns = names.means, names.by_class | (names.near_by_class if near else {})
    lines = [
        f"{report['model']}  {report['weights']}".rstrip(),
        f"{report['data']} {report['split']}: {report['images']} images, {report['seconds']} s on {report['device']}",
        *filter(None, [manner(report), *report.get("notes", ())]),
        "",
    ]
    table = [["class", *columns.values()]]
    table += [[row["name"], *(percent(row[name]) for name in columns)] for row in report["classes"]]
    table += [[""], *([label, percent(report[name])] for name, label in means.items())]
    table += [[names.near[name], percent(value)] for name, value in near.items()]
    return "\n".join([*lines, *map(str.rstrip, aligned(table))])


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
        write_json(Path(json), report)
    if csv is not None:
        columns, least = csv_columns()
        append_rows(Path(csv), columns, [csv_row(report)], least)


def check_csv(path: str | os.PathLike) -> None:
    """ValueError where a CSV table has other columns than `write_report` writes; OSError where none can be written."""
    read_rows(Path(path), *csv_columns())


def csv_row(report: dict[str, Any]) -> dict[str, Any]:
    """The cells of a report's row, by column."""
    row: dict[str, Any] = {name: report.get(name, "") for name in csv_columns()[0]}
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


def check_folder(out: str | os.PathLike, worst: int) -> None:
    """What can be known to go wrong before hours of evaluation: ValueError, or OSError for `out` itself."""
    check_writable(Path(out) / "report.json")
    if worst < 0:
        raise ValueError(f"worst={worst}; expected 0 or more images")
    require_matplotlib()
    fonts.check_named()


def write_folder(
    out: str | os.PathLike, measured: Measured, report: dict[str, Any], worst: int, drawn: int = 0
) -> None:
    """Writes the files named above to `out`; those of an earlier evaluation there are replaced."""
    out, scorer, columns = Path(out), measured.job.scorer, measured.job.task.columns
    write_json(out / "report.json", report)
    write_text(out / "report.txt", render(report) + "\n")
    rows = [[i.index, i.name, "" if i.score is None else f"{i.score:.6f}"] for i in measured.images]
    write_text(out / "images.csv", as_csv([["index", "image", scorer.rank_by], *rows]))
    counts = scorer.confusion(measured.tally)
    if counts is not None:
        head = ["true / predicted", *scorer.names, "other"][: counts.shape[1] + 1]
        lines = [[name, *row] for name, row in zip(scorer.names, counts.tolist(), strict=True)]
        write_text(out / "confusion.csv", as_csv([head, *lines]))
        plot_confusion(counts, scorer.names, out / "confusion.png")
    score, label = next(iter(columns.by_class.items()))
    title = f"{report['model']}\n{report['data']}"
    plot_classes(report["classes"], score, label, report[columns.main], title, out / "classes.png")
    scored = sorted((i for i in measured.images if i.score is not None), key=lambda i: (i.score, i.index))
    every = sorted(measured.images, key=lambda i: i.index)
    spread = [every[place * len(every) // drawn] for place in range(min(drawn, len(every)))]
    for folder, images in (("worst", scored[:worst]), ("pictures", spread)):
        for old in (out / folder).glob("[0-9]*_*.png"):
            old.unlink()
        for place, image in enumerate(images, 1):
            (out / folder).mkdir(exist_ok=True)
            plain_name = short_name(re.sub(r"[^\w.-]+", "_", image.name))
            score = "" if image.score is None else f": {columns.means[scorer.rank_by]} {image.score:.1%}"
            _write_picture(measured, image.index, image.name + score, out / folder / f"{place:02d}_{plain_name}.png")


def _write_picture(measured: Measured, index: int, title: str, path: Path) -> None:
    """The image is run once more, so that no prediction had to be kept."""
    job = measured.job
    (((_, sample), answer),) = job.answers(load_batch(job.dataset, (index,), job.model.data, job.views))
    labels, ignore_index = job.dataset.labels, job.classes.ignore_index
    image = shown_pixels(sample.image)
    write_answer(image, *job.scorer.maps(answer, sample), labels, ignore_index, title, path)
