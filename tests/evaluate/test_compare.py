"""Models side by side: the numbers of `evaluate`, and intervals equal to a bootstrap done the long way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toys.evaluation import Noise, class_maps, small_model

from fapn_zoo.evaluate import compare, evaluate, render_comparison
from fapn_zoo.evaluate.doors import bootstrap_sums, resample
from fapn_zoo.metrics import BoundaryBands, BoundaryFScore, BoundaryIoU, ConfusionMatrix

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def other() -> torch.nn.Module:
    return small_model(seed=5)


def metrics_of(model, data, chosen) -> dict[str, tuple[float, list[float]]]:
    """All measures of a list of images (with repeats), each by its own accumulator."""
    whole, bands, edges, contours = ConfusionMatrix(3), BoundaryBands(3), BoundaryIoU(3), BoundaryFScore(3)
    for i in chosen:
        sample = data.sample(i)
        found = class_maps(model, [sample.image])[0]
        for part in (whole, bands, edges, contours):
            part.update(found, sample.labels)
    values = {"miou": (whole.compute()["miou"], whole.compute()["iou"])}
    values |= {f"band_{w}": (s["miou"], s["iou"]) for w, s in bands.compute().items()}
    values["boundary_iou"] = (edges.compute()["boundary_iou"], edges.compute()["iou"])
    f = contours.compute()
    return values | {f"boundary_f_{t}": (f["f"][t], f["classes"][t]) for t in f["f"]}


def test_intervals_equal_those_of_the_long_way(model: torch.nn.Module, other: torch.nn.Module):
    data = Noise(4)
    found = compare([model, other], data, ["a", "b"], resamples=25, boundary=True, progress=False, bootstrap_seed=3)
    draws = resample(4, 25, 3)
    assert draws.shape == (25, 4) and (draws.sum(1) == 4).all()
    lists = [np.repeat(np.arange(4), row.astype(int)) for row in draws]
    drawn = [{m: metrics_of(m, data, chosen) for m in (model, other)} for chosen in lists]
    whole = {m: metrics_of(m, data, range(4)) for m in (model, other)}
    measures = found["differences"][0]["measures"]
    assert list(measures) == list(whole[model]) and found["differences"][0]["model"] == 1
    for name, row in measures.items():
        rows = [(row, lambda pair: pair[0])] + [(row["classes"][k], lambda pair, k=k: pair[1][k]) for k in range(3)]
        for cell, pick in rows:
            first, value = (pick(whole[m][name]) for m in (model, other))
            apart = [pick(one[other][name]) - pick(one[model][name]) for one in drawn]
            low, high = np.nanpercentile(apart, [2.5, 97.5])
            got = [cell[key] for key in ("first", "value", "difference", "low", "high")]
            assert got == pytest.approx([first, value, value - first, low, high], abs=1e-12)
    assert found["reports"][0]["miou"] == measures["miou"]["first"]
    assert found["reports"][1]["boundary"]["band_3"] == pytest.approx(measures["band_3"]["value"], abs=1e-15)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_reports_are_those_of_evaluate(model: torch.nn.Module, other: torch.nn.Module):
    found = compare([model, other, model], Noise(), scales=(1, 1.4), class_map="names", resamples=50, progress=False)
    for net, report in zip((model, other, model), found["reports"], strict=True):
        alone = evaluate(net, Noise(), scales=(1, 1.4), class_map="names", progress=False)
        assert report["classes"] == alone["classes"] and report["class_map"] == alone["class_map"]
    assert [entry["model"] for entry in found["differences"]] == [1, 2]
    same = found["differences"][1]["measures"]["miou"]
    assert same["difference"] == same["low"] == same["high"] == 0.0
    text = render_comparison(found)
    assert "mean IoU" in text and "scales 1, 1.4" in text and "+0.00 .. +0.00" in text and "C - A" in text
    again = compare([model, other], Noise(), scales=(1, 1.4), class_map="names", resamples=50, progress=False)
    assert again["differences"][0] == found["differences"][0]


def test_a_clear_difference_is_starred_and_absent_classes_are_dashes(model: torch.nn.Module):
    worse = small_model()
    with torch.no_grad():
        worse.head.predictor.bias[0] += 1e4  # always class 0
    data = Noise(6, names=("ground", "tree", "sign"))
    found = compare([model, worse], data, resamples=200, progress=False)
    row = found["differences"][0]["measures"]["miou"]["classes"][2]
    assert row["value"] == 0 and row["high"] < 0
    line = next(line for line in render_comparison(found).splitlines() if line.startswith("sign"))
    assert line.endswith("*")

    class NoSigns(Noise):
        def sample(self, index):
            sample = super().sample(index)
            sample.labels[sample.labels == 2] = 255
            return sample

    found = compare([worse, worse], NoSigns(3), resamples=20, progress=False)
    row = found["differences"][0]["measures"]["miou"]["classes"][2]
    assert row == {"id": 2, "name": "sign", "first": None, "value": None, "difference": None, "low": None, "high": None}
    line = next(line for line in render_comparison(found).splitlines() if line.startswith("sign"))
    assert line.split() == ["sign", "-", "-", "-"]


def test_sums_are_one_product():
    table = np.random.default_rng(0).integers(0, 2**45, (7, 5, 3))
    draws = resample(7, 11, 0)
    expected = np.einsum("bn,nrk->brk", draws.astype(np.int64), table)
    assert np.array_equal(bootstrap_sums(table, draws), expected)


def test_folders_and_states_are_apart(model: torch.nn.Module, other: torch.nn.Module, tmp_path: Path):
    options = {"resamples": 5, "progress": False, "resume": tmp_path / "state", "out": tmp_path / "out", "worst": 1}
    found = compare([model, other], Noise(3), ["x", "y"], **options)
    name = model.spec.name
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == [f"1_{name}", f"2_{name}"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"1_{name}",
        f"2_{name}",
        "comparison.json",
        "comparison.txt",
    }
    assert json.loads((tmp_path / "out/comparison.json").read_text()) == found
    assert (tmp_path / f"out/2_{name}/report.json").is_file()
    data = Noise(3)
    again = compare([model, other], data, ["x", "y"], **options | {"out": None})
    assert again["differences"] == found["differences"] and not data.asked


def test_wrong_arguments(model: torch.nn.Module):
    with pytest.raises(ValueError, match="at least two models, got 1"):
        compare([model], Noise())
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        compare([model, model], Noise(), resamples=0)
    with pytest.raises(ValueError, match="task 'panoptic'; perpixel_fpn has semantic"):
        compare([model, model], Noise(), task="panoptic")
    with pytest.raises(ValueError, match="stride=4 without window"):
        compare([model, model], Noise(), stride=4)
