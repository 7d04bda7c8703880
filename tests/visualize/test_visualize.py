"""Pictures of alignment and of comparisons: the numbers behind them are exact, and models stay as they were."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import fapn_zoo
from fapn_zoo.cli import main
from fapn_zoo.data.scenes import CLASSES, PALETTE, generate_scene
from fapn_zoo.metrics import ConfusionMatrix
from fapn_zoo.modules.heads.outputs import SemanticOutput
from fapn_zoo.visualize import data_items, image_items, read_alignment, render, side_by_side, visualize_alignment
from fapn_zoo.visualize.alignment import feature_colours
from fapn_zoo.visualize.comparison import Comparison, Item
from fapn_zoo.visualize.comparison_pictures import WRONG, WRONG_NEAR, _errors
from fapn_zoo.visualize.doors import _free_name
from fapn_zoo.zoo.spec import DataSpec, ModelSpec

pytestmark = pytest.mark.unit

TINY = {"backbone": "resnet10t", "backbone_channels": (8, 8, 16, 16), "neck_out_channels": 16}
GROUPS = {"neck_deform_groups": 2}
SIZE = (90, 70)  # neither side is a multiple of any stride


def tiny(name: str, **args: Any) -> nn.Module:
    torch.manual_seed(0)
    return fapn_zoo.create_model(name, num_classes=11, **{**TINY, **args})


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(generate_scene(5, SIZE).image)


# Alignment ----------------------------------------------------------------------------------------------------------


def test_levels_hold_what_the_neck_computes() -> None:
    model = tiny("perpixel_fapn", neck_select="fsm", **GROUPS).eval()
    with torch.no_grad():
        for align in model.neck.align:
            align.dcn.offset_mask.weight.normal_(std=0.05)
        pixels = torch.rand(3, *SIZE)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.data.mean, model.data.std))
        x = ((255 * pixels - mean) / std)[None]
        features = model.backbone(x)
        top = model.neck.top(features[-1])
        lateral = model.neck.lateral[2]
        fine = lateral(features[2])
        aligned = model.neck.align[2](fine, top, model.neck.output[2].norm) - fine
        gate = lateral.gate(features[2].mean((2, 3), keepdim=True)).sigmoid().flatten()
        up = F.interpolate(top, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    level = read_alignment(model, pixels).levels[2]
    assert (level.index, level.stride) == (2, 16)
    for found, expected in ((level.before, up[0]), (level.after, aligned[0]), (level.gate, gate)):
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_offsets_are_told_by_direction_and_in_pixels(image: Image.Image) -> None:
    model = tiny("perpixel_fam", data=DataSpec(size_divisor=32), **GROUPS)  # what is padded is not shown
    down, right, mask = torch.tensor([1.5, -0.5]), torch.tensor([-2.0, 2.0]), 0.75
    with torch.no_grad():
        for align in model.neck.align:
            bias = align.dcn.offset_mask.bias
            bias[:36].view(2, 9, 2)[:] = torch.stack([down, right], 1)[:, None]
            bias[36:] = torch.tensor(mask).logit()
    for level in read_alignment(model, image).levels:
        rows, columns = (-(-side // level.stride) for side in SIZE)
        assert level.before.shape == level.after.shape == (16, rows, columns)
        assert level.offsets.shape == (2, 9, 2, rows, columns)
        np.testing.assert_allclose(level.displacement[0], 0.5, atol=1e-6)
        np.testing.assert_allclose(level.displacement[1], 0.0, atol=1e-6)
        np.testing.assert_allclose(level.distance, (2.5 + np.hypot(0.5, 2)) / 2, atol=1e-6)
        np.testing.assert_allclose(level.modulation, mask, atol=1e-6)


VARIANTS = {
    "perpixel_fapn": (GROUPS, ["selection"]),
    "semantic_fpn_fapn": (GROUPS, []),
    "pointrend_fapn": (GROUPS, []),
    "maskformer_fam_se": (GROUPS, []),
    "perpixel_fam_noref_fsm": (GROUPS, []),
    "perpixel_plus_fam": (GROUPS, ["selection"]),
    "perpixel_deconv_fsm": ({}, ["offsets"]),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_aligning_neck_gives_its_pictures_and_says_what_it_lacks(
    name: str, image: Image.Image, tmp_path: Path
) -> None:
    args, lacks = VARIANTS[name]
    numbers = visualize_alignment(tiny(name, **args), image, tmp_path / "new" / "folder")
    assert [level["stride"] for level in numbers["levels"]] == [4, 8, 16]
    for level in numbers["levels"]:
        assert [any(word in line for line in level["absent"]) for word in ("offsets", "selection")] == [
            "offsets" in lacks,
            "selection" in lacks,
        ]
        assert ("displacement_px" in level) == ("offsets" not in lacks)
        assert ("selection" in level) == ("selection" not in lacks)
    folder = tmp_path / "new" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == sorted(numbers["files"])
    assert json.loads((folder / "alignment.json").read_text()) == numbers
    with np.load(folder / "alignment.npz") as arrays:
        assert ("level0_displacement" in arrays) == ("offsets" not in lacks)
        assert ("level2_gate" in arrays) == ("selection" not in lacks)
    widths = [Image.open(folder / f"level{i}.png").width for i in range(3)]
    assert len(set(widths)) == 1 and widths[0] > 600


def test_the_model_is_left_as_it_was(image: Image.Image, tmp_path: Path) -> None:
    model = tiny("perpixel_fapn", neck_norm="bn", neck_select="fsm", **GROUPS).train()
    model.backbone.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    visualize_alignment(model, image, tmp_path)
    again = tmp_path / "level0.png"
    before = again.read_bytes()
    with pytest.raises(ValueError, match="level0.png would be replaced by a picture of that name; use another output"):
        visualize_alignment(model, str(again), tmp_path)
    assert again.read_bytes() == before
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def fail(*_: Any) -> None:
        raise RuntimeError("a head that fails")

    model.head.forward = fail
    with pytest.raises(RuntimeError, match="a head that fails"):
        read_alignment(model, image)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert modes == {name: module.training for name, module in model.named_modules()}


def test_a_model_without_alignment_is_refused(image: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"^perpixel_fpn aligns no features \(its neck is FPN\); choose a model whose"):
        read_alignment(tiny("perpixel_fpn"), image)


def test_without_matplotlib_no_model_is_run(
    image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"plots need matplotlib .*pip install 'fapn-zoo\[viz\]'"):
        visualize_alignment(None, image, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_colours_of_features_can_be_compared() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(6, 9, 11)).astype(np.float32) * np.arange(1, 7)[:, None, None]
    first, second = feature_colours(before, before[[3, 1, 5, 0, 2, 4]] * 7 + 2)  # the same content in other channels
    assert first.shape == (9, 11, 3) and first.std() > 20
    np.testing.assert_allclose(first.astype(int), second.astype(int), atol=1)
    again = feature_colours(before, before)
    assert np.array_equal(*again) and np.array_equal(again[0], feature_colours(before, before)[0])
    for channels in (1, 2):
        assert feature_colours(before[:channels], before[:channels])[0].shape == (9, 11, 3)
    flat = np.ones((4, 3, 5), np.float32)
    assert np.isfinite(np.stack(feature_colours(flat, flat))).all()


# Comparison ---------------------------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """Knows the class of every grey value, and answers with a map moved right by some pixels."""

    def __init__(self, by: int, labels: tuple[str, ...] = ("left", "middle", "right")) -> None:
        super().__init__()
        palette = ((200, 0, 0), (0, 200, 0), (0, 0, 200))[: len(labels)]
        self.by, self.num_classes = by, len(labels)
        self.data = DataSpec(labels=labels, palette=palette, mean=(0.0,) * 3, std=(1.0,) * 3)
        self.spec = ModelSpec("shifted", "perpixel", "fpn", "resnet18", self.num_classes, data=self.data)
        self.register_buffer("anchor", torch.zeros(1))

    def forward(self, x: torch.Tensor, sizes: object = None, targets: object = None) -> SemanticOutput:
        ids = (x[:, 0] / 100).round().long().clamp(max=self.num_classes - 1)
        ids = torch.roll(ids, self.by, dims=2)
        return SemanticOutput(F.one_hot(ids, self.num_classes).permute(0, 3, 1, 2).float(), stride=1)


@pytest.fixture
def stripes() -> tuple[np.ndarray, np.ndarray]:
    """An image of three stripes and its labels, some of them unlabelled."""
    labels = np.repeat([0, 1, 2], 20)[None].repeat(30, 0).astype(np.uint8)
    image = np.repeat((100 * labels)[..., None], 3, 2)
    labels[:5] = 255
    return image, labels


def test_numbers_and_colours_of_a_comparison(stripes: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    image, labels = stripes
    models = {"exact": Shifted(0), "moved": Shifted(4)}
    items = [Item(image, labels, "stripes.png"), Item(image, labels, "stripes.jpg"), Item(image, None, "bare")]
    report = side_by_side(models, items, tmp_path / "out", band=2)
    assert [row["file"] for row in report["images"]] == ["stripes.png", "stripes_2.png", "bare.png"]
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["bare.png", "compare.json", "stripes.png", "stripes_2.png"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == report
    first = report["images"][0]
    # rolled by 4: 4 columns behind each of the two borders, and 4 where the last stripe comes in at the left
    assert first["agree"] == pytest.approx(1 - 12 / 60)
    assert first["scores"]["exact"] == {"miou": 1, "pixel_acc": 1, "band_miou": 1, "band_acc": 1}
    assert first["scores"]["moved"]["pixel_acc"] == pytest.approx(48 / 60)
    assert first["scores"]["moved"]["band_acc"] == pytest.approx(0.5)  # the two columns behind each border are wrong
    assert report["total"]["scores"]["moved"]["miou"] == pytest.approx(first["scores"]["moved"]["miou"])
    assert "scores" not in report["images"][2]
    found = Comparison("", list(models), [fapn_zoo.predict.predict(m, image) for m in models.values()], labels, 3, 2)
    colours = _errors(found, 1)
    assert (colours[10, [20, 21]] == WRONG_NEAR).all() and (colours[10, [22, 23]] == WRONG).all()
    assert not (colours[10, 24:40] == WRONG).all(1).any() and not (_errors(found, 0) == WRONG).all(2).any()
    text = render(report).splitlines()
    assert text[:2] == ["A = exact", "B = moved"] and text[3].split()[:2] == ["stripes.png", "80.00"]
    assert text[-2].startswith("all") and "2 rows" in text[-1]


def test_pictures_that_are_no_comparison_are_not_replaced(stripes: tuple[np.ndarray, np.ndarray], tmp_path: Path):
    photo = tmp_path / "photo.png"
    Image.fromarray(stripes[0]).save(photo)
    before = photo.read_bytes()
    models = {"exact": Shifted(0), "moved": Shifted(4)}
    for _ in range(2):  # the second replaces what the first wrote
        report = side_by_side(models, [Item(str(photo), None, "photo.png")], tmp_path)
        assert [row["file"] for row in report["images"]] == ["photo_2.png"]
        assert photo.read_bytes() == before and len(list(tmp_path.iterdir())) == 3


def test_totals_count_pixels_not_images(stripes: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    image, labels = stripes
    small = image[:, :40], np.ascontiguousarray(labels[:, :40])
    models = {"exact": Shifted(0), "moved": Shifted(4)}
    report = side_by_side(models, [Item(image, labels, "a"), Item(*small, "b")], tmp_path)
    matrix = ConfusionMatrix(3)
    for pixels, truth in ((image, labels), small):
        matrix.update(fapn_zoo.predict.predict(models["moved"], pixels).labels, truth)
    assert report["total"]["scores"]["moved"]["miou"] == matrix.compute()["miou"]


def test_three_models_and_no_labels(stripes: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    models = {str(i): Shifted(i) for i in range(3)}
    report = side_by_side(models, [Item(stripes[0], None, "x")], tmp_path)
    assert report["images"][0]["agree"] == pytest.approx(1 - 3 * 2 / 60)
    assert "scores" not in report["total"] and len(render(report).splitlines()) == 6
    assert Image.open(tmp_path / "x.png").width > 4 * 320


def test_what_cannot_be_compared(stripes: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    image, labels = stripes
    one, two = Shifted(0), Shifted(1)
    with pytest.raises(ValueError, match="two models or more"):
        side_by_side({"one": one}, [], tmp_path)
    with pytest.raises(ValueError, match="one has 3 classes, less has 2"):
        side_by_side({"one": one, "less": Shifted(0, ("a", "b"))}, [], tmp_path)
    with pytest.raises(ValueError, match="class 1 is 'middle' for one and 'centre' for other"):
        side_by_side({"one": one, "other": Shifted(0, ("left", "centre", "right"))}, [], tmp_path)
    with pytest.raises(ValueError, match="band=0"):
        side_by_side({"one": one, "two": two}, [], tmp_path, band=0)
    with pytest.raises(ValueError, match="no image"):
        side_by_side({"one": one, "two": two}, [], tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ValueError, match="the model has 3 classes, scenes:1 has 11"):
        data_items(one, "scenes:1")


def test_folders_of_images(stripes: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    for name in ("2", "10"):
        Image.fromarray(stripes[0]).save(tmp_path / f"{name}.png")
    items = list(image_items(Shifted(0), [tmp_path, tmp_path / "2.png"]))
    assert [item.name for item in items] == ["2.png", "10.png", "2.png"] and items[0].labels is None
    with pytest.raises(FileNotFoundError, match=r"missing.png"):
        list(image_items(Shifted(0), [tmp_path / "missing.png"]))


# Command line -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    data = DataSpec(labels=tuple(CLASSES), palette=tuple(map(tuple, PALETTE)))
    args = {"fapn": GROUPS, "fpn": {}}
    return {neck: tiny(f"perpixel_{neck}", data=data, **args[neck]).save(root / neck) for neck in ("fapn", "fpn")}


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    out = capsys.readouterr()
    return code, out.out, out.err.splitlines()[-1] if out.err else ""


def test_verbs(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], image: Image.Image, tmp_path: Path
) -> None:
    image.save(tmp_path / "photo.png")
    words = folders["fapn"], tmp_path / "photo.png", "--out", tmp_path / "a"
    code, out, _ = run(capsys, "visualize", "alignment", *words)
    assert code == 0 and len(out.splitlines()) == 6 and all(Path(line).is_file() for line in out.splitlines())
    code, _, err = run(capsys, "visualize", "alignment", folders["fpn"], tmp_path / "photo.png")
    assert code == 1 and err.startswith("error: perpixel_fpn") and "aligns no features" in err
    both = [folders["fpn"], folders["fapn"]]
    code, out, _ = run(capsys, "compare", *both, tmp_path / "photo.png", "--out", tmp_path / "c")
    assert code == 0 and "photo.png" in out and (tmp_path / "c" / "photo.png").is_file()
    code, out, _ = run(capsys, "compare", *both, "--data", "scenes:2@64x96", "--limit", 1, "--out", tmp_path / "d")
    assert code == 0 and "mIoU near" in out and len(list((tmp_path / "d").glob("scene_*.png"))) == 1
    for words, told in (
        (both, "name images"),
        ([*both, "x.png", "--data", "scenes:1"], "name images"),
        ([folders["fpn"], folders["fpn"], "x.png"], "named twice"),
        ([*both, tmp_path / "no.png"], "no.png"),
    ):
        code, _, err = run(capsys, "compare", *words)
        assert code == 1 and err.startswith("error: ") and told in err


def test_names_of_samples_in_subfolders_make_file_names(tmp_path):
    taken: set[str] = set()
    for name, file in (
        ("aachen/x", "aachen_x.png"), ("bonn/x", "bonn_x.png"), ("aachen_x", "aachen_x_2.png"), ("x.v2", "x.v2.png"),
        ("photo.JPG", "photo.png"), ("é" * 125, "é" * 110 + ".png"), ("é" * 124, "é" * 110 + "_2.png"),
    ):  # fmt: skip
        assert _free_name(name, tmp_path, set(), taken) == file
        taken.add(file)
