from __future__ import annotations

import io
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from fapn_zoo.data import images
from fapn_zoo.data.images import ImageError, list_images, load_image

pytestmark = pytest.mark.unit

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def pixels(source, in_chans=3):
    return load_image(source, in_chans).pixels


def as_array(tensor):
    return tensor.permute(1, 2, 0).numpy()


def test_paths_pil_arrays_and_tensors_agree(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(RGB).save(path)
    for source in (path, str(path), Image.fromarray(RGB), RGB, torch.from_numpy(RGB).permute(2, 0, 1)):
        loaded = load_image(source)
        assert loaded.pixels.dtype == torch.uint8 and loaded.pixels.is_contiguous()
        assert np.array_equal(as_array(loaded.pixels), RGB)
    assert load_image(path).name == load_image(Image.open(path)).name == "photo.png"
    assert load_image(RGB).name == "image" and load_image(RGB, name="mine").name == "mine"
    assert np.array_equal(as_array(pixels(RGB[:, ::-1])), RGB[:, ::-1]), "negative strides"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "pil"])
def test_exif_orientation(tmp_path, orientation, kind):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, 8:, 0] = 250  # red on the right
    upright[4:, :, 2] = 250  # blue below
    stored = {  # how a camera that writes this orientation stores the picture
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("x.jpg" if kind == "jpeg" else "x.png")
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=100, subsampling=0)
    loaded = as_array(pixels(Image.open(path) if kind == "pil" else path)).astype(int)
    assert loaded.shape == upright.shape
    assert np.abs(loaded - upright).max() <= (4 if kind == "jpeg" else 0)


