"""Pictures and masks in layouts of others, official ones too: the same ids from every encoding, and what is told."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fapn_zoo import create_model
from fapn_zoo.data import DataError, open_dataset
from fapn_zoo.data.check import check_data
from fapn_zoo.data.formats.masks import MaskPairs
from fapn_zoo.data.formats.official import OfficialMasks
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.reading import read_labels
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings
from fapn_zoo.zoo.labels import label_set

pytestmark = pytest.mark.unit
SIZE = (12, 9)
NAMES = ("sky", "road", "car")
COLOURS = ((0, 0, 0), (250, 50, 83), (51, 221, 255))


def ids(i: int, classes: int = 3) -> np.ndarray:
    return np.random.default_rng(i).integers(0, classes, SIZE).astype(np.uint8)


def write(path: Path, values: np.ndarray, palette: Any = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".mat":
        savemat(path, {"S": values.astype(np.uint16)})
    else:
        image = Image.fromarray(values)
        if palette is not None:
            image = image.convert("P")
            image.putpalette(np.asarray(palette, np.uint8).ravel().tolist())
        image.save(path)


def picture(path: Path, i: int = 0) -> None:
    write(path, np.random.default_rng(100 + i).integers(0, 255, (*SIZE, 3)).astype(np.uint8))


def folder(
    root: Path,
    places: Mapping[str, str],
    encode: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    palette: Any = None,
    **table: Any,
) -> Path:
    """Pictures and masks by place, with {} for the number, six of each; `classes.json` where a table is given."""
    for image, mask in places.items():
        for i in range(6):
            picture(root / image.format(i), zlib.crc32(image.format(i).encode()))
            write(root / mask.format(i), encode(ids(i)), palette)
    if table:
        (root / "classes.json").write_text(json.dumps({"names": NAMES} | table))
    return root


def same(data: Any) -> bool:
    """Whether every sample has the ids that its number makes."""
    numbers = [int(re.findall(r"\d+", name.rpartition("/")[2])[0]) for name, _, _ in data.pairs]
    return all(np.array_equal(data.sample(n).labels, ids(i)) for n, i in enumerate(numbers))


LAYOUTS = {
    "beside, no splits": {"images/{}.jpg": "masks/{}.png"},
    "splits inside": {
        "images/training/{}.jpg": "masks/training/{}.png",
        "images/validation/{}.jpg": "masks/validation/{}.png",
    },
    "splits outside": {
        "train/imgs/{}.JPG": "train/annotations/{}_mask.png",
        "val/imgs/{}.JPG": "val/annotations/{}_mask.png",
    },
    "split and its masks": {"train/é {}.jpg": "train_masks/é {}_mask.gif", "val/é {}.jpg": "val_masks/é {}_mask.gif"},
    "annot": {"train/{}.png": "trainannot/{}.png", "test/{}.png": "testannot/{}.png"},
    "in one folder": {"a/{}.jpg": "a/{}_seg.png"},
    "towns": {"images/train/town/{}.png": "gt/train/town/{}.png", "images/val/town/{}.png": "gt/val/town/{}.png"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_usual_layouts_are_found(name: str, tmp_path: Path):
    root = folder(tmp_path / "set", LAYOUTS[name], ignore_index=255)
    data = open_dataset(root, "train")
    assert type(data) is MaskPairs and data.labels.names == NAMES and same(data)
    assert len(data) == (5 if "no splits" in name or "one folder" in name else 6)
    assert all(data.size(n) == SIZE == data.sample(n).size for n in range(2))
    report = check_data(root, progress=False)
    assert report.ok, report.render()
    assert report.layout == "masks" and "masks are {parent" in report.render()


ENCODINGS: dict[str, tuple[str, Any, Any, dict]] = {
    "ids": ("png", lambda v: v, None, {}),
    "shifted": ("png", lambda v: v + 1, None, {"values": [1, 2, 3]}),
    "16 bits": ("png", lambda v: v.astype(np.uint16) + 300, None, {"values": [[300], [301], [302]]}),
    "palette": ("png", lambda v: v, COLOURS, {}),
    "palette by colour": ("png", lambda v: 2 - v, COLOURS[::-1], {"values": [[c] for c in COLOURS]}),
    "colours": ("png", lambda v: np.array(COLOURS, np.uint8)[v], None, {"values": [[c] for c in COLOURS]}),
    "tiff": ("tif", lambda v: v, None, {}),
    "bmp": ("bmp", lambda v: v, None, {}),
    "array": ("npy", lambda v: v.astype(np.int64), None, {}),
    "array of colours": ("npy", lambda v: np.array(COLOURS, np.uint8)[v], None, {"values": [[c] for c in COLOURS]}),
    "merged": ("png", lambda v: np.array([4, 6, 8], np.uint8)[v], None, {"values": [[4, 5], [6, 7], 8]}),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_gives_the_same_ids(name: str, tmp_path: Path):
    ending, encode, palette, table = ENCODINGS[name]
    root = folder(
        tmp_path / "s",
        {"train/images/{}.png": f"train/masks/{{}}.{ending}"},
        encode,
        palette,
        **table,
        ignore_index=255,
    )
    assert same(open_dataset(root, "train"))


def test_masks_of_0_and_255_are_two_classes_where_the_table_says_so(tmp_path: Path):
    root = folder(tmp_path / "s", {"images/{}.png": "masks/{}.png"}, lambda v: (v > 0).astype(np.uint8) * 255)
    with pytest.raises(DataError, match=r'255 \(6.*"names": \["class_0", "class_1"\], "values": \[\[0\], \[255\]\]'):
        open_dataset(root, "train")
    (root / "classes.json").write_text('{"names": ["ground", "cell"]}')
    assert '"values": [0, 255] into classes.json' in check_data(root, progress=False).render()
    (root / "classes.json").write_text('{"names": ["ground", "cell"], "values": [0, 255]}')
    data = open_dataset(root, "train")
    assert set(np.unique(data.sample(0).labels)) == {0, 1} and check_data(root, progress=False).ok


def test_one_bit_masks(tmp_path: Path):
    root = folder(tmp_path / "s", {"images/{}.png": "masks/{}.png"}, lambda v: v > 0)
    (root / "classes.json").write_text('{"names": ["ground", "cell"]}')
    assert np.array_equal(
        open_dataset(root, "val").sample(0).labels > 0, ids(int(open_dataset(root, "val").pairs[0][0][-1])) > 0
    )


def test_the_seeded_tenth_is_the_same_each_time(tmp_path: Path):
    root = folder(tmp_path / "s", {"images/{}.png": "masks/{}.png"}, ignore_index=255)
    parts = [[name for name, _, _ in open_dataset(root, split).pairs] for split in ("train", "val", "train", "val")]
    assert parts[:2] == parts[2:] and not {*parts[0]} & {*parts[1]} and len(parts[0]) == 5
    with pytest.raises(FileNotFoundError, match="no split 'test'.*its 6 pictures have none"):
        open_dataset(root, "test")


# ---------------------------------------------------------------- templates


def test_a_template_says_where_masks_lie(tmp_path: Path):
    root = folder(tmp_path / "s", {"one/rgb/img_{}.png": "one/cls/lab_{}.npy"}, ignore_index=255)
    folder(root, {"one/depth/img_{}.png": "one/other/{}.png"})
    template = "{parent.parent}/cls/{stem|img>lab}.npy"
    assert same(open_dataset(f"{root}?masks={template}&images=one/rgb/*.png", "train"))
    with pytest.raises(DataError, match="depth/img_0.png and one/rgb/img_0.png have the same mask"):
        open_dataset(f"{root}?masks={template}", "train")
    for path in (root / "one" / "depth").iterdir():
        path.unlink()
    assert same(open_dataset(f"{root}?masks={template}", "train"))
    (root / "classes.json").write_text(json.dumps({"names": NAMES, "masks": template}))
    data = open_dataset(root, "train")
    assert same(data) and "not used: 6 files" in " ".join(data.unused)
    table = tmp_path / "other.json"
    table.write_text(json.dumps({"names": ["a", "b", "c"]}))
    assert open_dataset(f"{root}?masks={template}&classes={table}", "train").labels.names == ("a", "b", "c")


@pytest.mark.parametrize(
    "query, message",
    [
        ("masks={stam}.png", r"\{stam\} is none of \{parent\}"),
        ("masks=all.png", "names one mask for all pictures"),
        ("masks={__class__}/{stem}.png", "is none of"),
        ("mask={stem}.png", "unknown option 'mask'"),
        ("masks={parent}/{stem}_no.png", r"6 of 12 pictures|12 of 12 pictures have no mask, such as images/0.png"),
        ("masks={parent|images>masks}/{stem}.png&images=*.bmp", r"no picture in .* is like images='\*.bmp'"),
    ],
)
def test_a_template_that_fits_nothing_is_refused(query: str, message: str, tmp_path: Path):
    root = folder(tmp_path / "s", {"images/{}.png": "masks/{}.png"}, ignore_index=255)
    with pytest.raises(DataError, match=message):
        open_dataset(f"{root}?{query}", "train")


def test_two_templates_that_fit_are_asked_about(tmp_path: Path):
    root = folder(tmp_path / "s", {"images/{}.png": "masks/{}.png"}, ignore_index=255)
    folder(root, {"images/{}.png": "labels/{}.png"})
    with pytest.raises(
        DataError, match=r"several templates fit: .*>labels.*>masks.*say which, as FOLDER\?masks=TEMPLATE"
    ):
        open_dataset(f"masks:{root}", "train")
    assert same(open_dataset(f"{root}?masks={{parent|images>masks}}/{{stem}}.png&images=images/*", "train"))


# ---------------------------------------------------------------- tables of tools


def test_cvat_is_read_by_colour_and_not_by_order(tmp_path: Path):
    root = folder(
        tmp_path / "s", {"JPEGImages/{}.jpg": "SegmentationClass/{}.png"}, lambda v: np.array(COLOURS, np.uint8)[v]
    )
    lines = ["# label:color_rgb:parts:actions", "car:51,221,255::", "a: b:0,0,0::", "road:250,50,83::"]
    (root / "labelmap.txt").write_text("\n".join(lines))
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("0\n1\n")
    (lists / "train.txt").write_text("3\n1\n")
    data = open_dataset(root, "train")
    assert data.labels.names == ("car", "a: b", "road") and data.labels.palette[0] == COLOURS[2]
    assert [name for name, _, _ in data.pairs] == ["JPEGImages/3", "JPEGImages/1"]
    assert np.array_equal(data.sample(0).labels, np.array([1, 2, 0], np.uint8)[ids(3)])
    write(root / "SegmentationClass/3.png", 2 - ids(3), COLOURS[::-1])
    assert np.array_equal(data.sample(0).labels, np.array([1, 2, 0], np.uint8)[ids(3)])
    write(root / "SegmentationClass/3.png", ids(3), [(9, 9, 9), *COLOURS[1:]])
    with pytest.raises(
        DataError, match=r"3.png: stored values of no class: rgb\(9,9,9\) \(.*%\); add them in classes.json"
    ):
        data.sample(0)
    (root / "labelmap.txt").write_text("car:51,221::")
    with pytest.raises(DataError, match="line 1 is 'car:51,221::'; expected name:red,green,blue"):
        open_dataset(root, "train")
    (lists / "train.txt").write_text("3\nnone\n")
    with pytest.raises(DataError, match="train.txt lists none, of which there is no picture with a mask"):
        open_dataset(root, "train")


@pytest.mark.parametrize(
    "file, text, names, encode",
    [
        ("_classes.csv", "Pixel Value, Class\n4, background\n5, b\n6, c\n", ("background", "b", "c"), lambda v: v + 4),
        (
            "class_dict.csv",
            "name,r,g,b\na,0,0,0\nb,250,50,83\nc,51,221,255\n",
            ("a", "b", "c"),
            lambda v: np.array(COLOURS, np.uint8)[v],
        ),
    ],
)
def test_tables_of_roboflow_and_kaggle(file: str, text: str, names: tuple, encode: Any, tmp_path: Path):
    root = folder(tmp_path / "s", {"train/{}.jpg": "train/{}_mask.png", "valid/{}.jpg": "valid/{}_mask.png"}, encode)
    for split in ("train", "valid"):
        (root / split / file).write_text(text)
    data = open_dataset(root, "val")
    assert data.labels.names == names and same(data)
    if names[0] == "background":
        assert "class 'background' is trained and scored like every other" in " ".join(data.unused)
    (root / "valid" / file).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=f"{file}: expected the columns"):
        open_dataset(root, "val")


# ---------------------------------------------------------------- what is refused or told


def table(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "classes.json").write_text('{"names": ["a", "b"], ' + text + "}")


def _jpeg(root: Path) -> None:
    for i in range(6):
        Image.fromarray(ids(i)).save(root / f"masks/{i}.jpg")
        (root / f"masks/{i}.png").unlink()


def _resized(root: Path) -> None:
    image = Image.fromarray(np.array(COLOURS, np.uint8)[ids(0)]).resize((31, 31)).resize(SIZE[::-1])
    for i in range(6):
        image.save(root / f"masks/{i}.png")
    (root / "classes.json").write_text(json.dumps({"names": NAMES, "values": [[c] for c in COLOURS]}))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "JPEG masks": (_jpeg, "is a JPEG file: JPEG changes the values of pixels"),
    "JPEG called PNG": (
        lambda r: Image.fromarray(ids(0)).save(r / "masks/0.png", "JPEG"),
        "is a JPEG file with another ending",
    ),
    "colours without a table": (
        lambda r: write(r / "masks/0.png", np.array(COLOURS, np.uint8)[ids(0)]),
        r"holds colours \(mode RGB\).*\"values\": \[\[\[r, g, b\]\]",
    ),
    "resized colours": (_resized, "colours of no class, such as .*was the mask resized"),
    "a picture without mask": (
        lambda r: (r / "masks/0.png").unlink(),
        "1 of 6 pictures have no mask, such as images/0.png, whose mask would be",
    ),
    "another size": (lambda r: write(r / "masks/0.png", ids(0)[:5]), "sizes differ: 9x5 in .*0.png, 9x12 in .*0.png"),
    "an id too high": (lambda r: write(r / "masks/0.png", ids(0) + 1), r"class ids out of range: 3 \("),
    "an empty mask": (lambda r: (r / "masks/0.png").write_bytes(b""), "cannot read label file .*0.png"),
    "a truncated mask": (
        lambda r: (r / "masks/0.png").write_bytes((r / "masks/0.png").read_bytes()[:60]),
        "cannot read label file",
    ),
    "a value twice": (table('"values": [[1], [1]]'), "value 1 stands at class 'a' and 'b'"),
    "a class without value": (table('"values": [[1], []]'), "class 'b' has no value"),
    "numbers and colours": (table('"values": [[1], [[0, 0, 9]]]'), "of one kind, not int, tuple"),
    "a colour without brackets": (table('"values": [[0, 0, 9], [1, 1, 1]]'), r"a colour is written \[\[r, g, b\]\]"),
    "values for fewer classes": (table('"values": [[1]]'), "values of each of the 2 classes"),
    "ignored and a class": (
        table('"values": [[1], [2]], "ignored_values": [2]'),
        "value 2 is of class 'b' and ignored",
    ),
    "a value in neither": (
        table('"values": [[0], [1]]'),
        r"stored values of no class: 2 \(.*%\).*\"ignored_values\": \[2\]",
    ),
    "a value of floating point": (
        lambda r: (r / "classes.json").write_text('{"names": ["a"], "values": [[1.5]]}'),
        "1.5 is no stored value",
    ),
    "an array of floating point": (
        lambda r: [(r / "masks/0.png").unlink(), np.save(r / "masks/0.npy", ids(0) / 2)],
        "is an array of float64",
    ),
    "an array that is none": (
        lambda r: [(r / "masks/0.png").unlink(), (r / "masks/0.npy").write_bytes(b"x")],
        "cannot read label file",
    ),
    "several masks": (lambda r: write(r / "masks/0.tif", ids(0)), "has several masks: masks/0.png, masks/0.tif"),
    "two pictures of one mask": (lambda r: picture(r / "images/0.jpg"), "have the same mask, masks/0.png"),
    "an unreadable picture": (lambda r: (r / "images/0.png").write_bytes(b"no"), "0.png"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_named(fault: str, tmp_path: Path):
    root = folder(tmp_path / "s", {"images/{}.png": "masks/{}.png"}, ignore_index=255)
    spoil, message = WRONG[fault]
    spoil(root)
    with pytest.raises(DataError, match=message):
        for split in ("train", "val"):
            data = open_dataset(root, split)
            for n in range(len(data)):
                data.sample(n)
    report = check_data(root, progress=False)
    assert not report.ok and re.search(message, report.render())


def test_links_spaces_and_unicode(tmp_path: Path):
    root = folder(tmp_path / "ünï cödé", {"train/images/ä ö{}.PNG": "train/masks/ä ö{}.PNG"}, ignore_index=255)
    link = tmp_path / "link"
    link.symlink_to(root, target_is_directory=True)
    data = open_dataset(link, "train")
    assert same(data) and data.name == "ünï cödé" and data.sample(0).name == "train/images/ä ö0"


def test_a_table_of_values_travels(tmp_path: Path):
    table = LabelMap(("a", "b"), values=[[7], [8, 9]], ignored_values=[0])
    assert table.raw.class_of(9) == 1 and table.raw.class_of(0) is None
    file = tmp_path / "classes.json"
    file.write_text(json.dumps({"names": ["a", "b"], "values": [7, [8, 9]], "ignored_values": [0]}))
    assert LabelMap.from_json(file).raw.ids(np.array([[7, 9, 0]]), 255).tolist() == [[0, 1, 255]]
    with pytest.raises(ValueError, match='no "values" and no "ignored_values"; known: 7, 8, 9'):
        table.raw.class_of(5)


# ---------------------------------------------------------------- official layouts


def official(root: Path, kind: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """A tiny folder in an official layout: its class names, what the first mask stores, and the ids that it means."""
    stored, meant = np.zeros(SIZE, np.uint8), np.full(SIZE, 255, np.uint8)
    if kind == "ade20k":
        (root / "images").mkdir(parents=True)
        (root / "objectInfo150.txt").touch()
        stored[1], stored[2] = 1, 150
        meant[1], meant[2] = 0, 149
        for split in ("training", "validation"):
            for i in range(2):
                picture(root / f"images/{split}/ADE_{i}.jpg")
                write(root / f"annotations/{split}/ADE_{i}.png", stored)
        return label_set("ade20k")["names"], stored, meant
    if kind.startswith("cityscapes"):
        ending = "labelIds" if kind == "cityscapes" else "labelTrainIds"
        stored[:] = 3 if kind == "cityscapes" else 255
        stored[1], stored[2] = (7, 33) if kind == "cityscapes" else (0, 18)
        meant[1], meant[2] = 0, 18
        for split in ("train", "val", "test"):
            picture(root / f"leftImg8bit/{split}/bonn/b_0_leftImg8bit.png")
            write(root / f"gtFine/{split}/bonn/b_0_gtFine_{ending}.png", stored)
            write(root / f"gtFine/{split}/bonn/b_0_gtFine_instanceIds.png", stored.astype(np.uint16) + 1000)
            write(root / f"gtFine/{split}/bonn/b_0_gtFine_color.png", np.stack([stored] * 3, 2))
        return label_set("cityscapes")["names"], stored, meant
    if kind.startswith("mapillary"):
        version = kind.removeprefix("mapillary")
        rows = [("animal--bird", "Bird", True), ("void--unlabeled", "Unlabeled", False), ("object--car", "Car", True)]
        table = [
            {"name": n, "readable": r, "evaluate": e, "instances": e, "color": [i, 9, 9]}
            for i, (n, r, e) in enumerate(rows)
        ]
        root.mkdir(parents=True)
        (root / (f"config_v{version}.json" if version else "config.json")).write_text(json.dumps({"labels": table}))
        stored[:], stored[1], stored[2] = 1, 0, 2
        meant[1], meant[2] = 0, 1
        for split in ("training", "validation"):
            picture(root / split / "images/x.jpg")
            write(root / split / (f"v{version}/labels" if version else "labels") / "x.png", stored, np.arange(768))
            write(
                root / split / (f"v{version}/instances" if version else "instances") / "x.png", stored.astype(np.uint16)
            )
        picture(root / "testing/images/y.jpg")
        return ("Bird", "Car"), stored, meant
    if kind.startswith("stuff"):
        new = kind == "stuff1.1"
        stored[:] = 0 if new else 1
        stored[1], stored[2] = (1, 182) if new else (2, 172)
        meant[1], meant[2] = 0, 170
        (root / "imageLists").mkdir(parents=True)
        for split, numbers in {"train": range(10), "test": range(10, 12), "all": range(12)}.items():
            (root / f"imageLists/{split}.txt").write_text("".join(f"COCO_{i:03d}\n" for i in numbers))
        for i in range(12):
            picture(root / f"images/COCO_{i:03d}.jpg")
            write(root / f"annotations/COCO_{i:03d}.mat", stored)
        return label_set("cocostuff10k")["names"], stored, meant
    stored[:], stored[1], stored[2] = 255, 0, 20
    meant[1], meant[2] = 0, 20
    for folder_ in ("ImageSets/Segmentation", "Annotations"):
        (root / folder_).mkdir(parents=True)
    for i in range(5):
        picture(root / f"JPEGImages/2007_{i}.jpg")
        (root / f"Annotations/2007_{i}.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    for i in range(3):
        write(root / f"SegmentationClass/2007_{i}.png", stored, np.arange(768))
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_0\n2007_1\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_2\n")
    return ("background", "aeroplane"), stored, meant


OFFICIAL = (
    "ade20k",
    "cityscapes",
    "cityscapes train ids",
    "mapillary",
    "mapillary1.2",
    "mapillary2.0",
    "stuff1.0",
    "stuff1.1",
    "voc",
)


@pytest.mark.parametrize("kind", OFFICIAL)
def test_official_layouts(kind: str, tmp_path: Path):
    names, stored, meant = official(tmp_path / "set", kind)
    data = open_dataset(tmp_path / "set", "train")
    assert type(data) is OfficialMasks and data.labels.names[: len(names)] == names
    assert len(data) == {"ade20k": 2, "stuff1.0": 10, "stuff1.1": 10, "voc": 2}.get(kind, 1)
    sample = data.sample(0)
    assert np.array_equal(sample.labels, meant) and data.size(0) == SIZE == sample.size
    assert data.labels.palette and "stored values of its classes" in " ".join(data.unused)
    assert ("test split are void" in " ".join(data.unused)) == kind.startswith("cityscapes")
    report = check_data(tmp_path / "set", progress=False)
    assert [*report.splits][0].startswith("train") and not [p for p in report.problems if "out of range" in p.kind]


def test_releases_that_cannot_be_told_apart_are_refused(tmp_path: Path):
    official(tmp_path / "set", "stuff1.0")
    (tmp_path / "set/imageLists/train.txt").write_text("COCO_000\n")
    with pytest.raises(DataError, match=r"hold 1 to 172, as releases 1.0 and 1.1 may"):
        open_dataset(tmp_path / "set", "train")
    with pytest.raises(DataError, match="has the official folders of none of ADE20K, Cityscapes"):
        open_dataset(f"official:{tmp_path}", "train")


def test_folders_of_voc_with_other_classes_are_not_vocs(tmp_path: Path):
    official(tmp_path / "set", "voc")
    (tmp_path / "set/Annotations/2007_0.xml").write_text("<annotation><object><name>crack</name></object></annotation>")
    with pytest.raises(DataError, match="does not name its classes.*255"):
        open_dataset(tmp_path / "set", "train")
    (tmp_path / "set/classes.json").write_text('{"names": ["a", "b"], "values": [0, 20], "ignored_values": [255]}')
    assert np.unique(open_dataset(tmp_path / "set", "train").sample(0).labels).tolist() == [0, 1, 255]


def test_a_training_tells_its_classes_and_keeps_their_values(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = folder(tmp_path / "s", {"images/{}.png": "masks/{}.png"}, lambda v: v + 7, values=[7, 8, 9])
    settings = {"backbone": "resnet10t.c3_in1k", "model_args": {"neck_out_channels": 64}, "pretrained": False}
    settings |= {"steps": 2, "batch_size": 2, "crop": (64, 64), "out": str(tmp_path / "run"), "workers": 0}
    with caplog.at_level("INFO"):
        train(Settings(model="perpixel_fpn", data=str(root), **settings))
    assert re.search(r"classes and their share of the pixels: 0 sky \d\d\.\d%, 1 road .*, 2 car", caplog.text)
    data = create_model(f"local-dir:{tmp_path}/run/model").data
    assert data.values == ((7,), (8,), (9,)) and data.labels == NAMES


@pytest.mark.parametrize("kind", ["ade20k", "mapillary", "stuff1.1"])
def test_a_number_of_classes_never_takes_the_place_of_a_table(kind: str, tmp_path: Path):
    names, _, meant = official(tmp_path / "set", kind)
    data = open_dataset(tmp_path / "set", "train", num_classes=len(names))
    assert np.array_equal(data.sample(0).labels, meant)
    with pytest.raises(DataError, match=f"num_classes is 7, but .* names {len(names)} classes"):
        open_dataset(tmp_path / "set", "train", num_classes=7)


def test_a_number_of_classes_beside_a_tools_table(tmp_path: Path):
    root = folder(tmp_path / "s", {"train/{}.jpg": "train/{}_mask.png"}, lambda v: 2 - v)
    (root / "train/_classes.csv").write_text("Pixel Value, Class\n2, a\n1, b\n0, c\n")
    assert same(open_dataset(root, "train", num_classes=3))
    (root / "train/_classes.csv").unlink()
    assert open_dataset(root, "train", num_classes=3).labels.names == ("class_0", "class_1", "class_2")


def test_matlab_files_of_version_7_3_are_read(tmp_path: Path):
    import h5py

    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["S"] = ids(0).T.astype(np.uint16)  # as MATLAB stores it, columns first
    with open(tmp_path / "a.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    assert np.array_equal(read_labels(tmp_path / "a.mat"), ids(0))
    savemat(tmp_path / "b.mat", {"T": ids(0)})
    with pytest.raises(DataError, match="b.mat: it has no matrix S of whole numbers"):
        read_labels(tmp_path / "b.mat")
