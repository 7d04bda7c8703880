"""Class tables that differ: what the error says, and what a class map then scores."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys.evaluation import Noise, class_maps, small_model

from fapn_zoo.cli import main
from fapn_zoo.evaluate import compare, evaluate, render, render_comparison
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


def write_folder(root: Path, labels: np.ndarray, classes: str | None = None) -> Path:
    for part in ("images", "labels"):
        (root / "test" / part).mkdir(parents=True)
    Image.fromarray(np.zeros((*labels.shape, 3), np.uint8)).save(root / "test/images/a.png")
    Image.fromarray(labels.astype(np.uint8)).save(root / "test/labels/a.png")
    if classes:
        (root / "classes.json").write_text(classes)
    return root


def test_a_folder_that_names_no_classes_has_those_of_the_model(model: torch.nn.Module, tmp_path: Path, caplog):
    labels = np.arange(40 * 56).reshape(40, 56) % 3
    named = write_folder(tmp_path / "named", labels, '{"names": ["ground", "tree", "sign"]}')
    bare = write_folder(tmp_path / "bare", labels)
    expected = evaluate(model, named, progress=False)
    assert expected["notes"] == [] and not caplog.messages
    report = evaluate(model, bare, progress=False)
    assert report["notes"] == ["the data names no classes: taken from the model"]
    assert "the data names no classes: taken from the model\n" in render(report)
    assert caplog.messages == [f"{bare} has no classes.json: its classes are taken to be the 3 of the model"]
    assert report["classes"] == expected["classes"] and report["miou"] == expected["miou"]
    both = compare([model, small_model(1)], bare, resamples=10, progress=False)
    assert "the data names no classes" in render_comparison(both)
    with pytest.raises(ValueError, match="class 0 is 'a' for the model and 'ground' for bare"):  # of the first
        compare([model, small_model(1, ("a", "tree", "sign"))], bare, progress=False)
    with pytest.raises(ValueError, match="how many classes has"):  # a map speaks of names
        evaluate(model, bare, class_map="names", progress=False)
    strange = write_folder(tmp_path / "strange", labels + 1)
    with pytest.raises(ValueError, match="class ids out of range: 3 .*subtract 1"):
        evaluate(model, strange, progress=False)


def test_a_map_with_a_byte_order_mark(model: torch.nn.Module, tmp_path: Path):
    file = tmp_path / "map.json"
    file.write_bytes(b"\xef\xbb\xbf" + b'{"ground": "ground", "tree": null, "sign": "sign"}')
    assert evaluate(model, Noise(names=("sign", "ground")), class_map=file, progress=False)["miou"] is not None


def test_scores_of_nothing_and_of_one_class_say_so(model: torch.nn.Module, tmp_path: Path, capsys):
    nothing = write_folder(tmp_path / "nothing", np.full((40, 56), 255), '{"names": ["ground", "tree", "sign"]}')
    report = evaluate(model, nothing, progress=False, boundary=True)
    assert report["miou"] is None
    assert report["notes"] == ["nothing is scored: nothing test has no pixel of a class that is scored"]
    assert "nothing is scored" in render(report)
    one = write_folder(tmp_path / "one", np.zeros((40, 56)), '{"names": ["ground", "tree", "sign"]}')
    report = evaluate(model, one, progress=False)
    assert report["notes"] == [
        "only 'ground' has pixels in one test: the scores do not say whether classes are told apart"
    ]
    folder = model.save(tmp_path / "model")
    for words in ([folder], [folder, folder]):
        assert main(["eval", *map(str, words), "--data", str(nothing), "--json", str(tmp_path / "r.json")]) == 1
        out, err = capsys.readouterr()
        assert "error: nothing is scored: nothing test has no pixel" in err and not out and "Traceback" not in err
    assert not (tmp_path / "r.json").exists()
