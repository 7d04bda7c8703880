"""Panoptic and instance evaluation: scores of known answers, class tables, COCO folders, and all that is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys.decoding import instances
from toys.detection_references import CocoReference, boxes_of
from toys.evaluation import Noise, small_model
from toys.metric_references import PanopticReference
from toys.panoptic import OddScenes, Oracle, Painted, mistaken, small_maskformer, write_coco

from fapn_zoo import cli
from fapn_zoo.data import Sample, open_dataset
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.scenes import BUILDING, CAR, CLASSES, FENCE, PAVEMENT, PEDESTRIAN, ROAD, THINGS
from fapn_zoo.evaluate import compare, evaluate, render, render_comparison, write_report
from fapn_zoo.metrics.detection import SCORES

pytestmark = pytest.mark.unit
CHANGING = ("seconds", "date", "command", "commit")


def painted(count: int = 4, **changes: int) -> Painted:
    return Painted(OddScenes(f"scenes:{count}", "test"), **changes)


def coco_sample() -> Path:
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("FAPN_ZOO_DATA", beside)) / "coco_panoptic_sample"
    if not folder.is_dir():
        pytest.skip(f"no COCO panoptic sample at {folder}: set FAPN_ZOO_DATA to the folder that holds it")
    return folder


def lasting(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in CHANGING}


def oracle_for(data: Any, err: Callable | None = None) -> Oracle:
    return Oracle(err, labels=data.labels.names, things=data.labels.things)


def check_panoptic(model: torch.nn.Module, data: Any, report: dict[str, Any]) -> None:
    """The report is that of panopticapi's rules on what `predict` answers."""
    reference = PanopticReference(
        [{"id": i, "isthing": i in data.labels.things} for i in range(data.labels.num_classes)]
    )
    for i in range(len(data)):
        sample = data.sample(i)
        own = hasattr(model, "predict")
        found = model.predict(sample.image, task="panoptic", amp="no") if own else predicted(model, sample)
        reference.update(found.segment_map, found.segments, sample.objects.ids, true_segments(sample))
    for row in report["classes"]:
        tp, fp, fn, _ = reference.counts[row["id"]]
        assert (row["tp"], row["fp"], row["fn"]) == (tp, fp, fn)
    for suffix, things in (("", None), ("_things", True), ("_stuff", False)):
        mean = reference.mean(things)
        for name in ("pq", "sq", "rq"):
            assert report[name + suffix] == pytest.approx(mean[name], abs=1e-9, nan_ok=True)


def true_segments(sample: Sample) -> list[dict[str, int]]:
    rows = zip(sample.objects.classes.tolist(), sample.objects.crowd.tolist(), strict=True)
    return [{"id": i, "category_id": label, "iscrowd": int(crowd)} for i, (label, crowd) in enumerate(rows, 1)]


def predicted(model: torch.nn.Module, sample: Any) -> Any:
    from fapn_zoo.predict import predict

    return predict(model, sample.image, "panoptic", amp="no")


@pytest.mark.parametrize("changes", [{}, {"void": 4}])
def test_the_truth_scores_one(changes: dict[str, int]):
    data = painted(**changes)
    report = evaluate(Oracle(), data, task="panoptic", progress=False)
    names = [name + group for name in ("pq", "sq", "rq") for group in ("", "_things", "_stuff")]
    assert all(report[name] == 1 for name in names)
    report = evaluate(Oracle(), data, task="instance", progress=False)
    assert report["evaluator"].startswith("hotcoco 1.")
    assert [row["name"] for row in report["classes"]] == [CLASSES[i] for i in sorted(THINGS)]
    counts = np.bincount(np.concatenate([data.sample(i).objects.classes for i in range(4)]), minlength=11)
    assert [row["truth"] for row in report["classes"]] == counts[sorted(THINGS)].tolist()
    names = ("ap", "ap50", "ap75", "aps", "ar", "box_ap", "box_ar")
    if changes:
        assert 0.5 < report["ap"] < 1 and report["ar"] == 1  # AP knows no void: what is found there is wrong
    else:
        assert all(report[name] == 1 for name in names)


@pytest.mark.parametrize("changes", [{}, {"crowds": 3, "void": 6}])
def test_pq_of_mistakes_is_that_of_the_rules(changes: dict[str, int]):
    model, data = Oracle(mistaken), painted(6, **changes)
    reports = [evaluate(model, data, task="panoptic", progress=False, batch_size=n) for n in (1, 3)]
    assert 0.1 < reports[0]["pq"] < 0.9 and reports[0]["pq_things"] > 0.05
    check_panoptic(model, data, reports[0])
    assert reports[0]["classes"] == reports[1]["classes"]


