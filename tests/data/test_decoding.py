"""Every container gives the numbers that were stored, at full precision, or says why not."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps
from toys.deep import exif_chunk, png16, ppm, tag

import fapn_zoo
from fapn_zoo.data import images
from fapn_zoo.data.decoding import header
from fapn_zoo.data.images import ImageError, load_image
from fapn_zoo.data.opening import MAX_PIXELS
from fapn_zoo.data.reading import read_ids, read_image, read_labels
from fapn_zoo.data.reading_rules import Reading

pytestmark = pytest.mark.unit
RNG = np.random.default_rng(0)
SIZE = (17, 23)


def drawn(bands: int = 3, white: int = 65535, kind: type = np.uint16) -> np.ndarray:
    """(H, W) or (H, W, bands) with black and white in it."""
    values = RNG.random((*SIZE, bands)) * white
    values[0, 0], values[0, 1] = 0, white
    return values.astype(kind)[:, :, 0] if bands == 1 else values.astype(kind)


def pixels(source, in_chans: int = 3, **options) -> np.ndarray:
    return load_image(source, in_chans, **options).pixels.numpy()


def expected(values: np.ndarray, white: float) -> np.ndarray:
    return (np.atleast_3d(values).astype(np.float64) * 255 / white).clip(0, 255).transpose(2, 0, 1)


def agree(source, values: np.ndarray, white: float, **options) -> None:
    bands = np.atleast_3d(values).shape[2]
    found = pixels(source, bands, **options)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(values, white), rtol=1e-6, atol=1e-5)


@pytest.fixture(autouse=True)
def _says_again(monkeypatch):
    monkeypatch.setattr(images, "_SAID", set())


# ---------------------------------------------------------------- 16 bits


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_png_of_16_bits(tmp_path, bands):
    values = drawn(bands)
    file = png16(tmp_path / "x.png", values)
    agree(file, values, 65535)
    agree(file, values, 4095, white_level=4095)
    agree(file.read_bytes(), values, 65535)
    agree(Image.open(file), values, 65535)  # not loaded yet: the file is read, not what Pillow makes of it


def test_all_values_of_16_bits_are_as_they_were(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = pixels(png16(tmp_path / "x.png", values), 1)[0]
    assert np.array_equal(found, values.astype(np.float32) / 257)


def test_16_bits_over_white(tmp_path):
    values = drawn(4)
    alpha = values[:, :, 3:] / 65535
    over = values[:, :, :3] * alpha + 65535 * (1 - alpha)
    for file in (png16(tmp_path / "x.png", values), tmp_path / "x.tif"):
        if file.suffix == ".tif":
            tifffile.imwrite(file, values, photometric="rgb", extrasamples=["unassalpha"])
        np.testing.assert_allclose(pixels(file), expected(over, 65535), atol=1e-3)
        np.testing.assert_allclose(pixels(file, 4), expected(values, 65535), atol=1e-4)
    tifffile.imwrite(tmp_path / "y.tif", (values * [1, 1, 1, 1]).astype(np.uint16), photometric="rgb", extrasamples=[1])
    already = values[:, :, :3] + 65535 * (1 - alpha)
    np.testing.assert_allclose(pixels(tmp_path / "y.tif"), expected(already, 65535), atol=1e-3)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("white", [300, 1023, 4095, 65535])
def test_ppm_states_its_white(tmp_path, white, text):
    for bands in (1, 3):
        values = drawn(bands, white)
        values[0, 0] = min(0x2342, white)  # begins as a comment does
        file = ppm(tmp_path / ("x.pgm" if bands == 1 else "x.ppm"), values, white, text)
        agree(file, values, white)
        agree(file, values, 2000 if white == 65535 else white, white_level=2000)  # 65535 is a container, no statement
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ImageError, match=r"cannot read .*x.ppm: \d+ of 1173 values"):
        load_image(file)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_jpeg_2000_states_its_bits(tmp_path, bits, monkeypatch):
    import imagecodecs

    for bands in (1, 3):
        values = drawn(bands, 2**bits - 1)
        data = imagecodecs.jpeg2k_encode(values, level=0, bitspersample=bits, reversible=True)
        agree(data, values, 2**bits - 1)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImageError, match=f"JPEG 2000 of {bits} bits, which needs .*pip install imagecodecs"):
        load_image(data)


# ---------------------------------------------------------------- TIFF


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_of_16_bits_in_all_layouts(tmp_path, compression, tile, planar):
    file, order = tmp_path / "x.tif", ">" if planar else "<"
    for bands, kind in ((3, "rgb"), (5, "minisblack")):
        values = drawn(bands)
        shape = values.transpose(2, 0, 1) if planar else values
        options = {"compression": compression, "tile": tile, "byteorder": order, "photometric": kind}
        tifffile.imwrite(file, shape, planarconfig="separate" if planar else "contig", **options)
        agree(file, values, 65535)
    values = drawn(1)
    tifffile.imwrite(file, values, compression=compression, tile=tile, byteorder=order, bigtiff=planar)
    agree(file, values, 65535)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "int32", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 3, 4, 5])
def test_tiff_of_all_types(tmp_path, kind, bands):
    white = {"uint8": 255, "int8": 100}.get(kind, 2000)
    values = drawn(bands, white, np.dtype(kind))
    options = {} if bands == 1 else {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "x.tif", values, **options)
    found = pixels(tmp_path / "x.tif", bands, white_level=white)
    np.testing.assert_allclose(found, expected(values, white), rtol=1e-6, atol=1e-5)
    assert (found.dtype == np.uint8) == (kind == "uint8")
    if kind != "uint8":
        level = {"int8": 255, "float16": 2000, "float32": 2000, "float64": 2000}.get(kind, 4095)
        with pytest.raises(ImageError, match=rf"x.tif: .*TIFF.*, values 0..{white}.*white_level={level}: as a setting"):
            load_image(tmp_path / "x.tif", bands)


def test_eight_bits_ignore_the_white_level(tmp_path):
    values = drawn(3, 255, np.uint8)
    for ending in ("png", "tif", "bmp"):
        Image.fromarray(values).save(tmp_path / f"x.{ending}")
        assert np.array_equal(pixels(tmp_path / f"x.{ending}", white_level=4095), values.transpose(2, 0, 1))


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_both_byte_orders(tmp_path, compression, kind):
    white = 1 if kind is np.float32 else np.iinfo(kind).max
    values = drawn(1, white, kind)
    for order in "<>":
        tifffile.imwrite(tmp_path / "x.tif", values, byteorder=order, compression=compression)
        np.testing.assert_allclose(pixels(tmp_path / "x.tif", 1), expected(values, white), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("written", [0, 9, 300])
def test_an_orientation_that_there_is_not_turns_nothing(tmp_path, written):
    for kind in (np.uint8, np.uint16):
        tags = [(0x0112, "H", 1, written, True)]
        options = {"photometric": "minisblack", "planarconfig": "contig", "extratags": tags}
        tifffile.imwrite(tmp_path / "x.tif", drawn(5, 255, kind), **options)
        assert pixels(tmp_path / "x.tif", 5).shape == (5, *SIZE) and header(tmp_path / "x.tif") == (SIZE, 1)


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.jpg"])
def test_damaged_exif_turns_nothing(tmp_path, name):
    Image.fromarray(drawn(3, 255, np.uint8)).save(tmp_path / name, exif=b"Exif\0\0garbage")
    assert pixels(tmp_path / name).shape == (3, *SIZE) and header(tmp_path / name) == (SIZE, 1)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_where_white_is_zero_alpha_is_not_turned(tmp_path, kind):
    white = np.iinfo(kind).max
    values = drawn(1, white, kind)
    stored = np.dstack([white - values, np.full(SIZE, white, kind)])
    options = {"photometric": "miniswhite", "planarconfig": "contig", "extrasamples": [2]}
    tifffile.imwrite(tmp_path / "x.tif", stored, **options)
    np.testing.assert_allclose(pixels(tmp_path / "x.tif", 1), expected(values, white), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("how", [{"imagej": True}, {"ome": True}])
def test_pages_that_are_called_channels_are_bands(tmp_path, how):
    for count in (3, 5):
        values = drawn(count)
        tifffile.imwrite(tmp_path / "x.tif", values.transpose(2, 0, 1), metadata={"axes": "CYX"}, **how)
        agree(tmp_path / "x.tif", values, 65535)
    with pytest.raises(ImageError, match="in_chans=5"):
        load_image(tmp_path / "x.tif")
    tifffile.imwrite(tmp_path / "x.tif", drawn(3).transpose(2, 0, 1), metadata={"axes": "ZYX"}, **how)
    assert np.ptp(pixels(tmp_path / "x.tif"), 0).max() == 0  # the first picture of a stack


def test_white_is_zero(tmp_path):
    for values, white in ((drawn(1), 65535), (drawn(1, 255, np.uint8), 255)):
        tifffile.imwrite(tmp_path / "x.tif", values, photometric="miniswhite")
        np.testing.assert_allclose(pixels(tmp_path / "x.tif", 1), expected(white - values, white), atol=1e-4)


@pytest.mark.parametrize("bands", [2, 4, 5, 8])
def test_pages_and_plain_arrays_are_bands_where_they_can_be(tmp_path, bands):
    values, file = drawn(bands), tmp_path / "x.tif"
    writers = [
        lambda: tifffile.imwrite(file, values.transpose(2, 0, 1)),
        lambda: tifffile.imwrite(file, values, photometric="minisblack"),  # a page for every row
    ]
    for write in writers:
        write()
        agree(file, values, 65535)
    Image.fromarray(values[..., 0]).save(
        file, save_all=True, append_images=[Image.fromarray(values[..., i]) for i in range(1, bands)]
    )
    agree(file, values, 65535)
    np.testing.assert_allclose(pixels(file, 1), expected(values[..., :1], 65535), atol=1e-4)  # the first frame


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_bands_are_no_transparency(tmp_path, kind):
    values, file = drawn(4, np.iinfo(kind).max, kind), tmp_path / "x.tif"
    for options in (
        {"photometric": "minisblack", "planarconfig": "contig"},
        {"photometric": "rgb", "extrasamples": [0]},
    ):
        tifffile.imwrite(file, values, **options)
        assert pixels(file, 4).shape == (4, *SIZE)
        for in_chans in (1, 3, 5):
            with pytest.raises(ImageError, match=r"x.tif .*(4 bands|4 channels), the model takes|has 4"):
                load_image(file, in_chans)
        with pytest.raises(ImageError, match="in_chans=4"):
            load_image(file, 3)


def test_ink_and_palettes_are_no_bands(tmp_path):
    ink = Image.fromarray(drawn(4, 255, np.uint8), "CMYK")
    ink.save(tmp_path / "x.tif")
    ink.save(tmp_path / "x.jpg")
    tifffile.imwrite(tmp_path / "y.tif", np.asarray(ink).astype(np.uint16) * 257, photometric="separated")
    for name in ("x.tif", "x.jpg", "y.tif"):
        with pytest.raises(
            ImageError, match=rf"{name} \(CMYK, which is read as RGB\) has 3 channels, the model takes 4"
        ):
            load_image(tmp_path / name, 4)
    for name in ("x.tif", "y.tif"):
        assert np.abs(pixels(tmp_path / name) - np.array(ink.convert("RGB")).transpose(2, 0, 1)).max() <= 1
    palette = Image.fromarray(drawn(3, 255, np.uint8)).quantize(16)
    palette.save(tmp_path / "p.png", transparency=0)
    for source in (tmp_path / "p.png", palette, palette.convert("PA")):
        for in_chans in (2, 4):
            with pytest.raises(ImageError, match=f"has 3 channels, the model takes {in_chans}"):
                load_image(source, in_chans)


@pytest.mark.train
def test_a_codec_that_is_missing_is_named(tmp_path):
    for name, options in (("x.tif", {"compression": "lzw"}), ("y.tif", {})):
        tifffile.imwrite(tmp_path / name, drawn(5), photometric="minisblack", planarconfig="contig", **options)
    Image.fromarray(drawn(1)).save(tmp_path / "z.tif", compression="tiff_lzw")  # Pillow reads it exactly
    code = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from fapn_zoo.data.images import load_image\n"
        "for name, bands in (('y.tif', 5), ('z.tif', 3), ('x.tif', 5)):\n"
        "    print(load_image(sys.argv[1] + '/' + name, bands).pixels.shape[0], flush=True)\n"
    )
    path = os.pathsep.join(filter(None, [str(Path(fapn_zoo.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    words, environment = [sys.executable, "-c", code, str(tmp_path)], os.environ | {"PYTHONPATH": path}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["5", "3"]
    assert "x.tif is a TIFF with LZW compression, which needs the package imagecodecs: pip install" in done.stderr


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_damaged_files_are_named(tmp_path, name):
    file = tmp_path / name
    png16(file, drawn(3)) if name == "x.png" else tifffile.imwrite(file, drawn(3), photometric="rgb")
    data = file.read_bytes()
    for kept in (len(data) // 2, 60, 9):
        file.write_bytes(data[:kept])
        with pytest.raises(ImageError, match=name):
            load_image(file)


# ---------------------------------------------------------------- range


def test_integers_in_memory_follow_the_white_level():
    values = drawn(1, 4095)
    for kind in (np.uint16, np.int16, np.int32, np.uint32, np.int64):
        agree(values.astype(kind), values, 4095, white_level=4095)
    agree(torch.from_numpy(values.astype(np.int32)), values, 4095, white_level=4095)
    agree(Image.fromarray(values.astype(np.int32)), values, 4095, white_level=4095)
    agree(values / 4095, values, 4095, white_level=4095)  # floating point in memory is always 0..1
    agree(values.astype(">u2"), values, 4095, white_level=4095)
    assert pixels(values.astype(">u2")).max() == np.float32(4095 * 255 / 65535)
    for source in (values.astype(np.float32), Image.fromarray(values.astype(np.float32))):
        with pytest.raises(ImageError, match="values 0..4095; floating point images are 0..1"):
            load_image(source, white_level=4095)
    with pytest.raises(ImageError, match="int32: expected uint8 .*white_level=4095"):
        load_image(values.astype(np.int32))
    with pytest.raises(ImageError, match="mode I .*white_level=4095"):
        load_image(Image.fromarray(values.astype(np.int32)))


@pytest.mark.parametrize("kind", ["x.png", "x.tif"])
def test_alpha_has_a_range_of_its_own(tmp_path, caplog, kind):
    """12 bits beside an alpha of 16, as most writers store them: it says nothing of the range of the colours."""
    values, file = drawn(3, 4095), tmp_path / kind

    def write(alpha: int) -> None:
        stored = np.dstack([values, np.full(SIZE, alpha, np.uint16)])
        png16(file, stored) if kind == "x.png" else tifffile.imwrite(file, stored, photometric="rgb", extrasamples=[2])

    for alpha, share in ((65535, 1.0), (30000, 30000 / 65535), (4095, 1.0)):
        write(alpha)
        found = pixels(file, white_level=4095)
        np.testing.assert_allclose(found, expected(values, 4095) * share + 255 * (1 - share), rtol=1e-5, atol=1e-3)
    assert not caplog.records
    write(65535)
    load_image(file)
    assert "the highest value is 4095 of 65535" in caplog.text
    assert pixels(file, 4, white_level=4095)[:3].max() == 255


def test_a_white_level_that_is_too_high_is_said(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "x.tif", drawn(1, 1, np.float32))
    load_image(tmp_path / "x.tif", white_level=4095)
    (record,) = caplog.records
    assert "the highest value is 1 of 4095, nearly black" in record.message and "white_level=1:" in record.message


@pytest.mark.parametrize("high, level", [(200, 255), (1000, 1023), (4095, 4095), (8000, 16383), (16383, 16383)])
def test_darkness_is_said_once(tmp_path, caplog, high, level):
    file = png16(tmp_path / "x.png", drawn(1, high))
    for _ in range(2):
        load_image(file)
    (record,) = caplog.records
    assert (
        f"x.png: the highest value is {high} of 65535" in record.message and f"white_level={level}:" in record.message
    )
    caplog.clear()
    load_image(file, white_level=level)
    load_image(png16(tmp_path / "y.png", drawn(1, 17000)))
    load_image(png16(tmp_path / "z.png", drawn(1) * 0))
    assert not caplog.records


def test_values_above_white_are_clipped_and_said_once(tmp_path, caplog):
    values = drawn(3, 5000)
    file = png16(tmp_path / "x.png", values)
    for _ in range(2):
        agree(file, values, 4095, white_level=4095)
    (record,) = caplog.records
    assert "x.png: values 0..5000 are clipped to 0..4095, the white level" in record.message


@pytest.mark.parametrize(
    "options",
    [{"white_level": bad} for bad in (0, -1.0, "4095", float("nan"), True)] + [{"exif": "no"}, {"in_chans": 0}],
)
def test_bad_rules_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        load_image(drawn(1), **options)


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "deep.png", "deep.tif", "bands.tif"])
def test_every_container_is_turned_or_not(tmp_path, orientation, name):
    file, bands = tmp_path / name, 5 if name == "bands.tif" else 3
    plain = np.kron(drawn(bands, 255, np.uint8)[:3, :4], np.ones((32, 32, 1), np.uint8))
    if name == "deep.png":
        png16(file, plain.astype(np.uint16) * 257, exif_chunk(orientation))
    elif name in ("deep.tif", "bands.tif"):
        values = plain.astype(np.uint16) * 257
        options = {"photometric": "rgb" if bands == 3 else "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(file, values, extratags=[(274, "H", 1, orientation, True)], **options)
    else:
        Image.fromarray(plain).save(file)
        tag(file, orientation)
    stored = pixels(file, bands, exif="ignore")
    assert np.abs(stored.astype(float) - plain.transpose(2, 0, 1)).mean() <= (25 if name == "x.jpg" else 1e-3)
    carrier = Image.fromarray(np.arange(stored[0].size, dtype=np.int32).reshape(stored.shape[1:]))
    carrier.getexif()[0x0112] = orientation
    places = np.asarray(ImageOps.exif_transpose(carrier))
    assert np.array_equal(pixels(file, bands), stored.reshape(bands, -1)[:, places])
    assert header(file) == (plain.shape[:2], orientation)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("orientation", [3, 6])
def test_labels_are_turned_as_their_own_tag_says(tmp_path, orientation, late):
    values, file = drawn(1, 5), tmp_path / "x.png"
    if late:
        png16(file, values, exif_chunk(orientation))
    else:
        Image.fromarray(values.astype(np.uint8)).save(file)
        tag(file, orientation)
    turned = np.rot90(values, -1 if orientation == 6 else 2)
    assert np.array_equal(read_labels(file), turned)
    assert np.array_equal(read_labels(file, Reading(exif="ignore")), values)
    Image.fromarray(np.dstack([values, values * 0, values * 0]).astype(np.uint8)).save(file)
    tag(file, orientation)
    assert np.array_equal(read_ids(file), turned) and np.array_equal(read_ids(file, Reading(exif="ignore")), values)


# ---------------------------------------------------------------- sources and sizes


def test_file_objects_and_bytes(tmp_path):
    values = drawn(3, 255, np.uint8)
    Image.fromarray(values).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")  # stands at its end
    with open(tmp_path / "x.png", "rb") as file:
        file.read(20)
        for source in (buffer, data, bytearray(data), memoryview(data), file):
            assert np.array_equal(pixels(source), values.transpose(2, 0, 1))
        assert load_image(file).name == "x.png" and load_image(buffer).name == "image"
    closed = io.BytesIO(data)
    closed.close()
    (tmp_path / "x.gz").write_bytes(gzip.compress(data)[:-9])
    wrong = {
        "not of bytes; open it with mode 'rb'": io.StringIO("text"),
        "x.png is a file of str": open(tmp_path / "x.png", encoding="utf-8"),
        "cannot read image: I/O operation on closed": closed,
        "x.gz: .*end-of-stream": gzip.open(tmp_path / "x.gz"),
        "float32: .*meta tensor": torch.empty(3, 4, 4, device="meta"),
        "image is not an image": io.BytesIO(b"no picture"),
        "is not an image that": b"",
        "from dict; expected a path, URL, file object, bytes": {},
    }
    for message, source in wrong.items():
        with pytest.raises(ImageError, match=message):
            load_image(source)


def test_the_limit_of_pixels_is_raised_by_a_variable(tmp_path, monkeypatch):
    Image.fromarray(drawn(3, 255, np.uint8)).save(tmp_path / "x.png")
    Image.fromarray(drawn(1, 5).astype(np.uint8)).save(tmp_path / "labels.png")
    png16(tmp_path / "deep.png", drawn(3))
    ppm(tmp_path / "x.ppm", drawn(3), 65535)
    tifffile.imwrite(tmp_path / "bands.tif", drawn(5), photometric="minisblack", planarconfig="contig")
    readers = {name: load_image for name in ("x.png", "deep.png", "x.ppm")}
    readers |= {"labels.png": read_labels, "bands.tif": lambda file: read_image(file, Reading(in_chans=5))}
    pairs = [(read, tmp_path / name) for name, read in readers.items()] + [(read_ids, tmp_path / "x.png")]
    count = SIZE[0] * SIZE[1]
    for read, file in pairs:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        monkeypatch.delenv(MAX_PIXELS, raising=False)
        with pytest.raises(ValueError, match=f"{file.name}: {count} pixels, the limit is 200; .*{MAX_PIXELS}={count}"):
            read(file)
        monkeypatch.setenv(MAX_PIXELS, str(count - 1))
        with pytest.raises(ValueError, match=f"the limit is {count - 1};"):
            read(file)
        monkeypatch.setenv(MAX_PIXELS, str(count))
        read(file)
    monkeypatch.setenv(MAX_PIXELS, "many")
    with pytest.raises(ValueError, match="FAPN_ZOO_MAX_PIXELS='many'"):
        load_image(tmp_path / "x.png")
