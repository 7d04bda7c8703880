"""The facts behind a model card: licences, scores and data sets, as the Hub and the result tables name them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Licence ids that the Hub knows (huggingface/hub-docs, repositories-licenses.md); all else is "other" with a name.
HUB_LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
    pddl lgpl-lr
""".split()
)
NO_LICENSE = frozenset({"", "unknown", "none", "none-stated", "other"})

# Column of a result row -> its name in cards and in config.json, and the Hub's metric id.
METRICS = {
    "miou": ("mIoU", "mean_iou"),
    "pixel_acc": ("pixel accuracy", "accuracy"),
    "mean_acc": ("mean accuracy", "mean_accuracy"),
    "fwiou": ("frequency-weighted IoU", "frequency_weighted_iou"),
    "pq": ("PQ", "panoptic_quality"),
    "ap": ("AP", "mean_average_precision"),
    "aps": ("AP small", "mean_average_precision_small"),
    "apm": ("AP medium", "mean_average_precision_medium"),
    "apl": ("AP large", "mean_average_precision_large"),
    "box_ap": ("box AP", "box_mean_average_precision"),
    "box_aps": ("box AP small", "box_mean_average_precision_small"),
    "box_apm": ("box AP medium", "box_mean_average_precision_medium"),
    "box_apl": ("box AP large", "box_mean_average_precision_large"),
}
MULTI_SCALE = " multi-scale"
# Label set -> title of the data set, and its id on the Hub where this very data set is there.
DATASETS = {
    "ade20k": ("ADE20K", "zhoubolei/scene_parse_150"),
    "ade20k_full": ("ADE20K-Full", None),
    "camvid": ("CamVid", None),
    "cityscapes": ("Cityscapes", None),
    "cocostuff10k": ("COCO-Stuff-10K", None),
    "mapillary_vistas": ("Mapillary Vistas", None),
}
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