@pytest.mark.parametrize("changes", [{}, {"crowds": 3, "void": 6}])
def test_ap_of_mistakes_is_that_of_pycocotools(changes: dict[str, int]):
    pytest.importorskip("pycocotools", reason="pycocotools is the witness")
    model, data = Oracle(mistaken), painted(6, **changes)
    reference = CocoReference(len(CLASSES))
    for i in range(len(data)):
        sample = data.sample(i)
        with torch.no_grad():
            output = model(sample.image[None].float())
        options = {"things": tuple(THINGS), "score_threshold": 0.0, "max_instances": 100}
        found = instances(output, sample.size, sample.size, **options)[0]
        rows = np.flatnonzero(np.isin(sample.objects.classes, THINGS))
        masks = sample.objects.ids == (rows + 1).reshape(-1, 1, 1)
        truth = {
            "masks": masks,
            "boxes": boxes_of(masks),
            "areas": masks.sum((1, 2)),
            "classes": sample.objects.classes[rows],
            "crowd": sample.objects.crowd[rows],
        }
        masks = found.masks.numpy()
        reference.update(
            {
                "masks": masks,
                "boxes": boxes_of(masks),
                "classes": [s.category_id for s in found.segments],
                "scores": [s.score for s in found.segments],
            },
            truth,
            i,
        )
    reports = [evaluate(model, data, task="instance", progress=False, batch_size=n) for n in (1, 3)]
    assert reports[0]["classes"] == reports[1]["classes"] and 0.05 < reports[0]["ap"] < 0.95
    for kind, prefix in (("masks", ""), ("boxes", "box_")):
        for name, value in zip(SCORES, reference.evaluate(kind).stats, strict=True):
            ours = reports[0][prefix + ("ar" if name == "ar100" else name)]
            assert ours is None if value == -1 else ours == pytest.approx(value, abs=1e-9)


def test_coco_with_its_crowds_and_its_void():
    data = Painted(open_dataset(coco_sample(), "val", needs=("segments",)))
    report = evaluate(oracle_for(data), data, task="panoptic", progress=False)
    assert report["pq"] == report["pq_things"] == report["pq_stuff"] == 1 and len(report["classes"]) == 133
    report = evaluate(oracle_for(data), data, task="instance", progress=False)
    assert report["ap"] == report["aps"] == report["apm"] == report["box_ap"] == 1

    def err(segments, table):
        return mistaken(segments, {i: label for i, label in table.items() if label < len(CLASSES)})

    model = oracle_for(data, err)
    report = evaluate(model, data, task="panoptic", progress=False)
    assert 0 < report["pq"] < 0.7
    check_panoptic(model, data, report)


