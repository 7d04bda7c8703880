"""Writes the tables of docs/ from the registry and from hub/results; a test keeps them in step.

    python hub/tables.py            pages from the files
    python hub/tables.py --count    hub/results/models.csv first: parameters and multiply-adds of every named model

Measured scores are those of hub/results/semantic.csv, reported ones those of the registry; times are those of
models_speed.csv and deform_conv.csv. docs/results.md shows every measured run: a row counts that says its commit, its
seed and a command of this repository, the newest of a seed; several seeds are one line, with their mean and spread.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from fapn_zoo.runtime.files import write_text
from fapn_zoo.zoo.registry import get_spec, list_models
from fapn_zoo.zoo.spec import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SCORES = ROOT / "hub" / "results" / "semantic.csv"
OBJECTS = ROOT / "hub" / "results" / "objects.csv"
CLAIM = ROOT / "hub" / "results" / "claim.csv"
CLAIM_SCENES = ROOT / "hub" / "results" / "claim_scenes.csv"
CLAIM_DIFFERENCES = ROOT / "hub" / "results" / "claim_differences.csv"
COUNTS = ROOT / "hub" / "results" / "models.csv"
MODEL_SPEED = ROOT / "hub" / "results" / "models_speed.csv"
ABLATION = ROOT / "hub" / "results" / "ablation.json"
DEFORM_SPEED = ROOT / "hub" / "results" / "deform_conv.csv"
SCORE_COLUMNS = {
    "model": "model",
    "weights": "weights",
    "data": "data",
    "split": "split",
    "amp": "amp",
    "miou": "mIoU",
    "band_3": "3 px band",
    "band_8": "8 px band",
    "boundary_f_3": "boundary F, 3 px",
    "pixel_acc": "pixel acc",
    "params": "parameters",
    "seed": "seed",
}
RUN_COLUMNS = {
    "model": "model",
    "weights": "weights",
    "data": "data",
    "split": "split",
    "images": "images",
    "amp": "amp",
    "scales": "scales",
    "flip": "flip",
    "window": "window",
}
CLAIM_COLUMNS = {"dialect": "dialect", "row": "neck", "steps": "steps", "data": "data", "split": "split"}
SEMANTIC_SCORES = {
    "miou": "mIoU",
    "band_3": "3 px band",
    "band_8": "8 px band",
    "boundary_f_3": "boundary F, 3 px",
    "pixel_acc": "pixel acc",
}
OBJECT_SCORES = {
    "ap": "mask AP",
    "ap50": "mask AP50",
    "boundary_ap": "boundary AP",
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "pq": "PQ",
    "pq_things": "PQ things",
    "pq_stuff": "PQ stuff",
}
COMMANDS = ("fapn-zoo ", "python hub/", "python tests/benchmarks/")  # what a row's command begins with, if it counts
MODEL_COLUMNS = ("model", "parameters", "multiply-adds", "at", "reported", "measured mIoU", "weights")
COUNT_COLUMNS = ("model", "size", "params", "macs", "macs_backbone", "macs_neck", "macs_head")
# Height and width of the images of a label set; those of the others vary, and count as squares of the test size.
IMAGE_SIZES = {"cityscapes": (1024, 2048), "camvid": (360, 480)}


def score_table() -> str:
    """The rows of the scores as Markdown."""
    rows = []
    for row in _read(SCORES):
        shown = row | {"params": f"{int(row['params']) / 1e6:.2f} M"}
        if row["weights"] == row["model"]:  # evaluated by name
            shown["weights"] = next(iter(get_spec(row["model"])[0].weights.values())).source
        rows.append([shown[name] for name in SCORE_COLUMNS])
    return _markdown(tuple(SCORE_COLUMNS.values()), rows)


def model_table() -> str:
    """Every named model that has weights or scores as Markdown, in natural order."""
    counts = {row["model"]: row for row in _read(COUNTS)}
    measured = measured_scores()
    rows = []
    for name in list_models():
        spec = get_spec(name)[0]
        if spec.backbone is None or not (spec.weights or name in measured):
            continue
        row = counts[name]
        weights = "; ".join(dict.fromkeys(f"{w.source}, {w.license}" for w in spec.weights.values()))
        weights = weights or "none released"
        rows.append(
            [
                f"`{name}`",
                f"{int(row['params']) / 1e6:.1f} M",
                f"{int(row['macs']) / 1e9:.1f} G",
                row["size"],
                _reported(spec),
                measured.get(name, ""),
                weights.replace("none-stated", "no licence stated"),
            ]
        )
    return _markdown(MODEL_COLUMNS, rows)


def measured_scores() -> dict[str, str]:
    """Model -> mIoU in percent: the newest row of its released weights, or else the newest of a training run.

    Of those in full precision.
    """
    found: dict[str, tuple[bool, str]] = {}
    for row in _read(SCORES):
        if row.get("amp", "no") != "no":
            continue
        released = "/" not in row["weights"]
        if released or not found.get(row["model"], (False, ""))[0]:
            found[row["model"]] = (released, row["miou"])
    return {model: score for model, (_, score) in found.items()}


def _reported(spec: ModelSpec) -> str:
    """The reported mIoU at one scale, and that at several in brackets; or PQ, and AP of masks and boxes."""
    metrics = next(iter(spec.weights.values())).metrics if spec.weights else {}
    single = [f"{value:.1f}" for name, value in metrics.items() if name.endswith("mIoU")]
    several = [f"({value:.1f})" for name, value in metrics.items() if name.endswith("mIoU multi-scale")]
    precision = {re.sub(r"^.* val(2017)? ", "", name): value for name, value in metrics.items()}
    found = [f"{name} {precision[name]:.1f}" for name in ("PQ", "AP", "box AP") if name in precision]
    return " ".join(single + several) or ", ".join(found)


def network_size(spec: ModelSpec) -> tuple[int, int]:
    """(H, W) of the network's input at the model's test size, without padding."""
    from fapn_zoo.predict.inputs import input_size

    square = spec.data.test_size or 512
    if side := spec.data.test_window:
        return side, side
    return input_size(spec.data, IMAGE_SIZES.get(spec.label_set, (square, square)))


def count_model(name: str) -> dict[str, int | str]:
    """One row of the counts."""
    from fapn_zoo.benchmark.run import count
    from fapn_zoo.predict.inputs import padded_size

    spec = get_spec(name)[0]
    size = network_size(spec)
    return {"model": name, "size": "x".join(map(str, size)), **count(spec, padded_size(spec.data, size))}


def count_models() -> None:
    """Counts every named model and writes the file."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COUNT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(count_model(name) for name in list_models() if get_spec(name)[0].backbone is not None)
    write_text(COUNTS, buffer.getvalue())


