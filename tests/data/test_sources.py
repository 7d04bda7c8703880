from __future__ import annotations

import json
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fapn_zoo.data import scenes
from fapn_zoo.data.folders import FolderDataset
from fapn_zoo.data.generated import SCENE_SIDES, ScenesDataset
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.reading import UnreadableFile, read_image, read_labels
from fapn_zoo.data.sample import DataError
from fapn_zoo.data.sources import JoinedDataset, open_dataset

pytestmark = pytest.mark.unit
SIZE = (12, 16)


def rgb(path):
    return read_image(path).permute(1, 2, 0).numpy()


def save_labels(path, values, palette=True):
    image = Image.fromarray(np.asarray(values, np.uint8))
    if palette:
        image.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    image.save(path)


def make_folder(root, splits=("train", "val"), count=3, names=("road", "car", "tree"), ignore=255, seed=0):
    rng = np.random.default_rng(seed)
    for split in splits:
        for part in ("images", "labels"):
            (root / split / part).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"p{i}.png")
            values = rng.choice([*range(len(names)), ignore], SIZE)
            save_labels(root / split / "labels" / f"p{i}.png", values, palette=i % 2 == 0)
    if names:
        (root / "classes.json").write_text(json.dumps({"names": names, "ignore_index": ignore}))
    return root


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "street")


# ------------------------------------------------------------------ folders


def test_folder_gives_pixels_ids_and_names(folder):
    data = open_dataset(str(folder), "train")
    assert isinstance(data, FolderDataset)
    assert len(data) == 3 and data.name == "street" and data.labels.names == ("road", "car", "tree")
    for i in range(3):
        sample = data.sample(i)
        assert sample.name == f"p{i}" and data.size(i) == SIZE
        assert sample.image.shape == (3, *SIZE) and sample.image.dtype == torch.uint8
        assert sample.labels.shape == SIZE and sample.labels.dtype == np.uint8
        assert set(np.unique(sample.labels)) <= {0, 1, 2, 255}
        image_file, label_file = data.files(i)
        assert np.array_equal(sample.image.permute(1, 2, 0), np.asarray(Image.open(image_file)))
        assert np.array_equal(sample.labels, np.asarray(Image.open(label_file)))
    with pytest.raises(IndexError):
        data.sample(3)


def test_samples_are_sorted_and_strays_are_left_out(folder):
    for name in (".hidden.png", "Thumbs.db", "notes.txt"):
        (folder / "train/images" / name).write_bytes(b"x")
    (folder / "train/images/p0.png").rename(folder / "train/images/z.v2.JPG.png")
    (folder / "train/labels/p0.png").rename(folder / "train/labels/z.v2.JPG.PNG")
    data = open_dataset(folder, "train")
    assert [data.sample(i).name for i in range(len(data))] == ["p1", "p2", "z.v2.JPG"]


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "JPG", "bmp", "webp", "tif", "tiff"])
def test_picture_formats(folder, ending):
    file = folder / "train/images/p0.png"
    Image.open(file).save(folder / f"train/images/p0.{ending}")
    file.unlink()
    assert open_dataset(folder, "train").sample(0).image.shape == (3, *SIZE)


def test_missing_things_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_dataset(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match="'test' in .*street; it has train, val"):
        open_dataset(folder, "test")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="train,val,test"):
        open_dataset(tmp_path / "bare", "train")
    for file in (folder / "val/images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no pictures in .*val/images"):
        open_dataset(folder, "val")


def test_missing_pairs_are_counted_and_named(tmp_path):
    folder = make_folder(tmp_path / "d", count=9)
    for i in range(7):
        (folder / f"train/labels/p{i}.png").unlink()
    (folder / "train/images/p8.png").unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(folder, "train")
    text = str(caught.value)
    assert f"{folder}/train/images/p0.png has no labels/p0.png (picture without label: 6 more)" in text
    assert text.endswith(f"; 1 other kinds of errors too, fapn-zoo check-data {folder} lists all")


def test_two_pictures_of_one_name(folder):
    Image.open(folder / "train/images/p1.png").save(folder / "train/images/p1.jpg")
    with pytest.raises(DataError, match="p1.jpg and p1.png"):
        open_dataset(folder, "train")


