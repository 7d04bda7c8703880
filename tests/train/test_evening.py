"""The four lines of a user's evening, from a labelling tool's json to a prediction; ids and names stay right."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from toys import coco, formats

import fapn_zoo
from fapn_zoo.cli import main
from fapn_zoo.data import open_dataset

pytestmark = pytest.mark.train
IDS = {"gap": (2, 5, 9), "zero": (0, 1, 2)}
SMALL = (
    "backbone=test_efficientnet model_args.neck_out_channels=16 model_args.head_hidden=16 model_args.head_anchor_sides="
    "8,16,32,64,128 model_args.head_score_threshold=0.0 crop=32,48 steps=4 batch_size=2 checkpoint_every=0 threads=1"
)


@pytest.mark.parametrize(("model", "ids"), [("faster_rcnn_fpn", "gap"), ("mask_rcnn_fpn", "zero")])
def test_four_lines_from_json_to_json(
    model: str, ids: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    coco.write_splits(Path("cells"), IDS[ids])
    lines = (
        "check-data cells",
        f"train finetune_objects data=cells model={model} out=runs/cells {SMALL}",
        "eval runs/cells/model --data cells --split val --json report.json",
        "predict cells/val/images --model runs/cells/model --out found --coco cells.json",
    )
    for line in lines:
        if line.startswith("predict"):
            sure_of_the_second()
        assert main(shlex.split(line)) in (0, None), line
    capsys.readouterr()
    names = [f"kind {i}" for i in IDS[ids]]
    report = json.loads(Path("report.json").read_text())
    assert report["task"] == ("detection" if model.startswith("faster") else "instance")
    assert [row["name"] for row in report["classes"]] == names
    found = json.loads(Path("cells.json").read_text())
    assert {c["id"]: c["name"] for c in found["categories"]} == dict(zip(IDS[ids], names, strict=True))
    assert {entry["category_id"] for entry in found["annotations"]} == {IDS[ids][1]}
    assert [image["file_name"] for image in found["images"]] == ["001.png", "002.png", "003.png"]


def test_every_format_trains_and_scores_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The same pictures and boxes in four formats give the same scores, to the last digit, and go out in theirs."""
    monkeypatch.chdir(tmp_path)
    found, model = {}, "faster_rcnn_fpn"
    for name, write in formats.WRITERS.items():
        write(Path(name), masks=False)
        lines = (
            f"check-data {name} --html {name}.html",
            f"train finetune_objects data={name} model={model} out=runs/{name} {SMALL}",
            f"eval runs/{name}/model --data {name} --split val --json report.json",
            f"predict {name}.png --model runs/{name}/model --out found --format {name}",
        )
        (picture, *_) = (path for path in Path(name).rglob("*.png") if "001" in path.stem)
        Path(f"{name}.png").write_bytes(picture.read_bytes())
        for line in lines:
            assert main(shlex.split(line)) in (0, None), line
        report = json.loads(Path("report.json").read_text())
        losses = [row.split(",")[:3] for row in (Path("runs") / name / "metrics.csv").read_text().splitlines()]
        found[name] = {key: report[key] for key in ("classes", "images", "task")} | {"losses": losses}
        found[name] |= {key: value for key, value in report.items() if "ap" in key}
        assert open_dataset(f"found/{name}", "train", ("boxes",)).labels.names == formats.NAMES
    capsys.readouterr()
    for name in formats.WRITERS:
        assert found[name] == found["coco"], name


def sure_of_the_second() -> None:
    """The trained model finds its second class everywhere: which id that gets is what is asked."""
    model = fapn_zoo.create_model("local-dir:runs/cells/model", pretrained=True)
    model.head.box.scores.bias.data[1] = 50
    model.save("runs/cells/model")
