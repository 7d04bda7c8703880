"""Model cards: valid for the Hub, made of facts only, and deaf to whatever names try to smuggle in."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

import fapn_zoo
from fapn_zoo.cli.common import EMBEDDED
from fapn_zoo.tasks import TASKS
from fapn_zoo.weights.card import (
    HUB_LICENSES,
    METRICS,
    check_card,
    collect_scores,
    license_metadata,
    own_words,
    render_card,
)
from fapn_zoo.zoo.labels import label_set
from fapn_zoo.zoo.registry import get_spec, list_models
from fapn_zoo.zoo.spec import DataSpec, ModelSpec

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(fapn_zoo.__file__).parent / "weights" / "embedded" / EMBEDDED
NASTY = [
    'a "quoted" one',
    "it's: a colon",
    "- dash",
    "# no heading",
    "pipe | pipe",
    "`tick`",
    "<script>alert(1)</script>",
    "line\nbreak\n---\nlicense: mit",
    "Straße",
    "道路",
    "{brace}",
    "[link](https://example.org)",
    "null",
    "true",
    "1.0",
    "&anchor",
    "*alias",
    "!!python/object/apply:os.system [id]",
    "tab\there",
    "bell\x07",
    "\u202eright to left",
    "%",
]


def config(**changes: Any) -> dict:
    data = DataSpec(labels=("a", "b", "c"))
    spec = ModelSpec("perpixel_fapn_resnet50", "perpixel", "fapn", "resnet50", num_classes=3, data=data)
    made = {
        "format": 1,
        "library": "fapn-zoo",
        "model": spec.to_config(),
        "license": "mit",
        "source": "",
        "training": {},
        "metrics": {"town val mIoU": 61.239, "town val pixel accuracy": 90.0},
        "versions": {"torch": "2.15.0"},
    }
    return json.loads(json.dumps(made | changes))  # as it comes from the disk


def official(name: str) -> dict:
    """What a folder converted from the release holds, without its tensors."""
    spec, _ = get_spec(name)
    weights = spec.weights["paper"]
    spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, labels=label_set(spec.label_set)["names"]))
    return config(
        model=spec.to_config(), license=weights.license, metrics=dict(weights.metrics), source=weights.location
    )


def metadata(card: str) -> dict:
    """Read as the Hub reads it, and equal to what a plain YAML reader finds between the first two rules."""
    found = ModelCard(card).data.to_dict()
    assert found == yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    return found


def test_a_fine_tuned_model() -> None:
    training = {"model": "perpixel_fapn", "pretrained_backbone": True, "data": "town", "steps": 10}
    card = render_card(config(training=training), "Made in a hurry.\n\nWith love.")
    check_card(card)
    data = metadata(card)
    assert data["license"] == "mit" and data["base_model"] == "timm/resnet50.tv_in1k"
    assert data["pipeline_tag"] == "image-segmentation" and data["library_name"] == "fapn-zoo"
    assert {"fapn-zoo", "semantic-segmentation", "fapn", "perpixel"} <= set(data["tags"])
    assert "datasets" not in data and "widget" not in data  # "town" is a folder, no data set of the Hub
    (result,) = ModelCard(card).data.eval_results[:1]
    assert (result.dataset_name, result.dataset_split) == ("town", "val")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("mean_iou", "mIoU", 61.24)
    assert result.source_url is None
    assert "| town | val | mIoU | 61.24 | own evaluation |" in card and "| steps | 10 |" in card
    assert '"local-dir:' in card
    assert own_words(card) == "Made in a hurry.\n\nWith love."


def test_it_is_read_and_written_without_a_change(tmp_path: Path) -> None:
    for settings in (config(), official("maskformer_fpn_swin_l_ade20k")):
        card = render_card(settings, "Words.", repository="me/streets", example="https://example.org/a.jpg")
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
        assert str(ModelCard.load(tmp_path / "README.md")) == card
        assert metadata_load(tmp_path / "README.md") == ModelCard(card).data.to_dict()


def test_repository_revision_and_example() -> None:
    url = "https://huggingface.co/me/streets/resolve/v2/example.jpg"
    card = render_card(config(), repository="me/streets@v2", example=url)
    check_card(card)
    assert 'create_model("hf-hub:me/streets@v2", pretrained=True)' in card and "local-dir" not in card
    assert "\n# streets\n" in card and "| name | perpixel_fapn_resnet50 |" in card
    assert metadata(card)["model-index"][0]["name"] == "streets"
    assert metadata(card)["widget"] == [{"src": url, "example_title": "Example"}] and "](overlay.png)" in card


@pytest.mark.parametrize("task, column", [("panoptic", "pq"), ("instance", "ap"), ("instance", "box_ap")])
def test_scores_of_objects(task: str, column: str) -> None:
    """What training stores under the task's own names, and rows of result tables."""
    shown = TASKS[task].columns.means[column]
    assert METRICS[column][0] == shown and column in TASKS[task].columns.table
    row = {"data": "coco", "split": "val", column: "30.00"}
    for found in (
        collect_scores(config(metrics={f"coco val {shown}": 30.0})),
        collect_scores(config(metrics={}), [row]),
    ):
        assert [score[:4] for score in found] == [("coco", "val", shown, 30.0)]
    card = render_card(config(metrics={f"two words val {shown}": 30.0}))
    check_card(card)
    (result,) = ModelCard(card).data.to_dict()["model-index"][0]["results"]
    assert result["dataset"]["name"] == "two words" and result["metrics"][0]["name"] == shown
    assert collect_scores(config(metrics={"coco val box AP50": 1.0, "coco val AR": 1.0})) == []