def test_labels_that_are_no_png(folder):
    Image.open(folder / "train/labels/p1.png").convert("L").save(folder / "train/labels/p1.jpg")
    with pytest.raises(DataError, match="p1.jpg: only PNG keeps"):
        open_dataset(folder, "train")
    (folder / "train/labels/p1.jpg").rename(folder / "train/labels/p1.png")
    with pytest.raises(DataError, match="p1.png is a JPEG"):
        open_dataset(folder, "train").sample(1)


def test_number_of_classes(folder):
    with pytest.raises(DataError, match="num_classes is 5, .*classes.json names 3"):
        open_dataset(folder, "train", num_classes=5)
    assert open_dataset(folder, "train", num_classes=3).labels.names[0] == "road"
    (folder / "classes.json").unlink()
    with pytest.raises(DataError, match=r"Either write .*classes.json.* or give num_classes"):
        open_dataset(folder, "train")
    assert open_dataset(folder, "train", num_classes=4).labels == LabelMap.default(4)
    (folder / "classes.json").write_text("{")
    with pytest.raises(DataError, match="classes.json"):
        open_dataset(folder, "train")


def test_sizes_must_agree(folder):
    save_labels(folder / "train/labels/p1.png", np.zeros((5, 7)))
    with pytest.raises(DataError, match="7x5 in .*labels/p1.png, 16x12 in .*images/p1.png$"):
        open_dataset(folder, "train").sample(1)
    save_labels(folder / "train/labels/p1.png", np.zeros(SIZE[::-1]))
    with pytest.raises(DataError, match="EXIF"):
        open_dataset(folder, "train").sample(1)


def test_ids_must_be_in_range(folder):
    values = np.zeros(SIZE)
    values[0, :5], values[1, :2], values[2] = 3, 77, 255
    save_labels(folder / "train/labels/p2.png", values)
    with pytest.raises(DataError) as caught:
        open_dataset(folder, "train").sample(2)
    text = str(caught.value)
    assert "train/labels/p2.png" in text and "3 (5 pixels), 77 (2 pixels); allowed: 0..2, ignore_index 255" in text


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("content", [b"", b"no picture at all", "half"])
def test_unreadable_files_are_named(folder, kind, content):
    file = folder / "train" / kind / "p1.png"
    noise = np.random.default_rng(0).integers(0, 3, (*SIZE, 3) if kind == "images" else SIZE, dtype=np.uint8)
    Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(UnreadableFile, match=f"{kind}/p1.png"):
        open_dataset(folder, "train").sample(1)
    assert "\n" not in str(pytest.raises(UnreadableFile, open_dataset(folder, "train").sample, 1).value)


def test_a_folder_whose_name_holds_a_comma(tmp_path):
    assert len(open_dataset(make_folder(tmp_path / "a,b"), "train")) == 3


