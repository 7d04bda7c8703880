"""The tables of docs/ say what the files behind them say, and these what the models are."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from fapn_zoo.zoo.registry import get_spec, list_models

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "hub" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def counts(tables: ModuleType) -> dict[str, dict[str, str]]:
    with open(tables.COUNTS, newline="", encoding="utf-8") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def test_pages_hold_what_the_files_say(tables: ModuleType) -> None:
    for name, (page, _) in tables.TABLES.items():
        text = (tables.DOCS / page).read_text(encoding="utf-8")
        assert tables.updated(name, text) == text, "run python hub/tables.py"
    written = "".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *tables.DOCS.glob("*.md")])
    assert written.count("written by hub/tables.py -->") == len(tables.TABLES)


def test_a_page_without_its_markers_is_named(tables: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"models\.md lacks the line '<!-- models"):
        tables.updated("models", "# Models\n")


RUN = {"model": "m", "weights": "runs/m/0/model", "data": "d", "params": "2500000", "commit": "c", "seed": "0"}
RUN |= {"command": "fapn-zoo eval runs/m/0/model", "miou": "50.00", "ap": ""}


def test_runs_that_differ_in_the_seed_are_one_line_with_their_spread(tables: ModuleType) -> None:
    other = RUN | {"weights": "runs/m/1/model", "seed": "1", "miou": "52.00"}
    again = other | {"miou": "53.00", "commit": "e"}  # the same seed, scored later
    table = tables.runs_table(
        [RUN, other, again], {"model": "model", "weights": "weights"}, {"miou": "mIoU", "ap": "AP"}
    )
    assert table.splitlines() == [
        "| model | weights | parameters | mIoU | seeds | commit |",
        "|---|---|---|---|---|---|",
        "| m | runs/m/*/model | 2.50 M | 51.50 ± 2.12 | 2 | c, e |",
    ]


@pytest.mark.parametrize("lack", [{"command": ""}, {"command": "picture.py"}, {"commit": ""}, {"seed": ""}], ids=str)
def test_a_row_that_does_not_say_how_it_came_about_does_not_count(tables: ModuleType, lack: dict[str, str]) -> None:
    kept = tables.runs_table(
        [RUN, RUN | {"data": "other"} | lack], {"model": "model", "data": "data"}, {"miou": "mIoU"}
    )
    assert len(kept.splitlines()) == 3 and "| m | d | 2.50 M | 50.00 | 1 (seed 0) | c |" in kept


def test_a_difference_is_counted_where_its_interval_excludes_zero(tables: ModuleType) -> None:
    with open(tables.CLAIM_DIFFERENCES, newline="", encoding="utf-8") as file:
        rows = [
            r for r in csv.DictReader(file) if (r["dialect"], r["row"], r["measure"]) == ("detectron2", "fapn", "miou")
        ]
    above = sum(float(row["low"]) > 0 for row in rows)
    below = sum(float(row["high"]) < 0 for row in rows)
    assert f"| detectron2 | fapn | fpn | {len(rows)} | " in tables.claim_differences()
    assert f"(+{above}, -{below}) | " in tables.claim_differences().splitlines()[2]


def test_every_named_model_is_counted(tables: ModuleType, counts: dict[str, dict[str, str]]) -> None:
    named = [name for name in list_models() if get_spec(name)[0].backbone is not None]
    assert list(counts) == named, "run python hub/tables.py --count"
    for row in counts.values():
        assert int(row["macs"]) == sum(int(row[f"macs_{part}"]) for part in ("backbone", "neck", "head"))


# one of every head, neck, family of backbones and shape of images
@pytest.mark.parametrize(
    "name",
    [
        "maskformer_fapn_swin_t_ade20k",
        "maskformer_fpn_resnet101s_cityscapes",
        "perpixel_plus_fpn_resnet50_ade20k_full",
        "perpixel_fapn_resnet18_slim_camvid",
        "perpixel_fpn_resnet50_cocostuff10k",
    ],
)
def test_counts_are_those_of_the_models(name: str, tables: ModuleType, counts: dict[str, dict[str, str]]) -> None:
    assert {key: str(value) for key, value in tables.count_model(name).items()} == counts[name], "--count again"


def test_sizes_are_those_of_the_tests(counts: dict[str, dict[str, str]]) -> None:
    for name, size in {
        "maskformer_fpn_resnet101_cityscapes": "1024x2048",
        "perpixel_fapn_resnet18_cityscapes": "512x1024",
        "maskformer_fapn_swin_l_ade20k": "640x640",
        "perpixel_fapn_resnet18_slim_camvid": "360x480",
    }.items():
        assert counts[name]["size"] == size


def test_the_table_holds_what_has_weights_or_scores(tables: ModuleType) -> None:
    lines = tables.model_table().splitlines()
    rows = {
        cells[1].strip().strip("`"): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in lines[2:])
    }
    released = {name.partition(".")[0] for name in list_models(pretrained=True)}
    assert set(rows) == released | set(tables.measured_scores())
    assert rows["maskformer_fapn_swin_l_ade20k"][3] == "55.2 (56.7)"
    assert rows["maskformer_fpn_resnet50_ade20k_full"][3] == "16.0"
    assert rows["mask_rcnn_fapn_resnet50_coco"][3] == "AP 36.4, box AP 39.8"
    assert rows["panoptic_fpn_fapn_resnet101_coco"][3] == "PQ 44.2, box AP 43.0"
    assert rows["perpixel_fpn_resnet18_slim_camvid"][5] == "none released"


def test_scores_of_released_weights_come_before_those_of_runs(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "SCORES", tmp_path / "scores.csv")
    rows = [
        ("a", "runs/1/model", 50, "no"),
        ("a", "embedded", 51, "no"),
        ("a", "runs/2/model", 52, "no"),
        ("b", "runs/1/model", 40, "no"),
        ("b", "runs/2/model", 41, "no"),
        ("a", "embedded", 53, "no"),
        ("a", "embedded", 54, "bf16"),
    ]
    text = "model,weights,miou,amp\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows)
    (tmp_path / "scores.csv").write_text(text)
    assert tables.measured_scores() == {"a": "53", "b": "41"}
