"""The model card of a weights folder: Markdown with the Hub's metadata, rendered from facts and from nothing else.

The facts are `config.json`, the registry, and rows that `fapn-zoo eval --csv` wrote. Metadata follows the Hub's model
card specification (huggingface/hub-docs, modelcard.md).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from fapn_zoo.zoo.parts import BACKBONES
from fapn_zoo.zoo.registry import get_spec
from fapn_zoo.zoo.spec import WeightsSpec

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
EXAMPLE, OVERLAY = "example.jpg", "overlay.png"
BEGIN, END = "<!-- own words -->", "<!-- end of own words -->"  # as in card.md.jinja


class Score(NamedTuple):
    """One value in percent. `origin` is a "row" of a result table, the "config" of a folder, or a "release"."""

    data: str
    split: str
    metric: str
    value: float
    origin: str


def render_card(
    config: Config,
    text: str = "",
    *,
    repository: str | None = None,
    rows: Rows = (),
    example: str | None = None,
    pointer: bool = False,
) -> str:
    """The text of a README.md.

    Args:
        config: what `config.json` holds.
        text: own words, kept between two comments so that `own_words` finds them again.
        repository: `owner/name` or `owner/name@revision` that the card is for; None is a folder on disk.
        rows: lines of a result table (columns of `fapn_zoo.evaluate.CSV_COLUMNS`), of this model and these weights.
        example: URL of an example image, whose overlay lies beside the card as overlay.png.
        pointer: the card of an official model that comes without its weights.
    """
    import jinja2

    official = official_release(config)
    terms = license_metadata(str(config.get("license") or ""), official.page if official else "")
    scores = collect_scores(config, rows, reported=official is not None)
    model = config["model"]
    title = repository.partition("@")[0].rpartition("/")[2] if repository else model["name"]
    metadata = _metadata(config, title, scores, official, terms, example)
    origins = {"row": "`fapn-zoo eval`", "config": "own evaluation"}
    values = {
        "front": yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=math.inf).strip(),
        "name": _name(config, repository, official if pointer else None),
        "origins": origins | ({"release": _cell(_reporters(official))} if official else {}),
        "params": {row["params"] for row in rows if row.get("params")},
        "others": {k: v for k, v in (config.get("metrics") or {}).items() if parse_metric(k, v) is None},
        "no_license": NO_LICENSE,
        "papers": dict.fromkeys(PAPERS[part] for part in (model["head"], model["neck"]) if part in PAPERS),
    }
    values |= {
        "title": title,
        "text": text.strip(),
        "example": example,
        "pointer": pointer and official,
        "model": model,
    }
    values["start"] = _start(config)
    values |= {"official": official, "scores": scores, "terms": terms, "config": config}
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    template = (files("fapn_zoo") / "weights" / "card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(values).rstrip() + "\n"


def own_words(card: str) -> str:
    """The paragraphs that a card was given as `text`, or nothing."""
    _, begin, rest = card.partition(f"{BEGIN}\n")
    words, end, _ = rest.rpartition(f"\n{END}")
    return words if begin and end else ""


def check_card(text: str) -> None:
    """Reads a card with the Hub client's own parser, and compares its licence with those that the Hub knows.

    Raises:
        ValueError: metadata that the Hub would not understand, or a licence that is missing or unknown to it.
    """
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text)
        data, again = card.data.to_dict(), ModelCard(str(card)).data.to_dict()
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"metadata of the card cannot be read: {one_line(error)}") from error
    if data != again:
        raise ValueError("metadata of the card changes when it is read and written")
    if data.get("license") in (None, "unknown"):
        raise ValueError("the card has no licence")
    if data["license"] == "other" and not (data.get("license_name") and data.get("license_link")):
        advice = "write a link after it, as in 'my-terms https://example.org/terms'"
        raise ValueError(f"licence {data.get('license_name')!r} is no id that the Hub knows; {advice}")
    if data["license"] not in HUB_LICENSES | {"other"}:
        raise ValueError(f"licence {data['license']!r} is no id that the Hub knows")


def official_release(config: Config) -> WeightsSpec | None:
    """The registered release that the weights come from, where the configuration's source names it."""
    source = str(config.get("source") or "")
    known = registered(config["model"]["name"]).values() if source else ()
    return next((w for w in known if w.source == "official" and (w.location in source or w.page == source)), None)


def registered(name: str) -> Mapping[str, WeightsSpec]:
    """The weights of a name, none where it is no name of the zoo."""
    try:
        return get_spec(name)[0].weights
    except ValueError:
        return {}