def test_pairs_in_subfolders_are_named_by_them(folder):
    for part in ("images", "labels"):
        (folder / "train" / part / "aachen" / "deep").mkdir(parents=True)
        (folder / "train" / part / "p1.png").rename(folder / "train" / part / "aachen" / "p0.png")
        (folder / "train" / part / "p2.png").rename(folder / "train" / part / "aachen" / "deep" / "p0.png")
    data = open_dataset(folder, "train")
    assert [data.sample(i).name for i in range(3)] == ["aachen/deep/p0", "aachen/p0", "p0"]
    assert data.files(1)[1] == folder / "train/labels/aachen/p0.png"
    (folder / "train/labels/aachen/p0.png").rename(folder / "train/labels/p9.png")
    with pytest.raises(DataError, match="train/images/aachen/p0.png has no labels/aachen/p0.png; 1 other"):
        open_dataset(folder, "train")


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_what_was_meant_to_be_there_is_refused_and_the_rest_is_said(folder, caplog):
    (folder / "train/images/x.png").symlink_to("gone.png")
    (folder / "train/labels/x.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"images/x.png: a link to gone.png, which is not there \(dead link: 1 more\)$"):
        open_dataset(folder, "train")
    for part in ("images", "labels"):
        (folder / "train" / part / "x.png").unlink()
    (folder / "train/images/x.heic").touch()
    (folder / "train/images/again").symlink_to(".")
    assert len(open_dataset(folder, "train")) == 3
    images = f"{folder}/train/images"
    assert caplog.messages == [f"{images}/x.heic: another ending (.heic)"]
    os.mkfifo(folder / "val/images/pipe.png")
    with pytest.raises(DataError, match="pipe.png: no regular file"):
        open_dataset(folder, "val")
    (folder / "train/images/p0.png").rename(folder / "train/images/p0.psd")
    with pytest.raises(DataError, match="train/labels/p0.png has no images/p0"):
        open_dataset(folder, "train")


def test_the_classes_of_another_table_are_taken_and_said(folder, caplog):
    table = LabelMap(("a", "b", "c"))
    assert open_dataset(folder, "train", table=table).labels.names == ("road", "car", "tree") and not caplog.messages
    (folder / "classes.json").unlink()
    assert open_dataset(folder, "train", table=table).labels is table
    assert caplog.messages == [f"{folder} has no classes.json: its classes are taken to be the 3 of the model"]
    assert open_dataset(folder, "train", num_classes=4, table=table).labels == LabelMap.default(4)


# ------------------------------------------------------------------ single files


def test_exif_turn(tmp_path):
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # stored lying on its side
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(rgb(tmp_path / "a.png"), np.rot90(pixels, -1))


def test_picture_modes(tmp_path):
    ramp = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040).clip(0, 65535)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    out = rgb(tmp_path / "a.png")
    assert np.allclose(out, ramp[..., None] / 257, atol=1e-5) and out.dtype == np.float32
    base = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    for mode in ("L", "1", "P", "RGBA", "LA", "CMYK"):
        ending = "tif" if mode == "CMYK" else "png"
        base.convert(mode).save(tmp_path / f"b.{ending}")
        assert rgb(tmp_path / f"b.{ending}").shape == (8, 8, 3)


