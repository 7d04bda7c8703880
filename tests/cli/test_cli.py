"""The command line as a user meets it: what each verb prints, writes and exits with, and one line for every mistake."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fapn_zoo
from fapn_zoo.cli import main
from fapn_zoo.data.scenes import CLASSES, PALETTE, generate_scene

TINY = {"backbone": "resnet10t", "backbone_channels": (8, 8, 16, 16), "neck_out_channels": 16, "neck_deform_groups": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with random values for the classes of the generated scenes."""
    data = fapn_zoo.DataSpec(labels=tuple(CLASSES), palette=tuple(map(tuple, PALETTE)))
    model = fapn_zoo.create_model("perpixel_fapn", num_classes=11, data=data, **TINY)
    return model.save(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty scenes as a user would have them: 28 to train on, 6 to validate, 6 to test."""
    root = tmp_path_factory.mktemp("streets")
    for split, seeds in {"train": range(28), "val": range(28, 34), "test": range(34, 40)}.items():
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for seed in seeds:
            scene = generate_scene(seed, (96, 128))
            Image.fromarray(scene.image).save(root / split / "images" / f"{seed:03d}.png")
            Image.fromarray(scene.semantic).save(root / split / "labels" / f"{seed:03d}.png")
    classes = {"names": list(CLASSES), "palette": [list(map(int, c)) for c in PALETTE], "ignore_index": 255}
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def error(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a failing command ends with."""
    code, _, err = run(capsys, *words)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(lines) == 1 and err.endswith(lines[0] + "\n"), (code, err)
    return lines[0]


@pytest.mark.unit
def test_list_and_info(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "perpixel_fapn_resnet18_*")
    assert code == 0 and len(out.splitlines()) == 3
    code, out, _ = run(capsys, "list", "--pretrained")
    assert code == 0 and "embedded" in out
    assert "no model matches 'nothing*'" in error(capsys, "list", "nothing*")
    assert "no model matches 'perpixel_*' --pretrained --task panoptic" in error(
        capsys, "list", "perpixel_*", "--pretrained", "--task", "panoptic"
    )
    code, out, _ = run(capsys, "info")
    assert code == 0 and "deform conv" in out
    code, out, _ = run(capsys, "info", "maskformer_fapn_resnet50_ade20k")
    assert code == 0 and "44,911,839" in out and "short side 512, long side at most 2048" in out
    assert "nearest: maskformer_fapn" in error(capsys, "info", "maskformer_fapnn")
    assert "unknown task 'depth'" in error(capsys, "list", "--task", "depth")


@pytest.mark.unit
def test_info_spec_is_the_whole_description(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", "--spec", "perpixel_fpn_resnet50_ade20k")
    found = json.loads(out)
    spec, weights = fapn_zoo.zoo.registry.resolve("perpixel_fpn_resnet50_ade20k")
    assert code == 0 and fapn_zoo.ModelSpec.from_config({key: found[key] for key in spec.to_config()}).data == spec.data
    assert found["weights"]["paper"]["location"] == weights.location
    assert found["parts"]["backbone"] == "resnet50.tv_in1k" and found["official_scales"]["max_size"] == 3584
    assert len(out.splitlines()) < 70
    assert "name one" in error(capsys, "info", "--spec")
    assert "nearest: maskformer_fapn" in error(capsys, "info", "--spec", "maskformer_fapnn")


@pytest.mark.unit
def test_train_says_what_can_be_set_and_recipes_what_there_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "fapn-zoo recipes" in out and max(map(len, out.splitlines())) <= 120
    assert "\nOptimisation:\n" in out and re.search(r"^  clip_norm=0\.0 +largest L2 norm", out, flags=re.M)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text("def recipe(:\n")
    code, out, _ = run(capsys, "recipes")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert code == 0 and lines[:2] == [["recipes:"], ["mine", "broken: invalid syntax (mine.py, line 1)"]]
    assert [
        "finetune_folder",
        "Trains on a folder of pictures and label images; small enough for a try on a CPU.",
    ] in lines
    monkeypatch.setattr("fapn_zoo.train.recipes.recipe_folders", list)
    assert "no recipes" in error(capsys, "recipes")


@pytest.mark.unit
def test_predict_writes_pictures_and_goes_on_after_a_bad_one(
    capsys: pytest.CaptureFixture[str], weights: Path, dataset: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in (1, 2):
        Image.fromarray(generate_scene(i, (70, 90)).image).save(photos / f"{i}.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    out = tmp_path / "out"
    code, printed, err = run(capsys, "predict", photos, "--model", weights, "--out", out)
    assert code == 1 and "2 done, 1 failed" in printed and "broken.jpg" in err
    names = sorted(p.name for p in out.iterdir())
    assert names == ["1_labels.png", "1_overlay.png", "2_labels.png", "2_overlay.png", "summary.json"]
    labels = np.asarray(Image.open(out / "1_labels.png"))
    assert labels.shape == (70, 90) and labels.max() < 11
    summary = json.loads((out / "summary.json").read_text())
    assert [Path(f["input"]).name for f in summary["failed"]] == ["broken.jpg"]


@pytest.mark.unit
def test_predict_mistakes(capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ["--out", tmp_path / "out"]
    assert str(tmp_path / "empty") in error(capsys, "predict", tmp_path / "empty", "--model", weights, *out)
    assert "unknown model 'nope'" in error(capsys, "predict", tmp_path, "--model", "nope", *out)
    assert "task 'depth'" in error(capsys, "predict", tmp_path / "x.png", "--model", weights, "--task", "depth", *out)
    assert "device warp" in error(capsys, "predict", tmp_path / "x.png", "--model", weights, "--device", "warp", *out)
    code, _, err = run(capsys, "predict", tmp_path / "missing.png", "--model", weights, *out)
    assert code == 1 and "missing.png" in err
    with pytest.raises(SystemExit) as stop:
        main(["predict", "x.png", "--tile", "0x9"])
    assert stop.value.code == 2


@pytest.mark.unit
def test_check_data(capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "check-data", dataset)
    assert code == 0 and "Pedestrian" in out
    bad = tmp_path / "bad"
    for split in ("images", "labels"):
        (bad / "train" / split).mkdir(parents=True)
    pixels = np.zeros((20, 30), np.uint8)
    Image.fromarray(pixels).save(bad / "train/images/lonely.png")
    for name, labels in {"out_of_range": pixels + 77, "other_size": pixels[:10]}.items():
        Image.fromarray(pixels).save(bad / f"train/images/{name}.png")
        Image.fromarray(labels).save(bad / f"train/labels/{name}.png")
    code, out, _ = run(capsys, "check-data", bad, "--num-classes", 2)
    assert code == 1
    assert all(word in out for word in ("lonely", "out_of_range", "77", "other_size"))
    code, out, _ = run(capsys, "check-data", bad)
    assert code == 1 and "classes.json" in out
    assert "nowhere" in error(capsys, "check-data", tmp_path / "nowhere")
    assert run(capsys, "check-data", dataset, "--white-level", 4095, "--exif", "ignore")[0] == 0
    assert "white_level=0.0" in error(capsys, "check-data", dataset, "--white-level", 0)


@pytest.mark.unit
def test_eval_writes_table_json_and_csv(
    capsys: pytest.CaptureFixture[str], weights: Path, dataset: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    words = f"eval {weights} --data {dataset} --split test --json {tmp_path / 'r.json'} --csv {rows} --seed 3"
    for _ in range(2):
        code, out, _ = run(capsys, *words.split())
        assert code == 0 and "mean IoU" in out and "Bicyclist" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["images"] == 6 and len(report["classes"]) == 11 and 0 <= report["miou"] <= 1
    with open(rows, newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 and table[0]["seed"] == "3" and float(table[0]["miou"]) == round(100 * report["miou"], 2)


@pytest.mark.unit
def test_eval_mistakes(capsys: pytest.CaptureFixture[str], weights: Path, dataset: Path, tmp_path: Path) -> None:
    assert "gone" in error(capsys, "eval", weights, "--data", tmp_path / "gone")
    assert "trian" in error(capsys, "eval", weights, "--data", dataset, "--split", "trian")
    half = error(capsys, "eval", weights, "--data", dataset, "--amp", "fp16", "--device", "cpu")
    assert "amp='fp16' needs a GPU" in half
    assert "amp='fp17'" in error(capsys, "eval", weights, "--data", dataset, "--amp", "fp17")
    assert "got 'depth'" in error(capsys, "eval", weights, "--data", dataset, "--task", "depth")
    model = fapn_zoo.create_model("perpixel_fapn", num_classes=3, **TINY)
    model.save(tmp_path / "three")
    message = error(capsys, "eval", tmp_path / "three", "--data", dataset)
    assert "3 classes" in message and "11" in message
    (tmp_path / "three" / "model.safetensors").write_bytes(b"PK\x03\x04 pretends")
    assert "is a pickle" in error(capsys, "eval", tmp_path / "three", "--data", dataset)


@pytest.mark.unit
def test_train_mistakes(capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path) -> None:
    base = ["train", "finetune_folder", f"data={dataset}", f"out={tmp_path / 'run'}"]
    assert "unknown setting 'stepz'" in error(capsys, *base, "stepz=3")
    assert "steps must be of type int, got 'many'" in error(capsys, *base, "steps=many")
    assert "finetune_foldr" in error(capsys, "train", "finetune_foldr", *base[2:])
    assert "unknown model" in error(capsys, *base, "model=perpixl_fapn")
    assert not (tmp_path / "run").exists()
    Image.fromarray(np.full((96, 128), 42, np.uint8)).save(tmp_path / "x.png")
    label = dataset / "train/labels/000.png"
    before = label.read_bytes()
    label.write_bytes((tmp_path / "x.png").read_bytes())
    try:
        message = error(capsys, *base, "steps=9", "crop=64,64", "val_data=none")
        assert "000.png" in message and "42" in message
    finally:
        label.write_bytes(before)


@pytest.mark.train
def test_a_newcomers_evening(capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path) -> None:
    """check-data, train, eval and predict from the folder that training wrote, on forty scenes."""
    assert run(capsys, "check-data", dataset)[0] == 0
    run_folder = tmp_path / "run"
    words = f"train finetune_folder data={dataset} out={run_folder} steps=30 crop=96,128 lr=5e-3 warmup_steps=5"
    net = (
        "model=perpixel_fapn backbone=test_efficientnet model_args.neck_out_channels=16 model_args.neck_deform_groups=2"
    )
    code, out, err = run(capsys, *words.split(), *net.split())
    assert code == 0 and str(run_folder / "model") in out, err
    code, out, _ = run(capsys, "eval", run_folder / "model", "--data", dataset, "--json", tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and report["pixel_acc"] > 0.5, out  # always answering "Road" gives about 0.4
    code, _, _ = run(
        capsys, "predict", dataset / "test/images", "--model", run_folder / "model", "--out", tmp_path / "out"
    )
    assert code == 0 and len(list((tmp_path / "out").glob("*_overlay.png"))) == 6
    model = fapn_zoo.create_model(f"local-dir:{run_folder / 'model'}", pretrained=True)
    assert model.data.labels == tuple(CLASSES)


@pytest.mark.unit
def test_ctrl_c_is_one_line(tmp_path: Path) -> None:
    code = (
        "from fapn_zoo.cli import main, models\n"
        "def stop(*_, **__): raise KeyboardInterrupt\n"
        "models.list_models = stop\n"
        "raise SystemExit(main(['list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "interrupted\n"


@pytest.mark.unit
def test_eval_with_everything(capsys: pytest.CaptureFixture[str], weights: Path, dataset: Path, tmp_path: Path) -> None:
    base, state = f"eval {weights} --data {dataset}".split(), f"--batch-size 2 --resume {tmp_path / 'state'}".split()
    words = [
        *base,
        *f"--scales 0.75,1 --flip --boundary --worst 2 --out {tmp_path / 'out'} --map names".split(),
        *state,
    ]
    code, out, _ = run(capsys, *words)
    assert code == 0 and "scales 0.75, 1; mirrored; classes mapped" in out and "mIoU, 3 px band" in out
    assert len(list((tmp_path / "out/worst").iterdir())) == 2 and (tmp_path / "out/report.txt").read_text() in out
    again = run(capsys, *words)[1]
    timeless = [[line for line in text.splitlines() if " s on " not in line] for text in (out, again)]
    assert timeless[0] == timeless[1]
    code, out, _ = run(capsys, *base, "--window", "64x96", "--stride", 48, "--limit", 1)
    assert code == 0 and "windows 64 x 96 every 48 x 48" in out
    assert "another evaluation: views (was" in error(capsys, *base, "--boundary", "--map", "names", *state)


@pytest.mark.unit
def test_eval_of_several_models_side_by_side(
    capsys: pytest.CaptureFixture[str], weights: Path, dataset: Path, tmp_path: Path
) -> None:
    data = fapn_zoo.DataSpec(labels=tuple(CLASSES), palette=tuple(map(tuple, PALETTE)))
    other = fapn_zoo.create_model(
        "perpixel_fpn", num_classes=11, data=data, backbone="test_efficientnet", neck_out_channels=16
    ).save(tmp_path / "other")
    places = f"--json {tmp_path / 'c.json'} --csv {tmp_path / 'rows.csv'}".split()
    code, out, _ = run(capsys, "eval", weights, other, "--data", dataset, "--resamples", 50, *places)
    assert code == 0 and "50 resamples, 95% intervals" in out and "B - A" in out and str(other) in out
    found = json.loads((tmp_path / "c.json").read_text())
    assert len(found["reports"]) == 2 and len(found["differences"][0]["measures"]["miou"]["classes"]) == 11
    with open(tmp_path / "rows.csv", newline="") as file:
        assert [row["weights"] for row in csv.DictReader(file)] == [str(weights), str(other)]


@pytest.mark.unit
def test_eval_mistakes_of_arguments(
    capsys: pytest.CaptureFixture[str], weights: Path, dataset: Path, tmp_path: Path
) -> None:
    base = ["eval", weights, "--data", dataset]
    assert "leaves gaps between windows" in error(capsys, *base, "--window", 64, "--stride", 65)
    assert "expected at least 32 pixels" in error(capsys, *base, "--window", 16)
    assert "scales=[0]; expected" in error(capsys, *base, "--scales", "0")
    assert "no class map" in error(capsys, *base, "--map", tmp_path / "gone.json")
    (tmp_path / "rows.csv").write_text("a,b\n")
    assert "rows.csv has the columns a,b" in error(capsys, *base, "--csv", tmp_path / "rows.csv")
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in [*base, "--scales", "big"]])
    assert stop.value.code == 2


def test_only_what_is_news_is_said_of_weights(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, weights: Path, dataset: Path, tmp_path: Path
) -> None:
    caplog.set_level("INFO")
    photo = dataset / "test" / "images" / "034.png"
    for words in (
        ("predict", photo, "--model", weights, "--out", tmp_path / "out"),
        ("eval", weights, "--data", dataset, "--limit", 1),
        ("compare", weights, fapn_zoo.cli.common.EMBEDDED, photo, "--out", tmp_path / "sides"),
        ("benchmark", weights, "--size", 64, "--rounds", 1, "--no-memory"),
    ):
        code, out, err = run(capsys, *words)
        assert code == 0 and "loaded" not in out + err + caplog.text and "safetensors" not in caplog.text, words
    words = ("data=scenes:4@64x96", "crop=64", "steps=1", "batch_size=2", "val_data=none", f"out={tmp_path / 'run'}")
    code, *_ = run(capsys, "train", "finetune_folder", f"model=local-dir:{weights}", "pretrained=true", *words)
    said = [
        line for line in caplog.messages if re.fullmatch(rf"starting from local-dir:{weights}: \d+ tensors.*", line)
    ]
    assert code == 0 and len(said) == 1


def test_what_was_left_random_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = fapn_zoo.create_model(fapn_zoo.cli.common.EMBEDDED, pretrained=True, num_classes=4)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and f"{model.load_report}" in record.getMessage()
    assert "left random: head.predictor.weight, head.predictor.bias" in record.getMessage()
