"""A refined map, whose stride is 1, goes the one way of all predictions: batches, windows, views, half precision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fapn_zoo
from fapn_zoo.cli import main
from fapn_zoo.data.scenes import generate_scene
from fapn_zoo.zoo.spec import DataSpec

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    spec = DataSpec(mean=(103.53, 116.28, 123.675), std=(58.0,) * 3, channel_order="bgr", size_divisor=32)
    options = {"neck_out_channels": 32, "neck_deform_groups": 4, "head_channels": 64, "head_point_channels": 32}
    model = fapn_zoo.create_model("pointrend_fapn", backbone="resnet10t", num_classes=11, data=spec, **options).eval()
    nn.init.normal_(model.head.points.predictor.weight)
    return model


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return generate_scene(3, (150, 221)).image


def test_the_answer_is_the_best_of_the_refined_logits(model: nn.Module, image: np.ndarray) -> None:
    result = model.predict(image, amp="no")
    pixels = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.data.mean, model.data.std))
    x = nn.functional.pad((pixels - mean) / std, (0, -221 % 32, 0, -150 % 32))
    with torch.no_grad():
        logits = model(x[None]).logits[0, :, :150, :221]
    assert np.array_equal(result.labels, logits.argmax(0).numpy())
    np.testing.assert_allclose(result.scores, logits.softmax(0).amax(0).numpy(), atol=1e-5)


def test_images_of_a_batch_are_those_alone(model: nn.Module, image: np.ndarray) -> None:
    images = [image, image[:, ::-1].copy(), generate_scene(4, (150, 221)).image]
    for alone, found in zip(images, model.predict(images, batch_size=3, amp="no"), strict=True):
        assert (model.predict(alone, amp="no").labels == found.labels).mean() > 0.9999


def test_windows_views_and_other_sizes(model: nn.Module, image: np.ndarray) -> None:
    whole = model.predict(image, amp="no")
    again = model.predict(image, scales=(1.0,), amp="no")
    assert (again.labels == whole.labels).mean() > 0.9999
    tiled = model.predict(image, tile=128, amp="no")  # a window knows less of its surroundings
    views = model.predict(image, scales=(0.75, 1.25), flip=True, amp="no")
    for result in (tiled, views):
        assert result.labels.shape == (150, 221) and np.isfinite(result.scores).all()
    assert (tiled.labels == whole.labels).mean() > 0.5
    small = model.predict(image[:7, :9], amp="no")
    assert small.labels.shape == (7, 9)


def test_half_precision(model: nn.Module, image: np.ndarray) -> None:
    whole, half = model.predict(image, amp="no"), model.predict(image, amp="bf16")
    assert (whole.labels == half.labels).mean() > 0.9


def test_the_command_line(model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, report = str(model.save(tmp_path / "model")), tmp_path / "report.json"
    assert main(["benchmark", folder, "--size", "64x96", "--rounds", "1", "--no-memory"]) == 0
    assert "ratio: latency" in capsys.readouterr().out
    assert main(["eval", folder, "--data", "scenes:2@64x96", "--boundary", "--json", str(report)]) == 0
    assert 0 <= json.loads(report.read_text())["boundary"]["band_3"] <= 1