def ablation_table() -> str:
    """The rows of the FaPN paper's ablation table as Markdown: what they are called here, and by which reading.

    The ablations' code was not released: only the first two rows and the last are certain (FACTS section 5).
    """
    counts = {row["model"]: int(row["params"]) for row in _read(COUNTS)}
    rows = []
    for row in json.loads(ABLATION.read_text(encoding="utf-8")):
        name = f"pointrend_{row['neck']}_{row['backbone']}_cityscapes"
        rows.append([row["row"], f"{row['printed']} M", f"{counts[name]:,}", f"`{name}`", row["reading"]])
    return _markdown(("row", "printed", "counted", "model", "reading"), rows)


def speed_table() -> str:
    """Models side by side as Markdown: milliseconds of one image in every manner of running."""
    found: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for row in _read(MODEL_SPEED):
        key = row["group"], row["size"], row["model"], row["gmacs"]
        found.setdefault(key, {})[row["manner"]] = row["ms"]
    manners = list(dict.fromkeys(row["manner"] for row in _read(MODEL_SPEED)))
    rows = []
    for (group, size, model, gmacs), ms in found.items():
        library, _, other = model.rpartition(":")
        rows.append(
            [
                group,
                f"{library} {other}" if library else f"`{model}`",
                size,
                f"{gmacs} G",
                *(f"{float(ms[manner]):.0f}" for manner in manners),
            ]
        )
    return _markdown(("group", "model", "size", "multiply-adds", *manners), rows)


def deform_table() -> str:
    """Deformable convolution beside its peers as Markdown, with the most threads that were measured."""
    rows = _read(DEFORM_SPEED)
    threads = max(int(row["threads"]) for row in rows)
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        if int(row["threads"]) == threads:
            one = found.setdefault((row["shape"], row["pass"]), {})
            one[f"{row['contender']} {row['dtype']}"] = row
    table = []
    for (shape, direction), by_name in found.items():
        ours, half = by_name["ours float32"], by_name["ours bfloat16"]
        peaks = (f"{float(by_name[name]['peak_mib']):.0f}" for name in ("ours float32", "torchvision float32"))
        table.append(
            [
                shape,
                direction,
                f"{ours['times_faster_than_torchvision']} times",
                f"{ours['times_conv']} times",
                f"{half['times_conv']} times",
                " / ".join(peaks),
            ]
        )
    columns = (
        "shape",
        "pass",
        "faster than torchvision",
        "time of a 3x3 convolution",
        "the same in bfloat16",
        "peak MiB, ours / torchvision",
    )
    return _markdown(columns, table)


