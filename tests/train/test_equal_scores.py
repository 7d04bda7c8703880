"""One set in all formats: check, train, score and predict give the same, to the last digit."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.spatial import ConvexHull
from toys import coco, formats

from fapn_zoo.cli import main
from fapn_zoo.data import open_dataset, scenes
from fapn_zoo.data.sample import MASKS, Objects
from fapn_zoo.evaluate import evaluate

pytestmark = pytest.mark.train
SPLITS = {"train": range(5), "val": range(5, 8)}  # numbers of pictures, which are the seeds of scenes
KINDS = (scenes.CAR, scenes.PEDESTRIAN, scenes.SIGN)  # of objects; `formats.NAMES` are their names
LAYERS = ("road", "sky", "things")  # of class maps; the rest is ignored
COLOURS = ([128, 64, 128], [70, 130, 180], [0, 0, 142], [0, 0, 0])  # the last one is void
LEAST = 6  # pixels of an object


@cache
def scene(number: int) -> scenes.Scene:
    return scenes.generate_scene(number, coco.SIZE)


def objects(number: int) -> Iterator[tuple[int, list[float], list[float]]]:
    """(class, polygon, box x, y, width, height) of objects: the hulls of their pixels."""
    for segment in scene(number).segments:
        rows, columns = np.nonzero(scene(number).panoptic == segment["id"])
        if segment["category_id"] in KINDS and len(rows) >= LEAST:
            corners = np.concatenate([np.stack([columns + dx, rows + dy], 1) for dx in (0, 1) for dy in (0, 1)])
            hull = corners[ConvexHull(corners).vertices].astype(float)
            (x, y), (width, height) = hull.min(0).tolist(), np.ptp(hull, axis=0).tolist()
            yield KINDS.index(segment["category_id"]), hull.ravel().tolist(), [x, y, width, height]


def class_map(number: int) -> np.ndarray:
    table = np.full(256, 255, np.uint8)
    for i, kinds in enumerate(((scenes.ROAD, scenes.PAVEMENT), (scenes.SKY,), scenes.THINGS)):
        table[[*kinds]] = i
    return table[scene(number).semantic]


def tables(masks: bool = True) -> dict[str, dict[str, Any]]:
    """COCO's json of the splits."""
    found = {}
    for split, numbers in SPLITS.items():
        found[split] = coco.table(images=len(numbers), ids=())
        found[split]["categories"] = coco.table(images=0)["categories"]
        for image, number in enumerate(numbers, 1):
            for category, polygon, box in objects(number):
                more = {"segmentation": [polygon] if masks else [], "iscrowd": 0}
                place = len(found[split]["annotations"]) + 1
                found[split]["annotations"].append(coco.annotation(place, image, category + 1, box, **more))
    return found


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# ---------------------------------------------------------------- writers: they return what stands after data=


def of_objects(write: Callable[..., Path]) -> Callable[[Path], str]:
    """A writer of `toys.formats`, with our pictures instead of its own."""

    def written(root: Path) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "tables", tables)
            write(root, masks=True)
        for path in root.rglob("*.png"):
            (split,) = (split for split in SPLITS if split in path.relative_to(root).as_posix())
            path.write_bytes(png(scene(SPLITS[split][int(path.stem[-3:]) - 1]).image))
        return str(root)

    return written


def hf(row: Callable[[int], dict[str, Any]], **kinds: Any) -> Callable[[Path], str]:
    """Parquet files of rows; images are those that `kinds` or their name say."""

    def written(root: Path) -> str:
        root.mkdir()
        for split, numbers in SPLITS.items():
            rows = [{"image": {"bytes": png(scene(n).image), "path": None}} | row(n) for n in numbers]
            found = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
            for name, kind in kinds.items():
                found = found.cast_column(name, kind)
            found.to_parquet(root / f"{'validation' if split == 'val' else split}.parquet")
        return f"hf:{root}"

    return written


def row_of_objects(number: int) -> dict[str, Any]:
    found = [{"category": k, "segmentation": [polygon], "bbox": box} for k, polygon, box in objects(number)]
    return {"objects": found}


def row_of_masks(number: int) -> dict[str, Any]:
    return {"label": {"bytes": png(class_map(number)), "path": None}}


def hf_masks(root: Path) -> str:
    name = hf(row_of_masks, label=datasets.Image())(root)
    (root / "id2label.json").write_text(json.dumps(dict(enumerate(LAYERS))))
    return name


def folder(palette: bool) -> Callable[[Path], str]:
    def written(root: Path) -> str:
        for split, numbers in SPLITS.items():
            for kind in ("images", "labels"):
                (root / split / kind).mkdir(parents=True)
            for number in numbers:
                (root / f"{split}/images/{number}.png").write_bytes(png(scene(number).image))
                labels = Image.fromarray(class_map(number))
                if palette:
                    labels.putpalette(np.random.default_rng(0).integers(0, 255, 768, np.uint8).tobytes())
                labels.save(root / f"{split}/labels/{number}.png")
        (root / "classes.json").write_text(json.dumps({"names": LAYERS}))
        return str(root)

    return written


