"""The folder of a report, and CSV tables of older versions."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys.evaluation import NAMES, Noise, class_maps

from fapn_zoo.data.sample import Sample
from fapn_zoo.evaluate import CSV_COLUMNS, evaluate, render, write_report
from fapn_zoo.metrics import ConfusionMatrix

pytestmark = pytest.mark.unit


def read(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_everything_about_an_evaluation(model: torch.nn.Module, tmp_path: Path):
    data = Noise(5)
    out = tmp_path / "out"
    (out / "worst").mkdir(parents=True)
    (out / "worst" / "07_old.png").write_bytes(b"of an earlier run")
    (out / "worst" / "notes.txt").write_text("mine")
    report = evaluate(model, data, boundary=True, progress=False, out=out, worst=2)
    assert json.loads((out / "report.json").read_text()) == report
    assert (out / "report.txt").read_text() == render(report) + "\n"

    scores, total = [], ConfusionMatrix(3)
    for i in range(5):
        sample, one = data.sample(i), ConfusionMatrix(3)
        one.update(class_maps(model, [sample.image])[0], sample.labels)
        scores.append(one.compute()["miou"])
        total.merge(one)
    assert read(out / "images.csv") == [
        ["index", "image", "miou"],
        *([str(i), f"noise_{i}", f"{s:.6f}"] for i, s in enumerate(scores)),
    ]
    confusion = read(out / "confusion.csv")
    assert confusion[0] == ["true / predicted", *NAMES] and [row[0] for row in confusion[1:]] == list(NAMES)
    assert [list(map(int, row[1:])) for row in confusion[1:]] == total.counts.tolist()
    lowest = np.argsort(scores, kind="stable")[:2]
    names = {f"{place:02d}_noise_{i}.png" for place, i in enumerate(lowest, 1)}
    assert {p.name for p in (out / "worst").iterdir()} == names | {"notes.txt"}
    for name in ("confusion.png", "classes.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(10**6)) > 20


def test_a_picture_without_truth_is_never_the_worst(model: torch.nn.Module, tmp_path: Path):
    class Blank(Noise):
        def sample(self, index: int):
            sample = super().sample(index)
            strange = dataclasses.replace(sample, labels=np.full_like(sample.labels, 255), name="a/b c")
            return strange if index == 0 else sample

    evaluate(model, Blank(2), progress=False, out=tmp_path, worst=5)
    assert [p.name for p in (tmp_path / "worst").iterdir()] == ["01_noise_1.png"]
    assert read(tmp_path / "images.csv")[1] == ["0", "a/b c", ""]


def test_a_class_map_reaches_the_pictures(model: torch.nn.Module, tmp_path: Path):
    data = Noise(2, names=("land", "sky"))
    evaluate(model, data, class_map={"ground": "land", "tree": "land", "sign": None}, progress=False, out=tmp_path)
    rows = read(tmp_path / "confusion.csv")
    assert rows[0] == ["true / predicted", "land", "sky", "other"] and rows[2] == ["sky", "0", "0", "0"]
    assert int(rows[1][3]) > 0 and len(list((tmp_path / "worst").iterdir())) == 2


def test_a_named_font_that_is_none_fails_before_the_work(model: torch.nn.Module, tmp_path: Path, monkeypatch):
    (tmp_path / "text.ttf").write_text("no font")
    for wrong in ("gone.ttf", "text.ttf"):
        monkeypatch.setenv("FAPN_ZOO_FONT", str(tmp_path / wrong))
        with pytest.raises(ValueError, match=f"FAPN_ZOO_FONT='.*{wrong}' is no font file that can be read"):
            evaluate(model, "scenes:1", out=tmp_path / "r", progress=False)
    assert not (tmp_path / "r").exists()


def test_plots_without_matplotlib_fail_before_the_work(model: torch.nn.Module, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    data = Noise(2)
    with pytest.raises(ValueError, match=r"^plots need matplotlib \(.*\); install it with: pip .* 'fapn-zoo.viz.'"):
        evaluate(model, data, progress=False, out=tmp_path / "out")
    assert not data.asked and not (tmp_path / "out").exists()
    assert evaluate(model, data, progress=False)["images"] == 2
    with pytest.raises(ValueError, match="worst=-1; expected 0 or more"):
        evaluate(model, data, progress=False, out=tmp_path / "out", worst=-1)


def test_older_tables_get_the_new_columns(model: torch.nn.Module, tmp_path: Path):
    file = tmp_path / "rows.csv"
    old = ["m", "w", "d", "test", *[""] * 15, 'fapn-zoo eval "a, b"']
    with open(file, "w", newline="") as handle:
        csv.writer(handle).writerows([CSV_COLUMNS[: CSV_COLUMNS.index("scales")], old])
    report = evaluate(model, Noise(2), progress=False, scales=(1, 1.5), flip=True, boundary=True, seed=4)
    write_report(report, csv=file)
    rows = read(file)
    assert rows[0] == CSV_COLUMNS and rows[1] == [*old, *[""] * (len(CSV_COLUMNS) - 20)]
    row = dict(zip(*rows[::2], strict=True))
    assert row["scales"] == "1 1.5" and row["flip"] == "yes" and row["window"] == "" and row["seed"] == "4"
    assert row["band_3"] == f"{100 * report['boundary']['band_3']:.2f}" and row["boundary_f_12"]
    windows = evaluate(model, Noise(1), progress=False, window=(33, 40), class_map="names")
    write_report(windows, csv=file)
    row = dict(zip(CSV_COLUMNS, read(file)[3], strict=True))
    assert row["window"] == "33x40/22x26" and row["class_map"] == "yes" and row["band_3"] == row["flip"] == ""
    short = tmp_path / "short.csv"
    short.write_text("model,weights\n")
    with pytest.raises(ValueError, match="short.csv has the columns model,weights; expected"):
        write_report(report, csv=short)


def test_long_names_of_the_worst_images_are_cut(model: torch.nn.Module, tmp_path: Path):
    class Long(Noise):
        def sample(self, index: int) -> Sample:
            found = super().sample(index)
            return dataclasses.replace(found, name="x" * 251 + str(index))

    evaluate(model, Long(2), progress=False, out=tmp_path, worst=2)
    assert sorted(file.name[:4] for file in (tmp_path / "worst").iterdir()) == ["01_x", "02_x"]
