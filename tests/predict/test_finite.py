"""A model whose weights or outputs are NaN or infinite gives no answer anywhere, and one line that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from toys.prediction import BrightSquare, TwoSquares, square

import fapn_zoo
from fapn_zoo.benchmark import benchmark
from fapn_zoo.cli import main
from fapn_zoo.evaluate import compare, evaluate
from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput
from fapn_zoo.predict import predict
from fapn_zoo.predict.files import predict_files
from fapn_zoo.zoo.spec import DataSpec

pytestmark = pytest.mark.unit
EMBEDDED = "perpixel_fapn_resnet18_slim_camvid"
NAN, INF = float("nan"), float("inf")
NECK = {"neck_out_channels": 16, "neck_deform_groups": 2}


class Spoiled(BrightSquare):
    """Right until an image is brighter than `limit` at the mean, whose logits hold one bad number."""

    def __init__(self, bad: float, limit: float = 0.0) -> None:
        super().__init__()
        self.bad, self.limit = bad, limit

    def forward(self, x: Tensor, sizes: Any = None, targets: Any = None) -> SemanticOutput:
        logits = super().forward(x).logits.clone()
        logits[x.mean((1, 2, 3)) > self.limit, 0, 2, 3] = self.bad
        return SemanticOutput(logits)


class SpoiledMasks(TwoSquares):
    def __init__(self, name: str) -> None:
        super().__init__(DataSpec(labels=("ground", "square"), things=(1,)))
        self.field = name

    def forward(self, x: Tensor, sizes: Any = None, targets: Any = None) -> MaskFormerOutput:
        output = super().forward(x)
        getattr(output, self.field)[-1, 1, 1] = NAN
        return output


def pictures(folder: Path, *brightness: int) -> list[Path]:
    folder.mkdir(parents=True)
    for i, value in enumerate(brightness):
        Image.fromarray(np.full((64, 96, 3), value, np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """The embedded model as a weights folder with a NaN in it, as an interrupted or diverged training may leave it."""
    from safetensors.torch import load_file, save_file

    folder = fapn_zoo.create_model(EMBEDDED, pretrained=True).save(tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["head.predictor.bias"][3] = NAN
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "options", [{}, {"tile": 64}, {"tile": 64, "batch_size": 3}, {"scales": (0.5, 1), "flip": True}, {"amp": "no"}]
)
def test_one_bad_logit_is_enough(bad: float, options: dict[str, Any]):
    kind = "NaN" if bad != bad else "inf"
    with pytest.raises(
        ValueError, match=rf"^perpixel_toy: the output for image is not finite \({kind} in logits\); its"
    ):
        predict(Spoiled(bad, limit=-9), square(), **options)


@pytest.mark.parametrize("field", ["class_logits", "mask_logits"])
@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_masks_of_every_task(task: str, field: str):
    with pytest.raises(ValueError, match=rf"^maskformer_toy: the output for image is not finite \(NaN in {field}\)"):
        predict(SpoiledMasks(field), square(), task)


def test_the_image_of_a_batch_is_named_and_the_rest_stays(tmp_path: Path):
    paths = pictures(tmp_path / "in", 20, 20, 20, 235, 20)
    model = Spoiled(INF)
    for batch_size in (1, 2, 5):
        out = tmp_path / f"out{batch_size}"
        with pytest.raises(ValueError, match="perpixel_toy: the output for 3.png is not finite"):
            predict_files(model, paths, out, batch_size=batch_size, progress=False)
        summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
        done = 3 // batch_size * batch_size
        assert not summary["complete"] and [Path(i["input"]).name for i in summary["images"]] == [
            f"{n}.png" for n in range(done)
        ]
        assert len(list(out.glob("*_labels.png"))) == done


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 3}, {"tile": 64}])
def test_images_without_a_name_go_by_their_place(options: dict[str, Any]):
    dark, bright = (np.full((64, 96, 3), value, np.uint8) for value in (20, 235))
    with pytest.raises(ValueError, match="the output for image 3 is not finite"):
        predict(Spoiled(INF), [dark, dark, bright], **options)


def test_weights_that_no_output_shows_are_named(tmp_path: Path):
    """Deformable convolution samples nothing at a place that is NaN, and an infinite variance divides to 0."""
    for name, bad in (("neck.align.0.dcn.offset_mask.bias", NAN), ("backbone.body.bn1.running_var", INF)):
        model = fapn_zoo.create_model(EMBEDDED, pretrained=True)
        model.predict(square(64, 96))
        with torch.no_grad():
            model.state_dict()[name].flatten()[0] = bad
        kind = "NaN" if bad != bad else "inf"
        with pytest.raises(
            ValueError, match=f"no answer for image, since its weights are not finite: {kind} in {name}"
        ):
            model.predict(square(64, 96))


def test_half_precision_is_named_where_the_weights_are_finite():
    model = fapn_zoo.create_model(EMBEDDED, pretrained=True)
    with torch.no_grad():
        model.head.predictor.weight *= 3e38 * (1 / model.head.predictor.weight.abs().max()).clamp(max=1)
    with pytest.raises(ValueError, match=r"inf in logits\); its weights are finite; .* amp=bf16 .* try amp=no"):
        model.predict(square(64, 96), amp="bf16")
    with pytest.raises(ValueError, match="its weights are finite, but too large to compute with"):
        model.predict(square(64, 96), amp="no")
    with pytest.raises(ValueError, match="its weights are finite, but bfloat16"):
        model.bfloat16().predict(square(64, 96))


def test_finite_outputs_beyond_a_sum_are_answered():
    class Huge(BrightSquare):
        def forward(self, x: Tensor, sizes: Any = None, targets: Any = None) -> SemanticOutput:
            return SemanticOutput(super().forward(x).logits * 1e37)

    expected, found = predict(BrightSquare(), square()), predict(Huge(), square(), amp="no")
    assert np.array_equal(found.labels, expected.labels) and np.isfinite(found.scores).all()


def test_every_way_from_the_command_line(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    photo = pictures(tmp_path / "in", 90)[0]
    where = "NaN in head.predictor.bias"
    ways = {
        ("predict", photo, "--model", broken, "--out", tmp_path / "out"): "no answer for 0.png",
        ("eval", broken, "--data", "scenes:2@64x96", "--json", tmp_path / "r.json"): "no answer for scene",
        ("eval", EMBEDDED, broken, "--data", "scenes:2@64x96"): "no answer for scene",
        ("compare", EMBEDDED, broken, photo, "--out", tmp_path / "sides"): "no answer for 0.png",
        ("visualize", "alignment", broken, photo, "--out", tmp_path / "alignment"): "no answer for 0.png",
        ("benchmark", broken, "--size", "64", "--rounds", "1", "--no-memory"): "nothing is measured",
        ("push", broken, "me/x", "--license", "mit", "--dry-run"): "is not pushed",
        ("train", "finetune_folder", "data=scenes:4@64x96", "crop=64", "steps=1", f"out={tmp_path / 'run'}")
        + (f"model=local-dir:{broken}", "pretrained=true"): "training cannot start from",
    }
    for words, said in ways.items():
        code = main([str(word) for word in words])
        err = capsys.readouterr().err.strip().splitlines()
        assert code == 1 and err[-1].startswith("error: ") and said in err[-1] and where in err[-1], (words, err)
        assert sum(line.startswith("error") for line in err) == 1 and "Traceback" not in "".join(err)
    assert not (tmp_path / "r.json").exists() and not (tmp_path / "alignment").exists()


@pytest.mark.parametrize("run", [evaluate, lambda model, data, **_: compare([model, model], data, progress=False)])
def test_evaluations_keep_what_is_done(run: Callable[..., Any], tmp_path: Path):
    model = fapn_zoo.create_model("perpixel_fapn", backbone="resnet10t", num_classes=11, **NECK)
    assert run(model, "scenes:2@64x96", progress=False)
    model.head.predictor.bias.data[1] = INF  # PyTorch counts no write to .data
    with pytest.raises(ValueError, match=r"perpixel_fapn: the output for scene\S* is not finite \(inf in logits\)"):
        run(model, "scenes:2@64x96", progress=False)


def test_nothing_that_is_not_finite_is_saved(tmp_path: Path):
    model = fapn_zoo.create_model("perpixel_fapn", backbone="resnet10t", num_classes=3, **NECK)
    with pytest.raises(ValueError, match=r"JSON .*nan"):
        model.save(tmp_path / "m", metrics={"mIoU": NAN})
    with torch.no_grad():
        model.head.predictor.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="not saved to .*m: its weights in float16 hold inf in head.predictor.weight"):
        model.save(tmp_path / "m", dtype=torch.float16)
    model.backbone.body.bn1.running_mean[2] = -INF
    with pytest.raises(
        ValueError, match="perpixel_fapn is not saved to .*m: its weights hold inf in backbone.body.bn1"
    ):
        model.save(tmp_path / "m")
    model.backbone.body.bn1.running_mean[2] = 0
    with torch.no_grad():
        model.head.predictor.weight.fill_(3e38)
    with pytest.raises(ValueError, match="not saved to .*m: its outputs on a small image hold"):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_pictures_without_numbers_are_refused(tmp_path: Path):
    model, values = BrightSquare(), square().astype(np.float32) / 255
    values[3, 4] = NAN
    file = tmp_path / "float.tif"
    Image.fromarray(values[..., 0]).save(file)
    for image in (
        values,
        torch.from_numpy(values).permute(2, 0, 1),
        torch.from_numpy(values[None]).permute(0, 3, 1, 2),
    ):
        with pytest.raises(ValueError, match="NaN|finite"):
            predict(model, image)
    with pytest.raises(ValueError, match="NaN|finite"):
        predict(model, file)


def test_benchmarks_of_new_weights_do_not_look(tmp_path: Path):
    rows = benchmark([("perpixel_fapn_resnet18_cityscapes", (32, 32))], rounds=1, warmup=0, memory=False)["rows"]
    assert rows[0]["fps"] > 0
