"""Truth of COCO's instance json against itself, and disturbed truth against pycocotools on the file itself."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import coco

from fapn_zoo.create import create_model
from fapn_zoo.data import open_dataset
from fapn_zoo.data.sample import BOXES, MASKS, Crop, Objects
from fapn_zoo.evaluate import evaluate
from fapn_zoo.metrics.detection import SCORES
from fapn_zoo.postprocess import decode
from fapn_zoo.postprocess.answers import Frame
from fapn_zoo.tasks import TASKS
from fapn_zoo.train.settings import Settings
from fapn_zoo.train.setup import prepare

pytestmark = pytest.mark.unit


def shared(name: str) -> Path:
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("FAPN_ZOO_DATA", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"no {name} at {folder}: set FAPN_ZOO_DATA to the folder that holds it")
    return folder


@pytest.mark.parametrize(
    ("source", "split", "task", "least"),
    [
        ("bccd", "val", "detection", 87),
        ("dsb2018_nuclei", "val", "instance", 48),
        ("coco_panoptic_sample", "val", "detection", 2),
        ("coco_panoptic_sample", "val", "instance", 2),
        ("scenes:50@96x128", "test", "detection", 50),
        ("scenes:50@96x128", "test", "instance", 50),
    ],
)
def test_the_truth_scores_everything(source: str, split: str, task: str, least: int):
    data = open_dataset(source if ":" in source else shared(source), split, TASKS[task].needs)
    report = evaluate(coco.Witness(data, task), data, split, task, progress=False)
    assert report["images"] == least
    names = ("box_ap", "box_ap50", "box_ar") if task == "detection" else ("ap", "ap50", "ar", "box_ap")
    assert [report[name] for name in names] == [1.0] * len(names)
    assert sum(row["truth"] for row in report["classes"]) == sum(
        int((~sample.objects.crowd & np.isin(sample.objects.classes, data.labels.things)).sum())
        for sample in map(data.sample, range(least))
    )


def disturbed(objects: Objects, rng: np.random.Generator) -> Objects:
    """Some lost, some of another class, all a little off."""
    kept = np.flatnonzero(rng.random(len(objects.classes)) < 0.8)
    classes = np.where(rng.random(len(kept)) < 0.2, rng.integers(0, 3, len(kept)), objects.classes[kept])
    boxes = objects.boxes[kept] + rng.uniform(-1.5, 1.5, (len(kept), 4))
    crops = None
    if objects.crops is not None:
        crops = tuple(
            Crop(crop.pixels[: -1 - m % 2], crop.y, crop.x) for m, crop in enumerate(objects.crop(i) for i in kept)
        )
    return Objects(None, classes, np.zeros(len(kept), bool), crops, boxes)


def spoilt(masks: bool) -> dict[str, Any]:
    """Ids with gaps, areas that are not those of boxes or masks, a crowd, boxes that are not around the masks."""
    content, rng = coco.table(12, ids=(7, 2, 90), masks=masks), np.random.default_rng(1)
    for number, one in enumerate(content["annotations"]):
        one["area"] = float(rng.choice([30.0, 1500.0, 20000.0]))
        one["iscrowd"] = int(number % 9 == 4)
        one["bbox"][2] += 1.25
    content["annotations"][3]["bbox"] = [-4, 30, 20, 12.25]
    return content


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_disturbed_truth_scores_what_pycocotools_says_of_the_file(tmp_path: Path, task: str):
    api = pytest.importorskip("pycocotools.coco", reason="pycocotools is the witness")
    from pycocotools.cocoeval import COCOeval

    masks = task == "instance"
    data = open_dataset(coco.write(tmp_path, spoilt(masks)), "train", MASKS if masks else BOXES)
    model = coco.Witness(data, task, disturbed)
    report = evaluate(model, data, "train", task, progress=False)
    found: dict[str, list] = {"bbox": [], "segm": []}
    for i in range(len(data)):
        options = TASKS[task].scored
        answer = decode(model.output(i), task, Frame(data.size(i), data.size(i)), model.data, **options)
        for m, segment in enumerate(answer.segments):
            own = {"image_id": data.pictures[i].id, "category_id": data.labels.category_ids[segment.category_id]}
            own["score"] = segment.score
            if masks:
                full = np.asfortranarray(answer.masks[m].numpy().astype(np.uint8))
                rle = api.maskUtils.encode(full)
                found["segm"].append(own | {"segmentation": rle})
                found["bbox"].append(own | {"bbox": api.maskUtils.toBbox(rle).tolist()})
            else:
                x1, y1, x2, y2 = answer.boxes[m].double().tolist()
                found["bbox"].append(own | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    for kind, prefix in (("bbox", "box_"), ("segm", "")) if masks else (("bbox", "box_"),):
        with contextlib.redirect_stdout(None):
            truth = api.COCO(data.file)
            evaluator = COCOeval(truth, truth.loadRes(found[kind]), kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        ours = [report.get(prefix + ("ar" if name == "ar100" else name)) for name in SCORES]
        for name, mine, theirs in zip(SCORES, ours, evaluator.stats, strict=True):
            assert mine is None if theirs == -1 else mine == pytest.approx(theirs, abs=1e-9), (kind, name)
        assert 0.05 < report[f"{prefix}ap"] < 0.95


def test_objects_are_drawn_small_ones_on_top(tmp_path: Path):
    content = coco.table(1, ids=(1, 2), masks=False)
    content["annotations"] = [
        coco.annotation(1, 1, 1, [10, 10, 4, 4], segmentation=[]),
        coco.annotation(2, 1, 2, [-5, 5, 30, 20.4], segmentation=[]),
    ]
    data = open_dataset(coco.write(tmp_path, content), "train", BOXES)
    model = coco.Witness(data, "detection")
    from fapn_zoo.data.classes import match_classes

    scorer = TASKS["detection"].scorer(data, match_classes(model, data), model.data)
    frame = Frame(data.size(0), data.size(0))
    found, truth = scorer.maps(
        decode(model.output(0), "detection", frame, model.data, score_threshold=0.0), data.sample(0)
    )
    assert truth.shape == found.shape == coco.SIZE and (truth[10:14, 10:14] == 0).all()
    assert (truth[5:25, :25] == 1).sum() == 20 * 25 - 16 and (truth == 255).sum() == 40 * 56 - 500


@pytest.mark.parametrize("ids", [(1, 2, 3), (3, 7, 90), (0, 1, 2), (5, 2, 9), "supercategory"])
def test_names_and_ids_survive_training_and_saving(tmp_path: Path, ids: Any):
    content = coco.table(ids=(1, 2, 3) if ids == "supercategory" else ids)
    content["categories"].append({"id": 100, "name": "unused", "supercategory": "things"})
    expected = [(entry["id"], entry["name"]) for entry in sorted(content["categories"], key=lambda entry: entry["id"])]
    if ids == "supercategory":
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    coco.write(tmp_path, content)
    args = {"neck_out_channels": 8, "head_hidden": 8, "head_region_samples": 8, "head_proposals": 8}
    made = Settings(model="faster_rcnn_fpn", backbone="test_efficientnet", data=str(tmp_path), model_args=args)
    parts = prepare(made.replace(val_data="none", crop=(32, 32), out=str(tmp_path / "out")))
    parts.model.save(tmp_path / "model")
    again = create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert [*zip(again.data.category_ids, again.data.labels, strict=True)] == expected
    assert again.spec.task == "detection" and again.data.things == (0, 1, 2, 3)
    other = create_model(f"local-dir:{tmp_path / 'model'}", num_classes=2)
    assert other.data.category_ids == ()  # other classes