def write_grey_png(path, values, depth):
    """A grey PNG of 1, 2, 4, 8 or 16 bits by hand (Pillow writes no 2 and 4 bit greys)."""
    rows = b""
    for row in values:
        bits = "".join(f"{v:0{depth}b}" for v in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", len(values[0]), len(values), depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_label_values_are_the_stored_ones(tmp_path, depth):
    values = np.random.default_rng(depth).integers(0, 2**depth, (5, 7))
    values[0, 0], values[0, 1] = 2**depth - 1, 0
    write_grey_png(tmp_path / "a.png", values.tolist(), depth)
    out = read_labels(tmp_path / "a.png")
    assert np.array_equal(out, values) and out.dtype == (np.int32 if depth == 16 else np.uint8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_labels_keep_their_index(tmp_path, bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 7)).astype(np.uint8)
    image = Image.fromarray(values)
    image.putpalette([9, 200, 31] * 256)  # colours say nothing
    image.save(tmp_path / "a.png", bits=bits, transparency=0)
    assert np.array_equal(read_labels(tmp_path / "a.png"), values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_labels_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a.png holds colours \(mode {mode}\).*pixel value is the class id"):
        read_labels(tmp_path / "a.png")


def test_more_than_256_classes(tmp_path):
    folder = make_folder(tmp_path / "d", names=())
    Image.fromarray(np.full(SIZE, 699, np.uint16)).save(folder / "train/labels/p0.png")
    Image.fromarray(np.full(SIZE, 700, np.uint16)).save(folder / "train/labels/p1.png")
    Image.fromarray(np.full(SIZE, 65535, np.uint16)).save(folder / "train/labels/p2.png")
    data = open_dataset(folder, "train", num_classes=700)
    assert data.sample(0).labels.max() == 699 and data.sample(2).labels.min() == 65535
    with pytest.raises(DataError, match=r"700 \(192 pixels\); allowed: 0..699, ignore_index 65535"):
        data.sample(1)


# ------------------------------------------------------------------ scenes


def test_scenes():
    data = open_dataset("scenes:3@40x56", "train")
    assert isinstance(data, ScenesDataset) and len(data) == 3
    assert data.labels.names == tuple(scenes.CLASSES) and data.labels.palette == scenes.PALETTE
    sample = data.sample(1)
    assert sample.image.shape == (3, 40, 56) and sample.labels.shape == data.size(1) == (40, 56)
    assert set(np.unique(sample.labels)) <= {*range(11), 255}
    assert np.array_equal(sample.image, open_dataset("scenes:9@40x56", "train").sample(1).image)
    assert open_dataset("scenes:1", "val").size(0) == (360, 480)
    with pytest.raises(IndexError):
        data.sample(3)


def test_splits_of_scenes_never_meet():
    seeds = [open_dataset("scenes:100000000", split) for split in ("train", "val", "test")]
    ranges = [(d.seed(0), d.seed(len(d) - 1)) for d in seeds]
    assert ranges[0][1] < ranges[1][0] and ranges[1][1] < ranges[2][0]
    one = [open_dataset("scenes:1@48x64", split).sample(0) for split in ("train", "val")]
    assert not np.array_equal(one[0].image, one[1].image) and one[0].name != one[1].name


@pytest.mark.parametrize(
    "spec",
    ["scenes", "scenes:", "scenes:0", "scenes:-4", "scenes:x", "scenes:4@", "scenes:4@8", "scenes:4@64x",
     "scenes:4@0x0", "scenes:4@31x64", "scenes:4@64x4097", "scenes:4@64x64x3", "scenes:4.5", "scenes:999999999",
     "scene:4"],
)  # fmt: skip
def test_bad_scene_specs_are_told_the_grammar(spec):
    with pytest.raises(DataError) as caught:
        open_dataset(spec, "train")
    assert repr(spec) in str(caught.value) and "scenes:N@HxW" in str(caught.value)


def test_the_generator_can_draw_the_smallest_scene():
    low = SCENE_SIDES[0]
    assert open_dataset(f"scenes:1@{low}x{low}", "test").sample(0).image.shape == (3, low, low)


def test_scene_splits_and_classes_are_checked():
    with pytest.raises(FileNotFoundError, match="'dev' in scenes:4; it has train, val, test"):
        open_dataset("scenes:4", "dev")
    with pytest.raises(DataError, match="num_classes is 5, but scenes:4 has 11"):
        open_dataset("scenes:4", "train", num_classes=5)


# ------------------------------------------------------------------ joined


def test_joined(tmp_path):
    a = make_folder(tmp_path / "a", names=scenes.CLASSES, count=2)
    data = open_dataset(f"{a}, scenes:3@40x56", "val")
    assert isinstance(data, JoinedDataset)
    assert len(data) == 5 and data.name == "a+scenes:3@40x56" and data.labels.names == tuple(scenes.CLASSES)
    assert [data.size(i) for i in range(5)] == [SIZE] * 2 + [(40, 56)] * 3
    assert [data.sample(i).labels.shape for i in range(5)] == [SIZE] * 2 + [(40, 56)] * 3
    alone = open_dataset("scenes:3@40x56", "val")
    assert all(data.sample(2 + i).name == alone.sample(i).name for i in range(3))
    for wrong in (5, -1):
        with pytest.raises(IndexError):
            data.sample(wrong)


def test_joined_classes_must_be_equal(tmp_path):
    a = make_folder(tmp_path / "a", names=("road", "car", "tree"))
    b = make_folder(tmp_path / "b", names=("road", "Car", "tree"))
    c = make_folder(tmp_path / "c", names=("road", "tree", "sky", "car"))
    d = make_folder(tmp_path / "d", ignore=254)
    with pytest.raises(DataError, match="a and b: class 1 is 'car' for a and 'Car' for b"):
        open_dataset(f"{a},{b}", "train")
    with pytest.raises(DataError, match="a has 3 classes, c has 4; .*only in c: sky"):
        open_dataset(f"{a},{c}", "train")
    with pytest.raises(DataError, match="a and d: ignore_index 255 against 254"):
        open_dataset(f"{a},{d}", "train")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_dataset(f"{a},{tmp_path / 'nowhere'}", "train")
    for empty in ("", " ", f"{a},", f",{a}"):
        with pytest.raises(DataError, match="empty name"):
            open_dataset(empty, "train")
