"""The facts behind a model card: licences, scores and data sets, as card_facts.json and the result tables name them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

_TABLES = json.loads((files("fapn_zoo") / "weights" / "card_facts.json").read_text(encoding="utf-8"))
HUB_LICENSES = frozenset(_TABLES["hub_licenses"])  # all else is "other" with a name
NO_LICENSE = frozenset({"", "unknown", "none", "none-stated", "other"})
METRICS: dict[str, tuple[str, str]] = {column: tuple(names) for column, names in _TABLES["metrics"].items()}
DATASETS: dict[str, list[str | None]] = _TABLES["data_sets"]
OFFICIAL_STARTS: list[str] = _TABLES["official_starts"]
PAPERS: dict[str, tuple[str, str]] = {part: tuple(paper) for part, paper in _TABLES["papers"].items()}
MULTI_SCALE = " multi-scale"
PIPELINES = ("image-segmentation", "object-detection")  # the Hub's words for what models do
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
Config = Mapping[str, Any]  # of a weights folder
Rows = Sequence[Mapping[str, str]]  # of a result table, by column
_NAMED = re.compile(rf"(.+?) (\S+) ((?:{'|'.join(re.escape(name) for name, _ in METRICS.values())})(?:{MULTI_SCALE})?)")


class Score(NamedTuple):
    """One value in percent. `origin` is a "row" of a result table, the "config" of a folder, or a "release"."""

    data: str
    split: str
    metric: str
    value: float
    origin: str


def one_line(value: Any) -> str:
    """The text with every run of white space, line breaks included, as one blank, and without control characters."""
    return "".join(c for c in " ".join(str(value).split()) if c.isprintable())


def dataset_title(name: str) -> str:
    """How a card writes a data set that a result row or label set names."""
    name = one_line(name)
    return DATASETS[name.lower()][0] if name.lower() in DATASETS else name


def parse_metric(name: str, value: Any, origin: str = "config") -> Score | None:
    """`"CamVid test mIoU"` -> a score; None where the name has another form or the value is no finite number."""
    match = _NAMED.fullmatch(one_line(name))
    if match is None or isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return Score(dataset_title(match[1]), match[2], match[3], float(value), origin)


def collect_scores(config: Config, rows: Rows = (), reported: bool = False) -> list[Score]:
    """The scores of result rows, then those that the configuration holds under names like `"CamVid test mIoU"`.

    Rows of several scales are called so; rows in windows, of class maps or only mirrored have no name here.

    Args:
        reported: the configuration's values are those of a release's authors.

    Raises:
        ValueError: an own value of the configuration is not that of its row, rounded.
    """
    measured = {}
    for row in rows:
        several = bool(row.get("scales"))
        if row.get("window") or row.get("class_map") or (row.get("flip") and not several):
            continue
        for column, (metric, _) in METRICS.items():
            metric += MULTI_SCALE * several
            if row.get(column):
                score = Score(dataset_title(row["data"]), row["split"], metric, float(row[column]), "row")
                measured[score[:3]] = score
    scores = list(measured.values())
    for name, value in (config.get("metrics") or {}).items():
        score = parse_metric(name, value, "release" if reported else "config")
        if score is None:
            continue
        twin = measured.get(score[:3])
        if twin is None or reported:
            scores.append(score)
        elif abs(twin.value - score.value) > 0.0051:  # rows keep two digits
            name = f"{' '.join(score[:3])} of {config['model']['name']}"
            raise ValueError(f"{name}: config.json says {score.value:.2f}, the result row {twin.value:.2f}")
    return scores


def pipeline(task: str) -> tuple[str, str]:
    """The Hub's word for a task, and the task's own name there."""
    name = one_line(task)
    return (PIPELINES[1], "detection") if name == "detection" else (PIPELINES[0], f"{name} segmentation")


def has_license(text: str) -> bool:
    """Whether the text states terms at all."""
    return _license_name(text) not in NO_LICENSE


def license_metadata(text: str, link: str = "") -> dict[str, str]:
    """The Hub's licence fields. `text` is an id of the Hub, or terms of another name with their URL (or `link`)."""
    url = re.search(r"https?://\S+", text)
    name = _license_name(text)
    if name in HUB_LICENSES:
        return {"license": name}
    link = url[0] if url else link
    if name in NO_LICENSE and not link:
        return {"license": "unknown"}
    return {"license": "other", "license_name": name or "other"} | ({"license_link": link} if link else {})


def _license_name(text: str) -> str:
    return re.sub(r"[^a-z0-9.+]+", "-", re.sub(r"https?://\S+", "", text).lower()).strip("-")