def test_where_a_fine_tune_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def base(**training: Any) -> str | None:
        return metadata(render_card(config(training=training))).get("base_model")

    assert base(model="hf-hub:me/streets@v2", pretrained=True) == "me/streets"
    assert base(model="hf-hub:me/streets@v2", pretrained=False) is None
    assert base(model=EMBEDDED, pretrained=True) is None  # ships in the package, has no repository
    assert base(model="no_such_model", pretrained=True) is None
    weights = fapn_zoo.WeightsSpec("hub", "zoo/published", license="mit")
    spec = ModelSpec("published_model", "perpixel", "fapn", "resnet18", 3, weights={"zoo": weights})
    monkeypatch.setattr("fapn_zoo.zoo.registry._registered", {"published_model": spec})
    assert base(model="published_model", pretrained=True) == "zoo/published"
    other = config(training={"pretrained_backbone": True})
    other["model"]["backbone"] = "convnextv2_tiny.fcmae_ft_in22k_in1k"
    assert metadata(render_card(other))["base_model"] == "timm/convnextv2_tiny.fcmae_ft_in22k_in1k"
    assert "fcmae_ft_in22k_in1k), whose licence is cc-by-nc-4.0.\n" in render_card(other)
    other["model"]["backbone"] = "dinov3_s"
    assert "started from [timm/vit_small_patch16_dinov3.lvd1689m]" in (card := render_card(other))
    assert "whose licence is dinov3-license." in card and metadata(card)["license"] == "mit"


def test_the_embedded_card_is_in_step_with_its_facts() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    settings = json.loads((FOLDER / "config.json").read_text())
    assert render_card(settings, own_words(card)) == card and own_words(card)
    check_card(card)
    assert "base_model" not in metadata(card)  # it started from random weights


def test_result_rows_lead_and_must_agree() -> None:
    settings = json.loads((FOLDER / "config.json").read_text())
    with open(ROOT / "hub" / "results" / "semantic.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["weights"] == row["model"] and row["amp"] == "no"]
    card = render_card(settings, rows=rows)
    result = ModelCard(card).data.eval_results[0]
    assert result.metric_value == float(rows[-1]["miou"]) and result.dataset_name == "CamVid"
    assert f"| parameters | {int(rows[-1]['params']):,} |" in card
    assert [s.metric for s in collect_scores(settings, rows)] == [
        "mIoU",
        "pixel accuracy",
        "mean accuracy",
        "frequency-weighted IoU",
    ]  # each once
    several = [rows[-1] | {"scales": "0.5 1 1.5", "flip": "yes", "miou": "53.10"}]
    assert ("mIoU multi-scale", 53.1) in [(s.metric, s.value) for s in collect_scores(settings, rows + several)]
    for other in ({"window": "64x64/32x32"}, {"class_map": "yes"}, {"flip": "yes"}):
        assert collect_scores(settings, rows) == collect_scores(settings, [*rows, rows[-1] | other | {"miou": "1.00"}])
    wrong = [rows[-1] | {"miou": "52.94"}]
    with pytest.raises(ValueError, match=r"CamVid test mIoU of .*: config.json says 52.84, the result row 52.94"):
        render_card(settings, rows=wrong)


def test_every_official_model() -> None:
    names = [n for n in list_models(pretrained=True) if get_spec(n)[0].weights.keys() == {"paper"}]
    assert len(names) == 49
    for name in names:
        weights = get_spec(name)[0].weights["paper"]
        card = render_card(official(name), pointer=True)
        check_card(card)
        data, results = metadata(card), ModelCard(card).data.eval_results
        assert weights.page in card and f'create_model("{name}", pretrained=True)' in card
        assert data["license"] == ("other" if weights.license == "none-stated" else weights.license)
        assert {r.metric_value for r in results} == set(weights.metrics.values())
        assert all(r.source_url == weights.page and "reported" in r.source_name for r in results)
        assert ("datasets" in data) == name.endswith(("_ade20k", "_ade20k_panoptic"))
        assert ("base_model" in data) == ("resnet101s" not in name and not name.startswith("pointrend"))
    card = render_card(official("maskformer_fapn_swin_l_ade20k"), pointer=True)
    assert metadata(card)["license_name"] == "none-stated" and "states none" in card and "arxiv.org/abs/2108" in card


def test_what_was_measured_is_told_from_what_was_reported() -> None:
    row = {"data": "ade20k", "split": "val", "miou": "44.38", "params": "41000000"}
    card = render_card(official("maskformer_fpn_resnet50_ade20k"), rows=[row])
    assert "| ADE20K | val | mIoU | 44.38 | `fapn-zoo eval` |" in card
    assert "| ADE20K | val | mIoU | 44.50 | reported by the authors of MaskFormer |" in card
    (result,) = ModelCard(card).data.eval_results  # the index tells what was measured, and does not name the authors
    assert result.metric_value == 44.38 and result.source_url is None
    assert result.dataset_type == "zhoubolei/scene_parse_150"


@pytest.mark.parametrize("text", ["", "unknown", "Unknown", None, "none"])
def test_a_card_may_lack_a_licence_but_is_no_card_for_the_hub(text: str) -> None:
    card = render_card(config(license=text))
    assert metadata(card)["license"] == "unknown" and "Unknown: nobody has stated" in card
    with pytest.raises(ValueError, match="the card has no licence"):
        check_card(card)


@pytest.mark.parametrize(
    "text, fields",
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC BY-NC 4.0", {"license": "cc-by-nc-4.0"}),
        (
            "My Terms: 2 https://example.org/t?a=b",
            {"license": "other", "license_name": "my-terms-2", "license_link": "https://example.org/t?a=b"},
        ),
    ],
)
def test_licences(text: str, fields: dict[str, str]) -> None:
    assert license_metadata(text) == fields
    card = render_card(config(license=text))
    check_card(card)
    assert fields.items() <= metadata(card).items()
    assert {"mit", "cc-by-4.0"} < HUB_LICENSES


