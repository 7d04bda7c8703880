"""Class tables that differ: what the error says, and what a class map then scores."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from toys.evaluation import Noise, small_model

from fapn_zoo.evaluate import class_maps, evaluate, render
from fapn_zoo.metrics import ConfusionMatrix

pytestmark = pytest.mark.unit


def refusal(model: torch.nn.Module, data: Noise, class_map: object = None) -> str:
    with pytest.raises(ValueError) as error:
        evaluate(model, data, class_map=class_map, progress=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_map_that_would_fix_it_is_named(model: torch.nn.Module):
    message = refusal(model, Noise(names=("Sign", "ground ", "tree_")))
    assert "class 0 is 'ground' for the model and 'Sign' for noise" in message
    assert message.endswith("pair them by name with --map names")
    message = refusal(model, Noise(names=("sign", "ground")))
    assert "only in the model: tree; only in noise: -" in message
    suggested = json.loads(re.search(r"\{.*\}", message)[0])
    assert suggested == {"ground": "ground", "tree": None, "sign": "sign"}
    suggested["tree"] = "ground"
    assert evaluate(model, Noise(names=("sign", "ground")), class_map=suggested, progress=False)["miou"] is not None


def counted(model: torch.nn.Module, data: Noise, answers: list[int], truth: dict[int, int], k: int) -> ConfusionMatrix:
    """By hand: classes of the model and values of the labels are moved to common ids; k is scored nowhere."""
    matrix = ConfusionMatrix(k + 1, ignore_index=k)
    table = np.full(256, k)
    table[list(truth)] = list(truth.values())
    for i in range(len(data)):
        sample = data.sample(i)
        found = np.array(answers)[class_maps(model, [sample.image])[0].numpy()]
        matrix.update(found, table[sample.labels])
    return matrix


def test_a_map_by_name_whatever_case_and_order(model: torch.nn.Module):
    data = Noise(names=("Sign", "ground", "TREE"))
    report = evaluate(model, data, class_map="names", boundary=True, progress=False)
    expected = counted(model, data, [1, 2, 0], {0: 0, 1: 1, 2: 2}, 3).compute()
    assert [row["name"] for row in report["classes"]] == ["Sign", "ground", "TREE"]
    assert [row["iou"] for row in report["classes"]] == expected["iou"][:3]
    assert report["miou"] == expected["miou"] and report["pixel_acc"] == expected["pixel_acc"]
    assert report["class_map"] == {"ground": "ground", "tree": "TREE", "sign": "Sign"} and not report["unscored"]
    assert "classes mapped" in render(report) and report["boundary"]["band_3"] is not None


def test_many_to_one_wrong_wherever_it_is_given_and_not_scored(model: torch.nn.Module, tmp_path: Path):
    data = Noise(names=("land", "sky", "water"))
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"ground": "land", "tree": 0, "2": None}))
    report = evaluate(model, data, class_map=file, boundary=True, progress=False)
    expected = counted(model, data, [0, 0, 3], {0: 0}, 3).compute()
    assert [row["iou"] for row in report["classes"]] == [expected["iou"][0], None, None]
    assert report["miou"] == expected["iou"][0] and report["mean_acc"] == expected["acc"][0]
    assert 0 < report["mean_acc"] < 1  # answers of class 2 are errors
    assert report["unscored"] == ["sky", "water"] and "not scored: sky, water" in render(report)
    assert report["class_map"] == {"ground": "land", "tree": "land", "sign": None}
    assert json.loads(json.dumps(report)) == report


def test_an_ignored_class_of_the_data_stays_ignored(model: torch.nn.Module):
    data = Noise(names=("void", "ground", "tree"), ignore_index=0)
    report = evaluate(model, data, class_map={"ground": "ground", "tree": "tree", "sign": "void"}, progress=False)
    expected = counted(model, data, [1, 2, 3], {1: 1, 2: 2}, 3).compute()
    assert report["miou"] == expected["miou"] and report["classes"][0]["iou"] is None
    assert report["unscored"] == ["void"]


def test_wrong_maps(model: torch.nn.Module, tmp_path: Path):
    data = Noise(names=("a", "b", "c"))
    assert "no class of noise has the name of one of the model: ground, tree, sign / a, b, c" in refusal(
        model, data, "names"
    )
    assert "class_map leaves out tree, sign; map them to null" in refusal(model, data, {"ground": "a"})
    assert "the model has no class 'groud'; nearest: ground" in refusal(model, data, {"groud": "a"})
    assert "noise has no class 'd'" in refusal(model, data, {"ground": "d"})
    assert "noise has no class 3" in refusal(model, data, {"ground": 3})
    assert "expected an object from classes of the model" in refusal(model, data, [1, 2])
    with pytest.raises(FileNotFoundError, match="no class map .*gone.json"):
        evaluate(model, data, class_map=tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text("{")
    assert "bad.json is not readable JSON" in refusal(model, data, tmp_path / "bad.json")


def test_truth_is_checked_under_a_map_too(model: torch.nn.Module):
    class Wrong(Noise):
        def sample(self, index: int):
            sample = super().sample(index)
            return dataclasses.replace(sample, labels=np.full_like(sample.labels, 77))

    assert refusal(model, Wrong(names=("a", "b")), {"ground": "a", "tree": "b", "sign": None}).startswith(
        "noise_0: class ids out of range: 77 (2240 pixels)"
    )


def test_truth_of_another_size_is_named(model: torch.nn.Module):
    class Cut(Noise):
        def sample(self, index: int):
            sample = super().sample(index)
            return dataclasses.replace(sample, labels=sample.labels[:-1])

    for options in ({}, {"class_map": "names"}):
        with pytest.raises(ValueError, match=r"^noise_0: pred has shape \(40, 56\), target \(39, 56\)"):
            evaluate(model, Cut(), progress=False, **options)


def test_models_without_names_are_mapped_by_id():
    nameless = small_model(names=("class_0", "class_1", "class_2"))
    assert evaluate(nameless, Noise(), class_map={0: "ground", 1: "tree", "2": "sign"}, progress=False)["miou"]