def test_a_real_model_on_a_coco_folder(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_coco(tmp_path / "coco", range(3))
    data = open_dataset(tmp_path / "coco", "val", needs=("segments",))
    net = small_maskformer()
    folder = net.save(tmp_path / "net")
    report = evaluate(net, tmp_path / "coco", "val", "panoptic", progress=False)
    check_panoptic(net, data, report)
    assert sum(row["fp"] for row in report["classes"]) > 0 and report["images"] == 3 and report["data"] == "coco"
    words = ["eval", folder, "--data", tmp_path / "coco", "--split", "val", "--csv", tmp_path / "rows.csv"]
    for task in ("panoptic", "instance"):
        assert cli.main([*map(str, words), "--task", task, "--json", str(tmp_path / f"{task}.json")]) == 0
        assert ("PQ, stuff" if task == "panoptic" else "AP small") in capsys.readouterr().out
    net.spec = dataclasses.replace(net.spec, task="panoptic")
    assert evaluate(net, data, limit=1, progress=False)["task"] == "panoptic", "a model's own task is the default"
    with pytest.raises(ValueError, match="task 'detection'; .* has semantic, panoptic, instance"):
        evaluate(net, data, task="detection")
    assert [r["task"] for r in compare([net, small_maskformer(1)], data, limit=1)["reports"]] == ["panoptic"] * 2
    net.spec = dataclasses.replace(net.spec, task="semantic")
    written = json.loads((tmp_path / "panoptic.json").read_text())
    assert written["classes"] == report["classes"] and written["task"] == "panoptic"
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["panoptic", "instance"]
    assert rows[0]["pq"] == f"{100 * report['pq']:.2f}" and rows[0]["ap"] == rows[0]["miou"] == rows[1]["pq"] == ""
    assert rows[1]["ap"] == f"{100 * json.loads((tmp_path / 'instance.json').read_text())['ap']:.2f}"
    semantic = evaluate(net, data, progress=False)  # the same data have labels, too
    assert semantic["task"] == "semantic" and semantic["classes"][0]["pixels"] > 0


def test_table_and_row(tmp_path: Path):
    report = evaluate(Oracle(mistaken), painted(), task="instance", progress=False)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    lines = render(report).splitlines()
    assert ["AP", "large", "-"] in [line.split() for line in lines] and report["apl"] is None
    assert next(line for line in lines if line.startswith("AP50")).endswith(f"{100 * report['ap50']:6.2f}")
    write_report(report, csv=tmp_path / "rows.csv")
    row = next(csv.DictReader((tmp_path / "rows.csv").open()))
    for name in ("ap", "ap50", "ap75", "aps", "ar", "box_ap"):
        assert row[name] == f"{100 * report[name]:.2f}"
    assert row["apl"] == ""


# Class tables -------------------------------------------------------------------------------------------------------


def test_a_class_map_is_followed():
    """The model's classes are the data's backwards, in capitals, with two kinds of pavement and no fence."""
    shuffled = [name.upper() for name in CLASSES if name != "Fence"][::-1] + ["Lawn"]
    of_model = {i: shuffled.index(name.upper()) for i, name in enumerate(CLASSES) if name != "Fence"}

    def renamed(segments, table):  # pavement on the right is lawn; there is no fence
        right = segments[:, segments.shape[1] // 2 :]
        for i, label in table.items():
            if label == PAVEMENT:
                right[right == i] = 59
        table = {i: of_model[label] for i, label in table.items() if label != FENCE} | {59: len(shuffled) - 1}
        present = set(np.unique(segments).tolist())
        return segments, {i: label for i, label in table.items() if i in present}

    things = tuple(of_model[i] for i in THINGS)
    model, data = Oracle(renamed, labels=tuple(shuffled), things=things), painted()
    with pytest.raises(ValueError, match="only in the model: .*LAWN|class 0 is .* for the model and .* for painted"):
        evaluate(model, data, task="panoptic", progress=False)
    pairs = {name.upper(): name for name in CLASSES if name != "Fence"} | {"Lawn": "Pavement"}
    for task, name in (("panoptic", "pq"), ("instance", "ap")):
        report = evaluate(model, data, task=task, progress=False, class_map=pairs)
        assert report[name] == 1 and report["unscored"] == ["Fence"] and report["class_map"] == pairs
    fences = next(
        row
        for row in evaluate(model, data, task="panoptic", progress=False, class_map=pairs)["classes"]
        if row["name"] == "Fence"
    )
    assert fences["pq"] is None and fences["tp"] == fences["fp"] == fences["fn"] == 0
    lost = {**pairs, "CAR": None}
    report = evaluate(model, data, task="panoptic", progress=False, class_map={**lost, "Lawn": "Car"})
    row = report["classes"][CAR]
    assert row["tp"] == 0 and row["fn"] > 0 and row["fp"] > 0  # lawn where cars are asked for
    report = evaluate(model, data, task="instance", progress=False, class_map={**lost, "Lawn": "Road"})
    assert report["classes"][0]["name"] == "Car" and report["classes"][0]["ap"] is None and report["ap"] == 1


def test_things_must_be_the_same_or_unknown():
    data = painted(2)
    with pytest.raises(ValueError, match="other classes; only in the model: Road; only in painted: Ped"):
        evaluate(Oracle(things=(ROAD, CAR, THINGS[-1])), data, task="panoptic", progress=False)
    unknown = Oracle(things=())
    assert evaluate(unknown, data, task="panoptic", progress=False)["pq"] == 1  # then the data decide
    assert evaluate(unknown, data, task="instance", progress=False)["ap"] == 1
    for labels in ((), tuple(CLASSES)):
        assert evaluate(Oracle(labels=labels, things=()), data, task="panoptic", progress=False)["pq"] == 1
    stuff = Oracle(things=(CAR,))
    report = evaluate(stuff, data, task="panoptic", progress=False, class_map="names")
    assert report["classes"][CAR]["pq"] == 1 and report["classes"][PEDESTRIAN]["pq"] < 1  # people are one region
    fenced = evaluate(Oracle(things=(*THINGS, FENCE)), data, task="instance", progress=False, class_map="names")
    assert fenced["ap"] == 1 and all(row["name"] != "Fence" for row in fenced["classes"])


def test_an_ignored_class_is_never_scored():
    data = painted(2)
    data.labels = LabelMap(tuple(CLASSES), (), 0, tuple(THINGS))
    report = evaluate(Oracle(ignore_index=0), data, task="panoptic", progress=False)
    assert report["pq"] == 1 and report["classes"][0]["pq"] is None and report["classes"][BUILDING]["pq"] == 1


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_what_cannot_be_done_is_said_before_any_image(task: str):
    data = painted(2)

    def refused(message: str, model: Any = None, dataset: Any = data, **options) -> None:
        with pytest.raises(ValueError, match=message) as error:
            evaluate(model or Oracle(), dataset, task=task, progress=False, **options)
        assert "\n" not in str(error.value)

    lacking = {"panoptic": "segments", "instance": "masks"}[task]
    refused(f"task {task!r}; perpixel_fpn has semantic", small_model(names=tuple(CLASSES)))
    refused(f"scales, flip and window work for task 'semantic' only, not {task!r}", flip=True)
    refused("scales, flip and window work", window=64)
    if task != "instance":
        refused("boundary works for task 'semantic' and 'instance' only", boundary=True)
    refused(f"noise has no {lacking}, which task {task!r} needs", dataset=Noise(names=tuple(CLASSES)))
    assert not data.asked
    with pytest.raises(FileNotFoundError, match="no data folder"):
        evaluate(Oracle(), "nowhere", task=task)


def test_instances_need_things_and_the_evaluator(monkeypatch: pytest.MonkeyPatch):
    data = painted(2)
    data.labels = dataclasses.replace(data.labels, things=())
    with pytest.raises(ValueError, match="painted has no class of countable objects"):
        evaluate(Oracle(things=()), data, task="instance", progress=False)
    data = painted(2)
    with pytest.raises(ValueError, match="instance.* cannot be compared: its scores are no sums over images"):
        compare([Oracle(), Oracle()], data, task="instance", progress=False)
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with pytest.raises(ValueError, match=r"Boundary AP needs faster-coco-eval .*pip install 'fapn-zoo\[coco\]'$"):
        evaluate(Oracle(), data, task="instance", boundary=True, progress=False)
    assert not data.asked


def test_a_bad_picture_is_named():
    class Smaller(Painted):
        def sample(self, index: int) -> Any:
            sample = super().sample(index)
            objects = dataclasses.replace(sample.objects, ids=sample.objects.ids[:-1])
            return dataclasses.replace(sample, objects=objects) if index == 1 else sample

    for task in ("panoptic", "instance"):
        with pytest.raises(ValueError, match="scene_200000001: the predict.* 119x83 pixels, the tru.* 119x82"):
            evaluate(Oracle(), Smaller(OddScenes("scenes:2", "test")), task=task, progress=False)


# The rest of the harness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_everything_in_a_folder(tmp_path: Path, task: str):
    pytest.importorskip("matplotlib")
    name = {"panoptic": "pq", "instance": "ap"}[task]
    data = painted()
    report = evaluate(Oracle(mistaken), data, task=task, progress=False, out=tmp_path, worst=2)
    files = {p.name for p in tmp_path.iterdir()}
    assert files == {"report.json", "report.txt", "images.csv", "classes.png", "worst"}
    with open(tmp_path / "images.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["index", "image", name]
    for i, row in enumerate(rows):

        class One(Painted):
            def sample(self, index: int, place: int = i) -> Any:
                return super().sample(place)

        alone = evaluate(Oracle(mistaken), One(data.source), task=task, progress=False, limit=1)
        assert float(row[2]) == pytest.approx(alone[name], abs=1e-6)
    lowest = sorted(range(len(rows)), key=lambda i: float(rows[i][2]))[:2]
    expected = {f"{place:02d}_{rows[i][1]}.png" for place, i in enumerate(lowest, 1)}
    assert {p.name for p in (tmp_path / "worst").iterdir()} == expected
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_panoptic_models_side_by_side():
    data = painted()
    found = compare([Oracle(), Oracle(mistaken)], data, task="panoptic", resamples=50, progress=False)
    alone = evaluate(Oracle(mistaken), data, task="panoptic", progress=False)
    measures = found["differences"][0]["measures"]
    for name in ("pq", "rq"):
        assert measures[name]["first"] == 1 and measures[name]["value"] == pytest.approx(alone[name], abs=1e-12)
        classes = [row["value"] for row in measures[name]["classes"]]
        assert classes == pytest.approx([row[name] for row in alone["classes"]], abs=1e-12)
    assert measures["pq"]["high"] < 0
    text = render_comparison(found)
    assert "PQ" in text and "RQ" in text and text.splitlines()[-2].endswith("*")


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_a_stopped_evaluation_goes_on(tmp_path: Path, task: str):
    class Stopping(Painted):
        def sample(self, index: int) -> Any:
            if index == 4:
                raise KeyboardInterrupt
            return super().sample(index)

    model, options = Oracle(mistaken), {"task": task, "progress": False, "batch_size": 2}
    whole = evaluate(model, painted(6), **options)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, Stopping(OddScenes("scenes:6", "test")), resume=tmp_path, **options)
    rest = painted(6)
    assert lasting(evaluate(model, rest, resume=tmp_path, **options)) == lasting(whole)
    assert 0 < len(rest.asked) < 6
    again = painted(6)
    assert lasting(evaluate(model, again, resume=tmp_path, **options)) == lasting(whole) and not again.asked
    with pytest.raises(ValueError, match="holds another evaluation: task"):
        evaluate(model, again, resume=tmp_path, **options | {"task": "semantic"})
