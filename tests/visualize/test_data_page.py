"""The page of a data set: one file with its samples, bars and sizes, and what was found."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import formats

from fapn_zoo.cli import main
from fapn_zoo.data import Objects, Sample
from fapn_zoo.data.check import check_data
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.visualize.data_page import drawn, write_page

pytestmark = pytest.mark.unit
VOID = {"meta", "img", "br", "path", "circle"}


class Checked(HTMLParser):
    """Tags that are closed in order, and the pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[Image.Image] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag == "img":
            source = dict(attrs)["src"].removeprefix("data:image/jpeg;base64,")
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(source))))
        if tag not in VOID or tag == "circle":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID or tag == "circle":
            assert self.open.pop() == tag


def read(file: Path) -> Checked:
    page = Checked()
    page.feed(file.read_text(encoding="utf-8"))
    assert not page.open and "script" not in page.seen and "link" not in page.seen
    return page


@pytest.mark.parametrize("name", [*formats.WRITERS, "scenes"])
def test_a_page_of_every_kind(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = "scenes:3@96x128" if name == "scenes" else str(formats.WRITERS[name](tmp_path / name))
    assert main(["check-data", source, "--html", str(tmp_path / "page.html")]) == 0
    page, out = read(tmp_path / "page.html"), capsys.readouterr().out
    assert len(page.pictures) == (9 if name == "scenes" else 6) and f"page: {tmp_path / 'page.html'}" in out
    assert all(max(picture.size) == 360 for picture in page.pictures)
    assert page.seen.count("svg") == 1 and page.seen.count("circle") == 1
    text = (tmp_path / "page.html").read_text()
    assert "Classes, share of all" in text and check_data(source, progress=False).verdict() in text


def test_what_is_wrong_and_strange_names_are_shown(tmp_path: Path):
    formats.write_yolo(tmp_path / "a <b>", names={0: "<script>", 1: "a&b", 2: "x"})
    names = ["<script>", "a&b", "x"]
    (tmp_path / "a <b>/data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n")
    (tmp_path / "a <b>/labels/val/001.txt").write_text("9 .5 .5 .1 .1\n")
    (tmp_path / "a <b>/images/train/001.png").write_bytes(b"no picture")
    report = check_data(tmp_path / "a <b>", progress=False)
    write_page(report, tmp_path / "page.html", samples=2)
    page, text = read(tmp_path / "page.html"), (tmp_path / "page.html").read_text()
    assert not report.ok and len(page.pictures) == 1 and 'class="error"' in text
    assert "is not an image" in text and "a &lt;b&gt; <small" in text and "row 1 is of class 9" in text
    assert "a&amp;b" in text and not re.search("<script>|<b>", text)


def test_pairs_and_what_cannot_be_opened(tmp_path: Path):
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (tmp_path / "set" / split / part).mkdir(parents=True)
            for n in range(2):
                pixels = np.random.default_rng([n, len(split)]).integers(0, 2, (8, 12), np.uint8)
                picture = Image.fromarray(pixels * (255 if part == "images" else 1))
                picture.save(tmp_path / "set" / split / part / f"{n}.png")
    (tmp_path / "set" / "classes.json").write_text('{"names": ["a", "b"]}')
    (tmp_path / "set/val/labels/1.png").unlink()
    write_page(check_data(tmp_path / "set", progress=False), tmp_path / "page.html")
    assert len(read(tmp_path / "page.html").pictures) == 3  # the picture without labels is named, and not drawn
    (tmp_path / "empty").mkdir()
    write_page(check_data(tmp_path / "empty", progress=False), tmp_path / "page.html")
    assert not read(tmp_path / "page.html").pictures


def test_labels_lie_where_they_are_drawn():
    table = LabelMap(("a", "b"), ((255, 0, 0), (0, 0, 255)))
    labels = np.full((20, 40), 255, np.uint8)
    labels[5:15, 10:20] = 1
    image = np.zeros((3, 20, 40), np.uint8)
    picture = np.asarray(drawn(Sample(torch.from_numpy(image), "x", labels), table)).astype(int)
    assert picture.shape == (180, 360, 3) and picture[90, 135].tolist() == [0, 0, 127]
    assert not picture[90, 270].any() and not picture[20, 135].any()
    boxes = np.array([[10, 5, 20, 15.0]])
    objects = Objects(None, np.array([0]), np.array([False]), None, boxes)
    picture = np.asarray(drawn(Sample(torch.from_numpy(image), "x", None, objects), table)).astype(int)
    assert picture[90, 90, 0] == 255 and not picture[90, 135].any() and not picture[90, 300].any()
