"""YOLO, Pascal VOC and LabelMe: the same pictures and objects in every format, and what is refused or told."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import coco, formats

from fapn_zoo.data import DataError, check, layouts, open_dataset
from fapn_zoo.data.check import check_data
from fapn_zoo.data.formats.labelme import LabelMeFolder
from fapn_zoo.data.formats.voc import VocFolder
from fapn_zoo.data.formats.yolo import YoloFolder
from fapn_zoo.data.generated import ScenesDataset
from fapn_zoo.data.sample import BOXES, MASKS, check_holds
from fapn_zoo.evaluate import evaluate

pytestmark = pytest.mark.unit
HEIGHT, WIDTH = coco.SIZE
OTHERS = {"yolo": YoloFolder, "voc": VocFolder, "labelme": LabelMeFolder}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("masks", [True, False])
def test_names_sizes_and_objects_are_those_of_coco(name: str, masks: bool, tmp_path: Path):
    formats.write_coco(tmp_path / "coco", masks)
    formats.WRITERS[name](tmp_path / "other", masks)
    for split in formats.SPLITS:
        needs = MASKS if masks else BOXES
        ours, theirs = (open_dataset(tmp_path / kind, split, needs) for kind in ("coco", "other"))
        assert type(theirs) is OTHERS[name] and theirs.holds == needs and len(theirs) == len(ours) == 3
        assert theirs.labels == ours.labels
        for n in range(3):
            expected, found = ours.sample(n), theirs.sample(n)
            assert np.array_equal(found.image, expected.image) and theirs.size(n) == coco.SIZE
            assert found.objects.classes.tolist() == expected.objects.classes.tolist() == [0, 1, 2]
            np.testing.assert_allclose(found.objects.boxes, expected.objects.boxes, rtol=0, atol=1e-12)
            np.testing.assert_allclose(found.objects.areas, expected.objects.areas, rtol=0, atol=1e-9)
            assert theirs.listed(n).tolist() == [1, 1, 1, 0] and not found.objects.crowd.any()
            if masks:
                both = [sample.objects.masks(range(3), coco.SIZE) for sample in (expected, found)]
                assert np.array_equal(*both)
    report = check_data(tmp_path / "other", progress=False)
    assert report.ok and list(report.splits) == ["train", "val"]
    assert report.splits["val"].pixels.tolist() == [3, 3, 3, 0]


def test_scores_of_all_formats_are_equal(tmp_path: Path):
    def shifted(objects, rng):
        moved = objects.boxes + rng.uniform(-1, 1, objects.boxes.shape)
        return type(objects)(None, objects.classes, objects.crowd, None, moved)

    scores = {}
    for name, write in formats.WRITERS.items():
        data = open_dataset(write(tmp_path / name, masks=False), "val", BOXES)
        witness = coco.Witness(data, "detection", shifted)
        report = evaluate(witness, str(tmp_path / name), split="val", task="detection", batch_size=1)
        left_out = {"data", "source", "seconds", "command", "date"}
        scores[name] = {key: value for key, value in report.items() if key not in left_out}
    for found in scores.values():
        assert found == scores["coco"]
    assert 0 < scores["coco"]["box_ap"] < 1


@pytest.mark.parametrize("names", [{0: "kind 1", 1: "kind 2", 2: "kind 3"}, formats.NAMES])
def test_yolo_names_are_a_list_or_a_dict(names: object, tmp_path: Path):
    spec = {0: "a"} and names
    formats.write_yolo(tmp_path, names=list(spec) if isinstance(spec, tuple) else None)
    if isinstance(spec, dict):
        rows = "\n".join(f"  {i}: {name}" for i, name in spec.items())
        (tmp_path / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{rows}\n")
    assert open_dataset(tmp_path / "data.yaml", "val", MASKS).labels.names == formats.NAMES


def as_lists(root: Path) -> None:
    for split in formats.SPLITS:
        names = sorted(path.name for path in (root / "images" / split).iterdir())
        (root / f"{split}.txt").write_text("".join(f"./images/{split}/{name}\n" for name in names))


def by_split(root: Path) -> None:
    for split in formats.SPLITS:
        move(root, f"images/{split}", f"{split}/images", f"labels/{split}", f"{split}/labels")


def side_by_side(root: Path) -> None:
    for split in formats.SPLITS:
        for path in [*root.glob(f"images/{split}/*"), *root.glob(f"labels/{split}/*")]:
            move(root, path.relative_to(root).as_posix(), f"{split}/{path.name}")


YOLO_LAYOUTS = {
    "lists": (as_lists, "train: train.txt\nval: val.txt"),
    "several folders": (lambda root: None, "train: [images/train, images/val]\nval: images/val"),
    "roboflow": (by_split, "train: ../train/images\nval: ../val/images"),
    "another machine": (lambda root: None, "path: /content/drive/mine\ntrain: images/train\nval: images/val"),
    "beside": (side_by_side, "train: train\nval: val"),
}


def move(root: Path, *places: str) -> None:
    for old, new in zip(places[::2], places[1::2], strict=True):
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)


@pytest.mark.parametrize("case", YOLO_LAYOUTS)
def test_every_layout_of_yolo_is_found(case: str, tmp_path: Path):
    formats.write_yolo(tmp_path)
    change, lines = YOLO_LAYOUTS[case]
    expected = open_dataset(tmp_path, "val", MASKS).sample(2)
    change(tmp_path)
    (tmp_path / "data.yaml").write_text(f"{lines}\nnames: {json.dumps(formats.NAMES)}\n")
    data, found = (x := open_dataset(tmp_path, "val", MASKS)), x.sample(2)
    assert len(data) == 3 and np.array_equal(found.objects.boxes, expected.objects.boxes)
    assert np.array_equal(found.image, expected.image) and len(found.objects.classes) == 3
    assert len(open_dataset(tmp_path, "train", MASKS)) == (6 if case == "several folders" else 3)
    told = [text for text in data.unused if "is taken" in text]
    assert bool(told) == (case in ("roboflow", "another machine"))


@pytest.mark.parametrize("file", ["classes.txt", "obj.names", "data/obj.names"])
def test_yolo_without_a_yaml_file(file: str, tmp_path: Path):
    formats.write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("kind 1\nkind 2\nkind 3\n\n")
    assert open_dataset(tmp_path, "val", MASKS).labels.names == formats.NAMES


def test_layouts_of_voc_and_labelme(tmp_path: Path):
    expected = open_dataset(formats.write_voc(tmp_path / "VOCdevkit/VOC2012"), "val", MASKS).sample(1)
    root = tmp_path / "VOCdevkit"
    (root / "classes.json").write_text((root / "VOC2012/classes.json").read_text())
    (root / "VOC2012/ImageSets/Main/kind_val.txt").write_text("val_004  1\nval_005 -1\n")
    assert VocFolder.splits(root) == VocFolder.splits(tmp_path) == ["train", "val"]
    assert np.array_equal(open_dataset(root, "val", MASKS).sample(1).objects.boxes, expected.objects.boxes)
    beside = tmp_path / "beside"
    for split in ("train", "valid"):
        (beside / split).mkdir(parents=True)
        for file in (*root.glob(f"*/*/{split[:3]}*.xml"), *root.glob(f"*/*/{split[:3]}*.png")):
            (beside / split / file.name).write_bytes(file.read_bytes())
    data = open_dataset(beside, "val", MASKS)  # its classes are in alphabetical order, its pixels counted from 1
    assert np.array_equal(data.sample(1).objects.boxes, expected.objects.boxes)
    assert [text.partition(": ")[2][:30] for text in data.unused] == [
        "pixels are taken to be counted", "its classes are the 3 names in"
    ]  # fmt: skip
    flat = formats.write_labelme(tmp_path / "labelme") / "train"
    (flat / "extra.png").write_bytes((flat / "001.png").read_bytes())
    data = open_dataset(flat, "test", MASKS)
    assert len(data) == 3 and "1 pictures that have no json file: extra.png" in data.unused[-1]


def rows(change: Callable[[list[str]], object]) -> Callable[[Path], object]:
    """Changes the rows of labels/train/002.txt."""

    def apply(root: Path) -> None:
        file = root / "labels/train/002.txt"
        lines = file.read_text().splitlines()
        change(lines)
        file.write_text("\n".join(lines))

    return apply


def spec(old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / "data.yaml").write_text((root / "data.yaml").read_text().replace(old, new))


YOLO_FAULTS = {
    "id too large": (rows(lambda r: r.append("3 .5 .5 .2 .2")), "002.txt: row 4 is of class 3; expected 0..2"),
    "id of half": (rows(lambda r: r.append("0.5 .5 .5 .2 .2")), "row 4 is of class 0.5"),
    "pixels": (rows(lambda r: r.append("0 20 20 8 8")), "row 4 has coordinates up to 20; expected shares .*Divide x"),
    "a score": (rows(lambda r: r.append("0 .5 .5 .2 .2 .9")), "row 4 has 6 numbers; .*is the last one a score"),
    "an odd polygon": (rows(lambda r: r.append("0 .1 .1 .2 .2 .3 .3 .4")), "row 4 has 8 numbers; expected 5"),
    "text": (rows(lambda r: r.append("kind .5 .5 .2 .2")), "row 4 is 'kind .5 .5 .2 .2'; expected a class id"),
    "NaN": (rows(lambda r: r.append("0 nan .5 .2 .2")), "row 4 is '0 nan .5 .2 .2'; expected a class id"),
    "no width": (rows(lambda r: r.append("0 .5 .5 0 .2")), "row 4 has width 0 and height 0.2; both must be above 0"),
    "outside": (rows(lambda r: r.append("0 1.2 .5 .2 .2")), r"row 4 with x 1.1..1.3, y 0.4..0.6 of 0..1 is outside"),
    "only an id": (rows(lambda r: r.append("0")), "row 4 is '0'; expected a class id and coordinates"),
    "bytes": (lambda r: (r / "labels/train/002.txt").write_bytes(b"\xff\xfe0"), "002.txt is no UTF-8 text"),
    "gaps": (lambda r: (r / "data.yaml").write_text("names: {0: a, 2: b}"), "has the ids 0, 2; expected 0..1"),
    "nc": (spec("nc: 3", "nc: 4"), "nc is 4, but names lists 3"),
    "no names": (spec("names:", "titles:"), "names is None; expected a list"),
    "twice a name": (spec("kind 2", "kind 1"), "class names must differ; repeated: 'kind 1'"),
    "key points": (spec("nc: 3", "kpt_shape: [17, 3]"), "is of key points"),
    "yes and no": (spec('"kind 1", "kind 2"', "yes, no"), "names has True, False, no text for YAML; write"),
    "one label for two": (lambda r: (r / "images/train/002.bmp").write_bytes(b""), "it shares the label file 002.txt"),
    "dead link": (lambda r: (r / "images/train/9.png").symlink_to("nowhere"), "9.png: a link to nowhere, which is not"),
    "broken": (spec("nc: 3", "nc: ]"), "is not readable YAML"),
    "a number": (spec("train: images/train", "train: 7"), "train is 7; expected a folder, a text file, or a list"),
    "no pictures": (spec("train: images/train", "train: labels/train"), "no pictures in split 'train'"),
    "classes.json": (lambda r: (r / "classes.json").write_text('{"names": ["x"]}'), "classes.json has no 'kind 1', "),
}  # fmt: skip


def xml(old: str, new: str) -> Callable[[Path], object]:
    """Changes the first such text in Annotations/train_002.xml."""

    def apply(root: Path) -> None:
        file = root / "Annotations/train_002.xml"
        assert re.search(old, text := file.read_text())
        file.write_text(re.sub(old, new, text, count=1))

    return apply


VOC_FAULTS = {
    "from 0": (xml("<xmin>[^<]+", "<xmin>0"), 'has xmin 0 and ymin .*write "first_pixel": 0 in classes.json'),
    "inverted": (xml("<xmax>[^<]+", "<xmax>1"), r"train_002.xml: object 1 \(kind 1\) has bbox .*width and height"),
    "no box": (xml("bndbox", "box"), "Annotations/train_002.xml is no|train_002.xml: no readable XML"),
    "no number": (xml("<xmin>[^<]+", "<xmin>x"), r"object 1 \(kind 1\) has no bndbox with the numbers xmin, ymin"),
    "unlisted": (xml("kind 1", "kind 9"), r"object 1 \(kind 9\) is of no class that is listed"),
    "cut off": (xml("</annotation>", ""), "no readable XML"),
    "of no picture": (lambda r: (r / "JPEGImages/train_002.png").unlink(), "train_002.xml: there is no picture"),
    "listed only": (lambda r: (r / "Annotations/train_002.xml").unlink(), "a list in ImageSets names it, and "),
    "origin": (lambda r: (r / "classes.json").write_text('{"first_pixel": 2}'), "first_pixel is 2; expected 1"),
    "outside": (xml("<xmax>[^<]+", "<xmax>-3"), "has bbox .*width and height must be above 0"),
    "odd polygon": (xml("<y2>[^<]+</y2>", ""), r"object 1 \(kind 1\) has a polygon .*; expected numbers x, y"),
    "bad polygon": (xml("<y2>[^<]+</y2>", "<y2>?</y2>"), r"object 1 .* has a polygon .*; expected numbers x, y"),
}  # fmt: skip


def shape(change: Callable[[dict], object], number: int = 1) -> Callable[[Path], object]:
    """Changes a shape of train/002.json."""

    def apply(root: Path) -> None:
        table = json.loads((root / "train/002.json").read_text())
        change(table["shapes"][number] if number >= 0 else table)
        (root / "train/002.json").write_text(json.dumps(table))

    return apply


LABELME_FAULTS = {
    "circle": (shape(lambda s: s.update(shape_type="circle")), r"shapes\[1\] \(kind 2\) is a circle; draw it as"),
    "line": (shape(lambda s: s.update(shape_type="linestrip")), r"shapes\[1\] \(kind 2\) is a line"),
    "another": (shape(lambda s: s.update(shape_type="star")), r"shapes\[1\] has shape_type 'star'; expected polygon"),
    "two points": (shape(lambda s: s.update(points=[[1, 1], [2, 2]])), r"shapes\[1\] has points .*polygon of 3 points"),
    "pixels outside": (shape(lambda s: s.update(points=[[90, 1], [99, 2], [95, 9]])), "which is outside of its"),
    "text": (shape(lambda s: s.update(points="1 2 3")), r"shapes\[1\] has points 1 2 3; expected a polygon"),
    "no label": (shape(lambda s: s.pop("label")), r"shapes\[1\] \(None\) is of no class that is listed"),
    "a bad mask": (shape(lambda s: s.update(shape_type="mask", mask="x")), r"shapes\[1\] has a mask that is no PNG"),
    "no picture": (lambda r: (r / "train/002.png").unlink(), "names the picture '002.png', which is not there"),
    "no list": (shape(lambda t: t.update(shapes={}), -1), "no file of LabelMe: expected an object with a list shapes"),
    "no json": (lambda r: (r / "train/002.json").write_text("{"), "002.json is not readable JSON"),
    "UTF-16": (lambda r: (r / "train/002.json").write_bytes('{"shapes": []}'.encode("utf-16")), "is UTF-16 text"),
    "null": (shape(lambda t: t["shapes"].append(None), -1), r"shapes\[3\] has shape_type None"),
    "another size": (shape(lambda t: t.update(imageHeight=9, imageWidth=9), -1), "is outside of its picture of 9x9"),
}  # fmt: skip
TABLES = {"yolo": YOLO_FAULTS, "voc": VOC_FAULTS, "labelme": LABELME_FAULTS}
FAULTS = {(kind, case): found for kind, table in TABLES.items() for case, found in table.items()}


@pytest.mark.parametrize(("kind", "case"), FAULTS)
def test_what_is_refused(kind: str, case: str, tmp_path: Path):
    change, message = FAULTS[kind, case]
    change(formats.WRITERS[kind](tmp_path))
    with pytest.raises(DataError, match=message) as error:
        open_dataset(tmp_path, "train", BOXES)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    report = check_data(tmp_path, progress=False)
    assert not report.ok and "all good" not in report.render()
    assert any(re.search(message, problem.detail) for problem in report.problems if problem.error), report.render()


TOLD = {
    ("yolo", "equal rows"): (rows(lambda r: r.append(r[0])), "rows 1 and 4 are equal; both are used"),
    ("yolo", "reaches out"): (rows(lambda r: r.append("0 .95 .5 .2 .2")), "row 4 reaches out by 5.00% of the picture"),
    ("yolo", "no labels"): (lambda r: (r / "labels/train/002.txt").unlink(), "1 pictures without a label file"),
    ("yolo", "no picture"): (lambda r: (r / "images/train/002.png").unlink(), "1 label files without picture: 002"),
    ("voc", "difficult"): (xml("<part>", "<difficult>1</difficult><part>"), r"object 1 \(kind 1\) is difficult: it is"),
    ("voc", "some masks"): (xml("<polygon>.*?</polygon>", ""), "only boxes are used: 1 of 9 objects have"),
    ("labelme", "reaches out"): (
        shape(lambda s: s.update(points=[[50, 30], [60, 30], [55, 44]])), r"shapes\[1\] .* reaches out by 4 pixels"
    ),
    ("labelme", "some masks"): (
        shape(lambda s: s.update(shape_type="rectangle", points=[[1, 2], [9, 9]])), "only boxes are used: 1 of 9 object"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "case"), TOLD)
def test_what_is_used_and_told(kind: str, case: str, tmp_path: Path):
    change, message = TOLD[kind, case]
    change(formats.WRITERS[kind](tmp_path))
    data = open_dataset(tmp_path, "train", BOXES)
    assert any(re.search(message, text) for text in data.unused), data.unused
    report = check_data(tmp_path, progress=False)
    assert report.ok and not report.render().endswith("all good")
    if case == "difficult":
        assert data.sample(1).objects.crowd.tolist() == [True, False, False] and data.listed(1).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("name", ["coco", *OTHERS])
def test_a_folder_of_another_kind_is_not_good(name: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    report = check_data(f"{name}:{tmp_path / 'empty'}", progress=False)
    assert [problem.kind for problem in report.problems] == ["split that cannot be opened"] and not report.ok


def test_a_source_that_lists_no_splits_is_asked_for_the_usual_ones(monkeypatch: pytest.MonkeyPatch):
    class Plain:
        def __new__(cls, spec: str, split: str, *_: object) -> ScenesDataset:
            return ScenesDataset(spec.replace("plain", "scenes"), split)

    monkeypatch.setattr(layouts, "PREFIXES", {"plain": Plain})
    monkeypatch.setattr(check, "PREFIXES", layouts.PREFIXES)
    report = check_data("plain:2@32x32", progress=False)
    assert list(report.splits) == ["train", "val", "test"] and report.splits["val"].samples == 2


def test_pixels_that_count_from_0(tmp_path: Path):
    ours = open_dataset(formats.write_voc(tmp_path / "a", masks=False), "train", BOXES)
    theirs = open_dataset(formats.write_voc(tmp_path / "b", masks=False, first=0), "train", BOXES)
    unsaid = open_dataset(formats.write_voc(tmp_path / "c", masks=False, said={"names": formats.NAMES}), "train", BOXES)
    for n in range(3):
        expected = ours.sample(n).objects.boxes
        np.testing.assert_allclose(theirs.sample(n).objects.boxes, expected, atol=1e-12)
        assert np.array_equal(unsaid.sample(n).objects.boxes, expected)
    assert not ours.unused and not theirs.unused and "counted from 1" in unsaid.unused[0]


def test_groups_and_masks_of_labelme(tmp_path: Path):
    formats.write_labelme(tmp_path)
    stamp = io.BytesIO()
    Image.fromarray(np.array([[0, 1, 1], [1, 1, 0]], bool)).save(stamp, "PNG")
    painted = {
        "shape_type": "mask",
        "points": [[10, 20], [12, 21]],
        "mask": base64.b64encode(stamp.getvalue()).decode(),
    }
    one, two = ({"label": "kind 3", "group_id": 5, **part} for part in (
        painted, {"shape_type": "polygon", "points": [[30, 30], [34, 30], [34, 33], [30, 33]]}
    ))  # fmt: skip
    other = {"label": "kind 2", "group_id": 5, "shape_type": "polygon", "points": [[0, 0], [4, 0], [4, 2], [0, 2]]}
    table = json.loads((tmp_path / "train/002.json").read_text())
    table |= {"shapes": [one, other, two], "imagePath": "..\\train\\002.png", "imageHeight": None}
    (tmp_path / "train/002.json").write_text(json.dumps(table))
    objects = open_dataset(tmp_path, "train", MASKS).sample(1).objects
    expected = np.zeros((2, *coco.SIZE), bool)
    expected[0, 20:22, 10:13] = [[0, 1, 1], [1, 1, 0]]
    expected[0, 30:33, 30:34] = True
    expected[1, :2, :4] = True
    assert objects.classes.tolist() == [2, 1] and np.array_equal(objects.masks(range(2), coco.SIZE), expected)
    assert objects.boxes.tolist() == [[10, 20, 34, 33], [0, 0, 4, 2]] and objects.areas.tolist() == [16, 8]


def test_a_turned_picture_has_the_boxes_of_the_turned_one(tmp_path: Path):
    formats.write_yolo(tmp_path, masks=False)
    exif = Image.Exif()
    exif[0x0112] = 8
    file = tmp_path / "images/train/002.png"
    Image.open(file).save(file.with_suffix(".JPG"), exif=exif, format="JPEG")
    file.unlink()
    data = open_dataset(tmp_path, "train", BOXES)
    at = [data.files(n)[0].suffix for n in range(3)].index(".JPG")
    assert data.size(at) == data.sample(at).size == (WIDTH, HEIGHT)
    x, y, w, h = (float(v) for v in (tmp_path / "labels/train/002.txt").read_text().splitlines()[0].split()[1:])
    box = [(x - w / 2) * HEIGHT, (y - h / 2) * WIDTH, (x + w / 2) * HEIGHT, (y + h / 2) * WIDTH]
    np.testing.assert_allclose(data.sample(at).objects.boxes[0], box, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_a_split_that_is_not_there_is_told_with_those_that_are(name: str, tmp_path: Path):
    formats.WRITERS[name](tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no split 'test' in .*; it has train, val"):
        open_dataset(tmp_path, "test", BOXES)
    with pytest.raises(DataError, match="num_classes is 7, but .* lists 3 classes"):
        open_dataset(tmp_path, "val", BOXES, num_classes=7)
    with pytest.raises(ValueError, match="has no labels"):
        check_holds(open_dataset(tmp_path, "val", BOXES), ("labels",), "a test")