def test_a_licence_of_another_name_needs_a_link() -> None:
    with pytest.raises(ValueError, match="'my-terms' is no id that the Hub knows; write a link after it"):
        check_card(render_card(config(license="my-terms")))


def test_odd_names_stay_names() -> None:
    for label in NASTY:
        made = config(source=label, training={label: label, "data": label}, license="mit")
        made["model"]["data"]["labels"] = [label, "b", "c"]
        made["model"]["name"] = made["model"]["label_set"] = label
        made["metrics"] = {f"{label} val mIoU": 50.0, label: 1.0}
        card = render_card(made)
        check_card(card)
        data = metadata(card)
        assert data["license"] == "mit" and set(data) <= {
            "library_name",
            "pipeline_tag",
            "license",
            "tags",
            "metrics",
            "model-index",
        }
        assert data["model-index"][0]["results"][0]["dataset"]["name"] == card_text(label)
        body = ModelCard(card).text
        assert "<script" not in body and "\x07" not in card
        assert not re.search(r"(?<!\\)\]\(https://example", body)
        table = [line for line in body.split("## Model")[1].splitlines() if line.startswith("|")]
        assert all(line.replace("\\|", "").count("|") == 3 for line in table)  # two cells in every row
        assert sum(line.startswith("# ") for line in body.splitlines()) == 1


def card_text(label: str) -> str:
    return "".join(c for c in " ".join(label.split()) if c.isprintable())


def test_many_labels_are_counted_not_listed() -> None:
    made = config()
    made["model"] |= {"num_classes": 847, "data": made["model"]["data"] | {"labels": [f"c{i}" for i in range(847)]}}
    card = render_card(made)
    assert "| 847: c0, c1," in card and "and 817 more |" in card and len(card) < 3000


def test_metrics_of_another_form_are_shown_as_they_are() -> None:
    for value, shown in ((53.217, "53.22"), ("high", "high"), (float("nan"), "nan"), (True, "True")):
        card = render_card(config(metrics={"town val mIoU": value, "miou": 1.5}))
        assert "| miou (%) | 1.50 |" in card
        assert ("model-index" in metadata(card)) == (value == 53.217)
        assert f" {shown} |" in card


def test_a_wrong_card_is_refused() -> None:
    card = render_card(config(), repository="me/streets", example="https://example.org/a.jpg")
    check_card(card)
    for old, new, words in [
        ("license: mit", "license: mitt", "'mitt' is no id"),
        ("license: mit\n", "", "no licence"),
        ("license: mit", "license: [", "cannot be read"),
        ("- name: streets\n  results", "- results", "cannot be read"),
    ]:
        assert old in card
        with pytest.raises(ValueError, match=words.replace("[", r"\[")) as caught:
            check_card(card.replace(old, new, 1))
        assert "\n" not in str(caught.value)


def test_nothing_is_changed_in_the_facts() -> None:
    made = official("maskformer_fpn_resnet50_ade20k")
    before = copy.deepcopy(made)
    render_card(made, rows=[{"data": "ade20k", "split": "val", "miou": "44.38"}])
    assert made == before