def counting(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The rows that say how they came about: commit, seed, and a command that can be given again."""
    return [row for row in rows if row["commit"] and row["seed"] and row["command"].startswith(COMMANDS)]


def runs_table(rows: Sequence[Mapping[str, str]], columns: Mapping[str, str], scores: Mapping[str, str]) -> str:
    """Runs as Markdown: those that differ in the seed alone are one line, mean and standard deviation (n - 1) of it.

    Args:
        columns: what names a run, column of the file -> heading; those that are empty in every row are left out.
        scores: column of the file -> heading, in percent; left out likewise.
    """
    groups: dict[tuple[str, ...], dict[str, Mapping[str, str]]] = {}
    for row in counting(rows):
        key = tuple(_of_any_seed(row, name) for name in columns)
        groups.setdefault(key, {})[row["seed"]] = row  # the newest of a seed is the last
    lines = []
    for key, by_seed in groups.items():
        found = list(by_seed.values())
        commits = dict.fromkeys(row["commit"] for row in found)
        values = [mean_and_spread([float(row[name]) for row in found if row.get(name)]) for name in scores]
        params = f"{int(found[0]['params']) / 1e6:.2f} M"
        seeds = str(len(by_seed)) if len(by_seed) > 1 else f"1 (seed {found[0]['seed']})"
        lines.append([*key, params, *values, seeds, ", ".join(commits)])
    headings = [*columns.values(), "parameters", *scores.values(), "seeds", "commit"]
    used = [i for i in range(len(headings)) if any(line[i] for line in lines)]
    return _markdown(tuple(headings[i] for i in used), [[line[i] for i in used] for line in lines])


def _of_any_seed(row: Mapping[str, str], column: str) -> str:
    """A cell; of the folder of a run, what seeds share; of weights that are released, where they are."""
    value = row.get(column) or ""
    if column != "weights":
        return value
    if value == row["model"]:
        return next(iter(get_spec(value)[0].weights.values())).source
    return "/".join("*" if part == row["seed"] else part for part in value.split("/"))


def mean_and_spread(values: Sequence[float]) -> str:
    """Percent with two decimals; behind them the standard deviation, where there are several."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def semantic_runs() -> str:
    """Every semantic run as Markdown."""
    return runs_table(_read(SCORES), RUN_COLUMNS, SEMANTIC_SCORES)


def object_runs() -> str:
    """Every run of detection, instance and panoptic segmentation as Markdown."""
    return runs_table(_read(OBJECTS), RUN_COLUMNS, OBJECT_SCORES)


def claim_runs() -> str:
    """FPN and FaPN under one recipe as Markdown."""
    return runs_table(
        _read(CLAIM) + _read(CLAIM_SCENES), CLAIM_COLUMNS, SEMANTIC_SCORES | {"boundary_f_12": "boundary F, 12 px"}
    )


def claim_differences() -> str:
    """What a neck gains over FPN as Markdown: mean and spread, and the seeds whose interval excludes zero."""
    found: dict[tuple[str, str, str], dict[str, list[dict[str, str]]]] = {}
    for row in _read(CLAIM_DIFFERENCES):
        key = row["dialect"], row["row"], row["against"]
        found.setdefault(key, {}).setdefault(row["measure"], []).append(row)
    measures, lines = ("miou", "band_3", "band_8", "boundary_f_3"), []
    for key, by_measure in found.items():
        line = [*key, str(len(by_measure["miou"]))]
        for rows in (by_measure[name] for name in measures):
            above, below = (sum(sign * float(row[end]) > 0 for row in rows) for sign, end in ((1, "low"), (-1, "high")))
            line.append(f"{mean_and_spread([float(row['difference']) for row in rows])} (+{above}, -{below})")
        lines.append(line)
    return _markdown(("dialect", "neck", "against", "seeds", *(SEMANTIC_SCORES[name] for name in measures)), lines)


# name of a table in its markers -> the page of docs/ that holds it, and what writes it
TABLES = {
    "results": ("embedded-model.md", score_table),
    "models": ("models.md", model_table),
    "ablation": ("models.md", ablation_table),
    "speed": ("speed.md", speed_table),
    "semantic runs": ("results.md", semantic_runs),
    "object runs": ("results.md", object_runs),
    "claim runs": ("results.md", claim_runs),
    "claim differences": ("results.md", claim_differences),
    "deformable": ("deformable-convolution.md", deform_table),
}


def updated(name: str, text: str) -> str:
    """The text of the page of one table with a fresh table. Raises ValueError where its markers are missing."""
    page, table = TABLES[name]
    begin, end = f"<!-- {name}: written by hub/tables.py -->\n", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{DOCS / page} lacks the line {begin.strip()!r} or {end!r}")
    return before + begin + table() + end + after


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _markdown(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", action="store_true", help="count parameters and multiply-adds again first")
    if parser.parse_args().count:
        count_models()
    for name, (page, _) in TABLES.items():
        write_text(DOCS / page, updated(name, (DOCS / page).read_text(encoding="utf-8")))