def cvat(root: Path) -> str:
    """Colours, in CVAT's folders, void among them."""
    table = {"names": LAYERS, "values": [[colour] for colour in COLOURS[:3]], "ignored_values": COLOURS[3:]}
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, numbers in SPLITS.items():
        for number in numbers:
            colours = np.array(COLOURS, np.uint8)[np.minimum(class_map(number), 3)]
            for kind, pixels in (("JPEGImages", scene(number).image), ("SegmentationClass", colours)):
                (root / kind).mkdir(exist_ok=True)
                (root / kind / f"{number}.png").write_bytes(png(pixels))
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{number}\n" for number in numbers))
    (root / "classes.json").write_text(json.dumps(table))
    return str(root)


def template(root: Path) -> str:
    """Ids from 1, in arrays, where a template says."""
    for split, numbers in SPLITS.items():
        for kind in ("rgb", "truth"):
            (root / kind / split).mkdir(parents=True)
        for number in numbers:
            (root / f"rgb/{split}/{number}.png").write_bytes(png(scene(number).image))
            np.save(root / f"truth/{split}/t{number}.npy", (class_map(number) + np.uint8(1)).astype(np.int64))
    (root / "classes.json").write_text(json.dumps({"names": LAYERS, "values": [1, 2, 3], "ignored_values": [0]}))
    return f"{root}?masks={{parent|rgb>truth}}/t{{stem}}.npy"


class Row(NamedTuple):
    """A format: what writes the set in it, and what it can be trained for."""

    write: Callable[[Path], str]
    task: str


NUMBERS = datasets.List(datasets.Value("float64"))
KIND = datasets.ClassLabel(names=list(formats.NAMES))
INNER = {"category": KIND, "bbox": NUMBERS, "segmentation": datasets.List(NUMBERS)}
ROWS = {
    **{name: Row(of_objects(write), "instance") for name, write in formats.WRITERS.items()},
    "hf objects": Row(hf(row_of_objects, objects=datasets.List(INNER)), "instance"),
    "folder": Row(folder(palette=False), "semantic"),
    "folder of palettes": Row(folder(palette=True), "semantic"),
    "hf masks": Row(hf_masks, "semantic"),
    "CVAT masks": Row(cvat, "semantic"),
    "a template": Row(template, "semantic"),
}
# ---------------------------------------------------------------- the same for all

TINY = (
    "backbone=test_efficientnet model_args.neck_out_channels=16 crop=32,48 steps=20 batch_size=2 checkpoint_every=0 "
    "threads=1 log_every=1 lr=1e-3"
)
MODELS = {
    "semantic": ("finetune_folder", "model=perpixel_fpn model_args.head_mask_channels=16"),
    "instance": (
        "finetune_objects",
        "model=mask_rcnn_fpn model_args.head_hidden=16 model_args.head_anchor_sides=8,16,32,64,128 "
        "model_args.head_mask_hidden=8 model_args.head_mask_convs=1 model_args.head_train_proposals=60 "
        "model_args.head_proposals=60 model_args.head_max_detections=10 model_args.head_score_threshold=0.0",
    ),
}
UNLIKE = ("data", "source", "seconds", "command", "date", "weights")  # of reports


def moved(found: Objects, rng: np.random.Generator) -> Objects:
    """Masks that lie a pixel beside their objects, or do not."""
    crops = tuple(crop._replace(y=max(crop.y - int(rng.integers(2)), 0)) for crop in found.crops)
    return Objects(None, found.classes, found.crowd, crops)


@pytest.mark.parametrize("task", MODELS)
def test_scores_are_equal(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Path("photo.png").write_bytes(png(scene(0).image))
    rows = {name: row for name, row in ROWS.items() if row.task == task}
    (recipe, model), results, witness = MODELS[task], {}, None
    for number, (name, row) in enumerate(rows.items()):
        source, out = row.write(tmp_path / f"data {number}"), f"runs/{number}"
        data = shlex.quote(source)
        lines = (
            f"check-data {data}",
            f"train {recipe} data={data} {model} {TINY} out={out}",
            f"eval {out}/model --data {data} --split val --task {task} --json {out}/own.json",
            f"eval runs/0/model --data {data} --split val --task {task} --json {out}/first.json",
            f"predict photo.png --model {out}/model --out {out}/found --task {task}",
        )
        for line in lines:
            assert main(shlex.split(line)) in (0, None), f"{name}: {line}"
        reports = [json.loads(Path(f"{out}/{kind}.json").read_text()) for kind in ("own", "first")]
        if task == "instance":  # after 20 steps a net finds nothing
            witness = witness or coco.Witness(open_dataset(source, "val", MASKS), task, moved)
            witness.place = 0
            reports.append(evaluate(witness, source, split="val", task=task, batch_size=1))
        results[name] = [{k: v for k, v in one.items() if k not in UNLIKE} for one in reports]
        assert 0.1 < results[name][-1]["miou" if task == "semantic" else "ap"] < 1
        weights = load_file(f"{out}/model/model.safetensors")
        found = sorted(Path(f"{out}/found").iterdir())
        assert len(found) > 1
        if number == 0:
            first, pictures = weights, [path.read_bytes() for path in found if path.suffix == ".png"]
        for key, value in weights.items():
            assert torch.equal(value, first[key]), f"{name}: {key}"
        assert [path.read_bytes() for path in found if path.suffix == ".png"] == pictures, name
    capsys.readouterr()
    for name, result in results.items():
        assert result == results[next(iter(rows))], name