def _metadata(
    config: Config, title: str, scores: list[Score], official: WeightsSpec | None, terms: dict, example: str | None
) -> dict[str, Any]:
    model = config["model"]
    kind, task = pipeline(model["task"])
    tags = [kind, task.replace(" ", "-"), "fapn-zoo", model["head"], model["neck"]]
    metadata: dict[str, Any] = {"library_name": "fapn-zoo", "pipeline_tag": kind} | terms
    metadata["tags"] = list(dict.fromkeys(map(one_line, tags)))
    base = _base_model(config, official)
    if base and HUB_ID.fullmatch(base):
        metadata["base_model"] = base
    # A folder's name is no id of the Hub; only the data sets of the official models are known for certain.
    dataset = DATASETS.get(model.get("label_set") or "", ("", None))[1] if official else None
    if dataset:
        metadata["datasets"] = [dataset]
    if example:
        metadata["widget"] = [{"src": example, "example_title": "Example"}]
    results = _results(scores, model["task"], official)
    if results:
        metadata["metrics"] = list(dict.fromkeys(m["type"] for result in results for m in result["metrics"]))
        metadata["model-index"] = [{"name": one_line(title), "results": results}]
    return metadata


def _base_model(config: Config, official: WeightsSpec | None) -> str | None:
    training, backbone = config.get("training") or {}, config["model"]["backbone"]
    if training.get("pretrained"):
        start = str(training.get("model") or config["model"]["name"])
        if start.startswith("hf-hub:"):
            return start.removeprefix("hf-hub:").partition("@")[0]
        return next((w.location for w in registered(start).values() if w.source == "hub"), None)
    if training.get("pretrained_backbone"):
        return _timm_repository(backbone)
    other = config["model"]["args"].get("backbone_stride_in_1x1")  # Caffe's ResNets, which timm does not have
    return _timm_repository(backbone) if official and backbone in OFFICIAL_STARTS and not other else None


def _start(config: Config) -> tuple[str, str] | None:
    """The repository of the weights that the backbone started from in training, and the licence that timm states."""
    if not (config.get("training") or {}).get("pretrained_backbone"):
        return None
    from timm.models import get_pretrained_cfg

    repository = _timm_repository(config["model"]["backbone"])
    found = get_pretrained_cfg(repository.partition("/")[2], allow_unregistered=True) if repository else None
    return (repository, found.license) if found and found.license else None


def _timm_repository(backbone: str) -> str | None:
    if backbone in BACKBONES:
        return f"timm/{BACKBONES[backbone]}"
    from timm.models import get_pretrained_cfg  # the model that is saved was built by timm, so this costs nothing

    found = get_pretrained_cfg(backbone, allow_unregistered=True)
    return found.hf_hub_id if found else None


def _results(scores: Sequence[Score], task: str, official: WeightsSpec | None) -> list[dict[str, Any]]:
    """The model-index: one entry per data set and split. Where a split was measured, reported values stay out."""

    def type_of(score: Score) -> str:
        return dict(METRICS.values())[score.metric.removesuffix(MULTI_SCALE)]

    kind, name = pipeline(task)
    results = []
    for data, split in dict.fromkeys((score.data, score.split) for score in scores):
        here = [score for score in scores if (score.data, score.split) == (data, split)]
        here = [score for score in here if score.origin != "release"] or here
        known = next((id for title, id in DATASETS.values() if title == data and id), None)
        result = {
            "task": {"type": kind, "name": name.capitalize()},
            "dataset": {"name": data, "type": known or re.sub(r"[^\w.+-]+", "-", data.lower()), "split": split},
            "metrics": [{"type": type_of(s), "value": round(s.value, 2), "name": s.metric} for s in here],
        }
        if official and official.page and here[0].origin == "release":
            result["source"] = {"url": official.page, "name": _reporters(official)}
        results.append(result)
    return results


def _name(config: Config, repository: str | None, pointer: WeightsSpec | None) -> str:
    """What `create_model` takes for the weights that the card speaks of."""
    if not pointer:
        return f"hf-hub:{repository}" if repository else "local-dir:PATH/OF/THIS/FOLDER"
    name = config["model"]["name"]
    known = registered(name)
    return name if len(known) == 1 else f"{name}.{next(tag for tag, weights in known.items() if weights == pointer)}"


def _reporters(official: WeightsSpec) -> str:
    return official.note.partition(";")[0] or "reported by the authors"


def _cell(value: Any) -> str:
    """Text that stays text inside a Markdown table."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", one_line(value)).replace("<", "&lt;").replace(">", "&gt;")


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