def test_grey_palette_cmyk_and_bilevel(tmp_path):
    grey = RGB[:, :, 0]
    for source in (Image.fromarray(grey), grey, grey[:, :, None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(as_array(pixels(source)), np.repeat(grey[:, :, None], 3, 2))
    palette = Image.fromarray(RGB).quantize(64)
    assert np.array_equal(as_array(pixels(palette)), np.array(palette.convert("RGB")))
    cmyk = Image.new("CMYK", (4, 3), (255, 0, 0, 0))
    cmyk.save(tmp_path / "c.jpg", quality=100)
    assert np.abs(as_array(pixels(tmp_path / "c.jpg")).astype(int) - [0, 255, 255]).max() <= 3
    bilevel = Image.fromarray(grey > 127).convert("1")
    assert np.array_equal(as_array(pixels(bilevel))[:, :, 0], (grey > 127) * 255)
    assert np.array_equal(as_array(pixels(grey > 127))[:, :, 0], (grey > 127) * 255)


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (0, 255, 128)
    for source in (Image.fromarray(rgba), rgba, torch.from_numpy(rgba).permute(2, 0, 1)):
        found = as_array(pixels(source))[0].tolist()
        assert found[:2] == [[255] * 3, [200, 0, 0]]
        assert np.abs(np.array(found[2]) - [227, 127, 127]).max() <= 1
    la = Image.merge("LA", (Image.new("L", (2, 2), 10), Image.new("L", (2, 2), 0)))
    assert (pixels(la) == 255).all()
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "p.png", transparency=1)
    assert (pixels(tmp_path / "p.png") == 255).all()
    palette.save(tmp_path / "q.png", transparency=0)
    assert pixels(tmp_path / "q.png")[:, 0, 0].tolist() == [9, 8, 7]


def test_sixteen_bit_and_float(tmp_path):
    deep = np.array([[0, 257, 65535, 300]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    for source in (deep, tmp_path / "deep.png", tmp_path / "deep.tif"):
        found = pixels(source)
        assert found.dtype == torch.float32 and found.shape == (3, 1, 4)
        torch.testing.assert_close(found[1, 0], torch.tensor([0.0, 1.0, 255.0, 300 / 257]))
    unit = RGB.astype(np.float64) / 255
    for source in (unit, unit.astype(np.float16), torch.from_numpy(unit).permute(2, 0, 1).bfloat16()):
        assert np.abs(as_array(pixels(source)) - RGB).max() < 0.6
    Image.fromarray(np.array([[0.0, 0.5]], np.float32)).save(tmp_path / "float.tif")
    assert pixels(tmp_path / "float.tif")[0, 0].tolist() == [0.0, 127.5]
    requires_grad = torch.rand(3, 4, 4, requires_grad=True)
    assert not pixels(requires_grad).requires_grad


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_other_channel_counts_pass_unchanged():
    six = np.random.default_rng(1).integers(0, 256, (4, 5, 6), dtype=np.uint8)
    assert np.array_equal(as_array(pixels(six, 6)), six)
    assert np.array_equal(as_array(pixels(torch.from_numpy(six).permute(2, 0, 1), 6)), six)
    rgba = np.dstack([RGB, RGB[:, :, :1]])
    assert np.array_equal(as_array(pixels(Image.fromarray(rgba), 4)), rgba)
    assert np.array_equal(as_array(pixels(rgba, 4)), rgba)
    luma = np.array(Image.fromarray(RGB).convert("L")).astype(int)
    for source in (RGB, Image.fromarray(RGB)):
        assert np.abs(as_array(pixels(source, 1))[:, :, 0] - luma).max() <= 1


@pytest.mark.parametrize(
    "source, in_chans, message",
    [
        (np.zeros((0, 5, 3), np.uint8), 3, r"shape \(0, 5, 3\).* has no pixels"),
        (torch.zeros(3, 0, 5), 3, r"tensor of shape \(3, 0, 5\).* has no pixels"),
        (Image.new("RGB", (0, 4)), 3, r"size \(0, 4\) has no pixels"),
        (np.zeros((4, 5, 2), np.uint8), 3, "expected 1, 3, 4 channels, not 2"),
        (np.zeros((3, 40, 50), np.uint8), 3, "not 50; channels come last in arrays"),
        (torch.zeros(40, 50, 3), 3, r"not 40; channels come first in tensors"),
        (np.zeros((4,), np.uint8), 3, r"shape \(4,\).*expected \(H, W\) or \(H, W, C\)"),
        (torch.zeros(2, 3, 4, 4), 3, r"shape \(2, 3, 4, 4\) and type float32: expected \(H, W\) or \(C, H, W\)"),
        (np.full((4, 4), np.nan, np.float32), 3, r"shape \(4, 4\).*NaN"),
        (np.full((4, 4), 200.0), 3, "values 200..200; floating point images are 0..1"),
        (np.zeros((4, 4), np.int64), 3, "int64: expected uint8"),
        (RGB, 6, r"shape \(5, 7, 3\).* has 3 channels, the model takes 6"),
        (Image.fromarray(RGB), 4, "has 3 channels, the model takes 4"),
        (None, 3, "cannot read an image from NoneType"),
        ("http://127.0.0.1:9/x.png", 3, "cannot download http://127.0.0.1:9/x.png: "),
    ],
)
def test_unusable_sources_are_named(source, in_chans, message):
    with pytest.raises(ImageError, match=message):
        load_image(source, in_chans)


def test_unusable_files_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ImageError, match="text.jpg is not an image"):
        load_image(tmp_path / "text.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="cannot read .*cut.png"):
        load_image(tmp_path / "cut.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ImageError, match="empty.png is not an image"):
        load_image(tmp_path / "empty.png")
    with pytest.raises(FileNotFoundError, match="nowhere.png: no such file"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder, not an image"):
        load_image(tmp_path)


def test_decompression_bombs_are_named(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(
        ImageError, match="bomb.png: 35 pixels, .*FAPN_ZOO_MAX_PIXELS=35.*MAX_IMAGE_PIXELS if you trust it"
    ):
        load_image(tmp_path / "bomb.png")


@pytest.fixture
def server():
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    answers = {"/a%20photo.png": buffer.getvalue(), "/page.html": b"<html>", "/large.png": bytes(5000)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data = answers.get(self.path.split("?")[0])
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_urls(server, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    loaded = load_image(f"{server}/a%20photo.png?size=1")
    assert loaded.name == "a photo.png" and np.array_equal(as_array(loaded.pixels), RGB)
    with pytest.raises(ImageError, match=f"{server}/page.html is not an image"):
        load_image(f"{server}/page.html")
    with pytest.raises(ImageError, match=f"cannot download {server}/gone.png: Not Found"):
        load_image(f"{server}/gone.png")
    monkeypatch.setattr(images, "URL_MAX_BYTES", 1000)
    with pytest.raises(ImageError, match="large.png is larger than"):
        load_image(f"{server}/large.png")


def test_list_images_is_natural_and_flat(tmp_path):
    for name in ("b10.JPG", "b2.jpg", "a.png", ".hidden.png", "notes.txt", "²x.png"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "deep.png").touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b2.jpg", "b10.JPG", "²x.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ImageError, match="no images in folder .*none .looked for .avif"):
        list_images(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="a.png is not a folder"):
        list_images(tmp_path / "a.png")


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_pipes_and_dead_links_are_refused_at_once(tmp_path, caplog):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="pipe.png is no regular file"):
        load_image(tmp_path / "pipe.png")
    (tmp_path / "dead.png").symlink_to("gone.png")
    with pytest.raises(FileNotFoundError, match="dead.png: a link to gone.png, which is not there"):
        load_image(tmp_path / "dead.png")
    (tmp_path / "b.txt").touch()
    assert [path.name for path in list_images(tmp_path)] == ["dead.png", "pipe.png"]  # to be told of, one by one
    assert caplog.messages == [f"{tmp_path}: not read: another ending (1 .txt): {tmp_path}/b.txt"]
