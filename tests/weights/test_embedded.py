"""The models inside the package: they are what their names say, small, licensed, and find their way in a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fapn_zoo
from fapn_zoo.cli import main
from fapn_zoo.cli.common import BLOOD, EMBEDDED, NUCLEI
from fapn_zoo.data.cells import draw_blood, draw_nuclei
from fapn_zoo.data.scenes import CLASSES, generate_scene
from fapn_zoo.evaluate import evaluate
from fapn_zoo.model import ZooModel
from fapn_zoo.weights.folder import read_config, read_spec
from fapn_zoo.zoo.registry import resolve

pytestmark = pytest.mark.unit
PLACE = Path(fapn_zoo.__file__).parent / "weights" / "embedded"
FOLDER = PLACE / EMBEDDED
CELLS = {NUCLEI: "DSB 2018 val AP50", BLOOD: "BCCD val box AP50"}


@pytest.fixture(scope="module")
def model() -> ZooModel:
    return fapn_zoo.create_model(EMBEDDED, pretrained=True)


def test_it_is_listed_with_its_source() -> None:
    assert EMBEDDED in fapn_zoo.list_models(pretrained=True)
    weights = resolve(EMBEDDED)[1]
    assert weights.source == "embedded" and weights.license == "cc-by-nc-4.0"


def test_folder_is_small_whole_and_licensed(model: ZooModel) -> None:
    assert sorted(p.name for p in FOLDER.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (FOLDER / "model.safetensors").stat().st_size < 8e6
    config = read_config(FOLDER)
    assert config["license"] == "cc-by-nc-4.0" and config["metrics"]["CamVid test mIoU"] > 50
    card = (FOLDER / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "CamVid" in card and "seed" in card
    saved = read_spec(FOLDER)
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in saved.args.items()} == dict(model.spec.args)
    assert saved.data.labels == model.data.labels == tuple(CLASSES)


def test_weights_are_those_that_were_declared() -> None:
    from fapn_zoo.weights.digests import file_digest

    assert file_digest(FOLDER / "model.safetensors") == resolve(EMBEDDED)[1].sha256


def test_all_of_them_are_small() -> None:
    assert {place.name for place in PLACE.iterdir()} == {EMBEDDED, *CELLS}
    assert sum(file.stat().st_size for file in PLACE.rglob("*.safetensors")) < 14e6


@pytest.mark.parametrize("name", CELLS)
def test_models_of_cells_are_for_any_use(name: str) -> None:
    from fapn_zoo.weights.digests import file_digest

    weights, config = resolve(name)[1], read_config(PLACE / name)
    assert file_digest(PLACE / name / "model.safetensors") == weights.sha256
    assert weights.license == config["license"] == "apache-2.0" and config["metrics"][CELLS[name]] > 70
    model, saved = fapn_zoo.create_model(name, pretrained=True), read_spec(PLACE / name)
    assert (saved.data, saved.num_classes, saved.task) == (model.spec.data, model.spec.num_classes, model.spec.task)


def test_cells_that_were_drawn_are_found() -> None:
    nuclei = fapn_zoo.create_model(NUCLEI, pretrained=True).predict(draw_nuclei(3))
    assert nuclei.task == "instance" and 18 <= sum(s["score"] > 0.5 for s in nuclei.segments) <= 32
    blood = fapn_zoo.create_model(BLOOD, pretrained=True).predict(draw_blood(3))
    sure = [s["name"] for s in blood.segments if s["score"] > 0.5]
    assert 12 <= sure.count("RBC") <= 20 and sure.count("WBC") == 1


def test_it_scores_on_scenes_it_was_not_trained_on(model: ZooModel) -> None:
    report = evaluate(model, "scenes:8", split="test", progress=False)
    assert report["miou"] > 0.5 and report["pixel_acc"] > 0.85


def test_prediction_follows_the_picture(model: ZooModel) -> None:
    scene = generate_scene(11, (180, 240))
    result = model.predict(scene.image)
    flipped = model.predict(np.ascontiguousarray(scene.image[:, ::-1]))
    assert result.labels.shape == (180, 240)
    assert (result.labels == flipped.labels[:, ::-1]).mean() > 0.85


def test_adapting_it_to_other_classes(model: ZooModel) -> None:
    other = fapn_zoo.create_model(EMBEDDED, pretrained=True, num_classes=3)
    assert other.load_report.fresh == ("head.predictor.weight", "head.predictor.bias")
    assert (other.backbone.state_dict()["body.conv1.weight"] == model.backbone.state_dict()["body.conv1.weight"]).all()


def test_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    photo = tmp_path / "my photo.jpg"
    Image.fromarray(generate_scene(5, (120, 160)).image).save(photo)
    assert main(["demo", str(photo), "--out", str(tmp_path / "demo"), "--scenes", "2"]) == 0
    assert "mean IoU" in capsys.readouterr().out
    assert main(["demo", str(tmp_path / "gone.jpg"), "--out", str(tmp_path / "again"), "--scenes", "1"]) == 1
    assert "gone.jpg" in capsys.readouterr().err
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    assert {"scene_1_overlay.png", "scene_2_overlay.png", "my photo_overlay.png", "my photo_labels.png"} <= names
    assert all((tmp_path / "demo" / kind / "drawn_overlay.png").is_file() for kind in ("nuclei", "blood_cells"))
