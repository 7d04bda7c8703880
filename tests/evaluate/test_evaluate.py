"""evaluate() scores what predict() answers in full precision; reports, tables, and everything they refuse."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys.evaluation import NAMES, Noise, class_maps

import fapn_zoo
from fapn_zoo import create_model
from fapn_zoo.data.sample import Sample
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.evaluate import CSV_COLUMNS, evaluate, render, write_report
from fapn_zoo.metrics import ConfusionMatrix
from fapn_zoo.runtime.provenance import git_commit

pytestmark = pytest.mark.unit


def with_data(net: torch.nn.Module, **changes) -> torch.nn.Module:
    net.spec = dataclasses.replace(net.spec, data=dataclasses.replace(net.spec.data, **changes))
    return net


@pytest.mark.parametrize("changes", [{}, {"size_divisor": 32}, {"test_size": 48, "test_max_size": 64}])
def test_scores_are_those_of_predict(model: torch.nn.Module, changes: dict):
    spec = model.spec
    try:
        with_data(model, **changes)
        data, matrix = Noise(), ConfusionMatrix(3)
        for i in range(len(data)):
            sample = data.sample(i)
            matrix.update(model.predict(sample.image, amp="no").labels, sample.labels)
        expected = matrix.compute()
        report = evaluate(model, data, progress=False)
        assert len(set(matrix.counts.sum(0).tolist())) > 1
        for batch_size in (1, 3):
            report = evaluate(model, data, batch_size=batch_size, progress=False)
            assert [row["iou"] for row in report["classes"]] == expected["iou"]
            assert all(report[n] == expected[n] for n in ("miou", "pixel_acc", "mean_acc", "fwiou"))
    finally:
        model.spec = spec


def test_the_report_says_where_it_comes_from(model: torch.nn.Module):
    model.train()
    model.neck.eval()
    report = evaluate(model, Noise(), "val", limit=2, progress=False, seed=3, weights="folder/x")
    assert model.training and not model.neck.training and model.head.training  # every flag is put back
    model.train()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["images"] == 2 and report["data"] == "noise" and report["split"] == "val"
    assert report["model"] == model.spec.name and report["weights"] == "folder/x" and report["seed"] == 3
    assert report["params"] == sum(p.numel() for p in model.parameters())
    assert report["versions"]["fapn-zoo"] == fapn_zoo.__version__ and report["versions"]["torch"]
    assert report["device"].endswith(" threads)") and report["amp"] == "no" and report["seconds"] > 0
    assert [row["name"] for row in report["classes"]] == list(NAMES)
    assert git_commit() == report["commit"]


def test_a_class_that_never_occurs_is_null_not_nan(model: torch.nn.Module):
    class OneClass(Noise):
        def sample(self, i: int) -> Sample:
            sample = super().sample(i)
            return dataclasses.replace(sample, labels=np.full_like(sample.labels, 255))

    report = evaluate(model, OneClass(), progress=False)
    assert report["miou"] is None and all(row["iou"] is None for row in report["classes"])
    assert re.search("mean IoU +-\n", render(report))


def test_half_precision_is_close(model: torch.nn.Module):
    image = Noise().sample(0).image
    full, half = class_maps(model, [image]), class_maps(model, [image], "bf16")
    assert full.shape == (1, 40, 56) and (full == half).float().mean() > 0.9
    with pytest.raises(ValueError, match="amp='int8'; expected bf16, fp16, no"):
        evaluate(model, Noise(1), amp="int8", progress=False)


def test_class_tables_that_differ_are_named(model: torch.nn.Module):
    with pytest.raises(ValueError, match=r"has 3 classes, noise has 2; only in the model: sign; only in noise: -"):
        evaluate(model, Noise(names=("ground", "tree")))
    with pytest.raises(ValueError, match=r"1 is 'tree' for the model and 'sign' for noise, class 2 is 'sign' for"):
        evaluate(model, Noise(names=("ground", "sign", "tree")))
    spec = model.spec
    try:
        with_data(model, labels=())
        assert evaluate(model, Noise(), limit=1, progress=False)["images"] == 1  # nothing known, nothing to contradict
        with pytest.raises(ValueError, match="the model has 3 classes, noise has 2"):
            evaluate(model, Noise(names=("ground", "tree")))
    finally:
        model.spec = spec


def test_bad_arguments_and_files(model: torch.nn.Module, tmp_path: Path):
    with pytest.raises(ValueError, match="task must be semantic or panoptic or instance or detection, got 'boxes'"):
        evaluate(model, Noise(), task="boxes")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        evaluate(model, Noise(), batch_size=0)
    with pytest.raises(ValueError, match="noise has no image"):
        evaluate(model, Noise(count=0))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(model, str(tmp_path / "nowhere"))

    for kind in ("images", "labels"):
        (tmp_path / "test" / kind).mkdir(parents=True)
    (tmp_path / "classes.json").write_text(json.dumps({"names": NAMES}))
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(tmp_path / "test/images/a.png")
    Image.fromarray(np.full((40, 56), 7, np.uint8)).save(tmp_path / "test/labels/a.png")
    with pytest.raises(ValueError, match=r"a\.png.*7"):
        evaluate(model, str(tmp_path), progress=False)

    class Wrong(Noise):
        def sample(self, i: int) -> Sample:
            sample = super().sample(i)
            return dataclasses.replace(sample, labels=np.full_like(sample.labels, 9))

    with pytest.raises(ValueError, match="noise_0: truth ids .* got \\[9\\]"):
        evaluate(model, Wrong(), progress=False)


def test_table_json_and_csv(model: torch.nn.Module, tmp_path: Path):
    report = evaluate(model, Noise(), limit=1, progress=False)
    table = render(report)
    assert all(name in table for name in NAMES) and f"{100 * report['miou']:.2f}" in table
    json_file, csv_file = tmp_path / "a/report.json", tmp_path / "b/rows.csv"
    for _ in range(2):
        write_report(report, json=json_file, csv=csv_file)
    assert json.loads(json_file.read_text()) == report
    rows = list(csv.DictReader(csv_file.open()))
    assert len(rows) == 2 and list(rows[0]) == list(CSV_COLUMNS)
    assert rows[0] == rows[1] and rows[0]["miou"] == f"{100 * report['miou']:.2f}" and rows[0]["images"] == "1"
    assert [p.name for p in csv_file.parent.iterdir()] == ["rows.csv"]

    other = tmp_path / "other.csv"
    other.write_text("model,score\nx,1\n")
    with pytest.raises(ValueError, match=r"other\.csv has the columns model,score; expected model,weights"):
        write_report(report, csv=other)
    assert other.read_text() == "model,score\nx,1\n"


@pytest.mark.train
def test_two_processes_count_what_one_counts(model: torch.nn.Module, tmp_path: Path):
    source = "scenes:5@48x64"
    names = open_dataset(source, "test").labels.names
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from fapn_zoo import create_model\n"
        "from fapn_zoo.evaluate import evaluate, write_report\n"
        "model = create_model('perpixel_fpn', backbone='test_efficientnet', num_classes=11,\n"
        "    neck_out_channels=16, checkpoint_path=sys.argv[1])\n"
        "report = evaluate(model, sys.argv[2], progress=False)\n"
        "from accelerate import PartialState\n"
        "write_report(report, json=f'{sys.argv[3]}/{PartialState().process_index}.json')\n"
    )
    torch.manual_seed(1)
    wide = create_model("perpixel_fpn", backbone="test_efficientnet", num_classes=len(names), neck_out_channels=16)
    wide.save(tmp_path / "net")
    root = str(Path(fapn_zoo.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path / "net"), source, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as above: another split of a convolution rounds differently
    try:
        one = evaluate(wide, source, progress=False)
    finally:
        torch.set_num_threads(threads)
    assert math.isfinite(one["miou"])
    for rank in (0, 1):
        both = json.loads((tmp_path / f"{rank}.json").read_text())
        assert both["images"] == 5
        assert all(both[n] == one[n] for n in ("miou", "pixel_acc", "mean_acc", "fwiou", "classes"))
