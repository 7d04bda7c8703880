"""Letters of any script on legends and plots: from a font of the machine, and never an empty box."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from fapn_zoo.tasks import fonts
from fapn_zoo.tasks.result import Result
from fapn_zoo.visualize import plots

pytestmark = pytest.mark.unit
CJK, HINDI, ARABIC = "道路", "सड़क", "طريق سريع"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch):
    """A machine without fonts but Pillow's own, which has been asked nothing yet."""
    monkeypatch.setattr(fonts, "_installed", set)
    monkeypatch.delenv("FAPN_ZOO_FONT", raising=False)
    for cache in (fonts._named, fonts._files, fonts._find, fonts._say):
        cache.cache_clear()
    yield
    for cache in (fonts._named, fonts._files, fonts._find, fonts._say):
        cache.cache_clear()


@pytest.fixture
def make_font(tmp_path: Path) -> Callable[[str, str], str]:
    """Writes a font file in which every one of the letters is a bar as high as its place among them."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    def box(height: int) -> object:
        pen = TTGlyphPen(None)
        pen.moveTo((100, 0))
        for corner in ((100, height), (700, height), (700, 0)):
            pen.lineTo(corner)
        pen.closePath()
        return pen.glyph()

    def make(letters: str, name: str = "Made") -> str:
        builder = FontBuilder(1000, isTTF=True)
        glyphs = {".notdef": box(950)} | {f"u{ord(c):X}": box(100 + 90 * i) for i, c in enumerate(letters)}
        builder.setupGlyphOrder(list(glyphs))
        builder.setupCharacterMap({ord(c): f"u{ord(c):X}" for c in letters})
        builder.setupGlyf(glyphs)
        builder.setupHorizontalMetrics({glyph: (800, 0) for glyph in glyphs})
        builder.setupHorizontalHeader(ascent=900, descent=-100)
        builder.setupNameTable({"familyName": name, "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        builder.save(tmp_path / f"{name}.ttf")
        return str(tmp_path / f"{name}.ttf")

    return make


def legend(*names: str) -> np.ndarray:
    ids = np.arange(len(names), dtype=np.uint8)[:, None].repeat(300, 1).repeat(400 // len(names), 0)
    palette = tuple((40 * i % 256, 90, 200) for i in range(len(names)))
    result = Result(np.zeros((*ids.shape, 3), np.uint8), ids, np.ones(ids.shape, np.float32), [], names, palette)
    return np.asarray(result.overlay(legend=True))


def test_words_that_the_own_font_has_are_drawn_as_ever():
    sheets = [Image.new("RGB", (300, 30)) for _ in range(2)]
    ImageDraw.Draw(sheets[0]).text((4, 5), "road 12.3%", "white", ImageFont.load_default(14))
    fonts.write(ImageDraw.Draw(sheets[1]), (4, 5), "road 12.3%", "white", 14)
    assert np.array_equal(*map(np.asarray, sheets))
    assert fonts.length("road", 14) == ImageFont.load_default(14).getlength("road")
    assert fonts.class_names(["road", "", "a  b"]) == ["road", "", "a  b"]


def test_no_font_means_numbers_and_one_line(caplog: pytest.LogCaptureFixture):
    assert fonts.class_names(["road", CJK, HINDI, "道 car"]) == ["road", "class 1", "class 2", "class 3 car"]
    assert np.array_equal(legend("road", CJK, "人行道"), legend("road", "class 1", "class 2"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    line = caplog.records[0].getMessage()
    assert "fonts-noto-cjk" in line and "FAPN_ZOO_FONT" in line and "\n" not in line
    assert fonts.spelled("街.png") == "\\u8857.png"  # of a file's name the code points, which are no boxes


def test_a_font_of_the_machine_is_found(make_font: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog):
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    (tmp_path / "LastResort.ttf").write_bytes(Path(make_font(CJK + HINDI, "Boxes")).read_bytes())
    (tmp_path / "Boxes.ttf").unlink()
    half, whole = make_font("道", "Half"), make_font(CJK, "Whole Sans")
    files = {str(tmp_path / "damaged.ttf"), str(tmp_path / "LastResort.ttf"), str(tmp_path / "gone.ttf"), half, whole}
    monkeypatch.setattr(fonts, "_installed", lambda: files)
    assert fonts.class_names([CJK, HINDI]) == [CJK, "class 1"]
    assert fonts.font_of(CJK) == whole and fonts.font_of("道") in (half, whole)
    seen = legend("road", CJK, "道")
    assert not np.array_equal(seen, legend("road", "class 1", "class 2")) and len(caplog.records) == 1
    assert not np.array_equal(seen, legend("road", "道", CJK))


def test_a_named_font_comes_first(make_font: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    first, other = make_font(CJK, "First"), make_font(CJK + HINDI, "Other")
    monkeypatch.setattr(fonts, "_installed", lambda: {other})
    monkeypatch.setenv("FAPN_ZOO_FONT", first)
    assert fonts.font_of(CJK) == first and fonts.font_of("सड") == other and fonts.font_of("road") == fonts.OWN
    monkeypatch.setenv("FAPN_ZOO_FONT", os.pathsep.join([other, first]))
    assert fonts.font_of(CJK) == other
    for wrong in (tmp_path / "gone.ttf", tmp_path):
        monkeypatch.setenv("FAPN_ZOO_FONT", str(wrong))
        with pytest.raises(ValueError, match="FAPN_ZOO_FONT=.* is no font file that can be read"):
            legend("road", CJK)
        legend("road")  # needs no other font


def test_words_of_several_fonts_stand_in_a_row(make_font: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAPN_ZOO_FONT", make_font(CJK))
    parts = fonts._runs(f"road {CJK} {CJK} 3%")
    assert [part for _, part in parts] == ["road", f" {CJK} {CJK}", " 3%"]
    assert fonts.length(f"road {CJK} 3%", 20) > fonts.length("road  3%", 20) + 2 * 0.8 * 20 - 1


@pytest.mark.parametrize("raqm", [True, False])
def test_letters_that_join_need_a_shaper(raqm: bool, make_font: Callable, monkeypatch: pytest.MonkeyPatch, caplog):
    """Arabic drawn letter by letter from the left would be another word."""
    if raqm and not features.check("raqm"):
        pytest.skip("this Pillow has no libraqm")
    monkeypatch.setattr(features, "check", lambda name: raqm)
    monkeypatch.setenv("FAPN_ZOO_FONT", make_font("".join(sorted({*ARABIC} - {" "})) + CJK))
    assert fonts.class_names(["road", ARABIC, CJK]) == ["road", ARABIC if raqm else "class 1", CJK]
    assert bool(caplog.records) != raqm and ("libraqm" in caplog.text) != raqm


def test_plots_show_the_same(make_font: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def drawn(*names: str) -> list[np.ndarray]:
        rows = [{"name": name, "iou": 0.5} for name in names]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns of boxes
            plots.plot_classes(rows, "iou", "IoU", 0.5, "title", tmp_path / "a.png")
            plots.plot_confusion(np.eye(len(names)), names, tmp_path / "b.png")
        return [np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png")]

    numbers = drawn("road", "class 1")
    assert all(map(np.array_equal, drawn("road", CJK), numbers))
    monkeypatch.setenv("FAPN_ZOO_FONT", make_font(CJK, "MadeForPlots"))
    assert not any(map(np.array_equal, drawn("road", CJK), numbers))
    assert all(map(np.array_equal, drawn("road", "class 1"), numbers))


def test_fonts_of_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    fonts._files.cache_clear()
    fonts._find.cache_clear()
    files = fonts._files()
    assert all(Path(file).is_file() for file in files)
    if any(Path(file).name == "DejaVuSans.ttf" for file in files) and features.check("raqm"):
        assert fonts.class_names(["Straße", "дорога", ARABIC]) == ["Straße", "дорога", ARABIC]


def test_control_characters_are_spaces():
    """A line break ended in an error of the layout, or in two lines on top of each other."""
    draw = ImageDraw.Draw(Image.new("RGB", (200, 40)))
    for text in ("two\nlines", "\n\u0301", "tab\there", "\x00\u2028\x85", "disc\n"):
        fonts.write(draw, (2, 2), text, "white", 13)
        assert fonts.length(text, 13) == fonts.length(fonts.CONTROL.sub(" ", text), 13)
    assert fonts.class_names(["two\r\nlines", "one"]) == ["two lines", "one"]
