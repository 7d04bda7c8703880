"""Who decides how pictures are read: the caller, `classes.json`, the model; and every reader gives the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys.deep import png16, tag
from toys.panoptic import write_coco

from fapn_zoo.data.cache import CachedDataset
from fapn_zoo.data.images import load_image
from fapn_zoo.data.loader import StepBatches
from fapn_zoo.data.reading import read_image
from fapn_zoo.data.reading_rules import Reading, proposed_level
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.data.transforms import TrainTransform
from fapn_zoo.predict.inputs import network_input
from fapn_zoo.predict.views import Views
from fapn_zoo.zoo.spec import DataSpec, ModelSpec

pytestmark = pytest.mark.unit


def folder(root: Path, white: int = 4095, eight: bool = True, **said) -> Path:
    """Two pictures of 16 bits and, with `eight`, one of 8."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True)
    for i in range(3):
        labels, values = rng.integers(0, 2, (16, 16), dtype=np.uint8), rng.random((16, 16, 3))
        file = root / f"train/images/{i}.png"
        if eight and i == 2:
            Image.fromarray((values * 255).astype(np.uint8)).save(file)
        else:
            png16(file, (values * white).astype(np.uint16))
        Image.fromarray(labels).save(root / f"train/labels/{i}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], **said}))
    return root


def rules(*args, **options) -> tuple:
    found = Reading(*args, **options)
    return found.white_level, found.exif, found.in_chans


def test_training_and_prediction_see_the_same_numbers(tmp_path):
    root = folder(tmp_path / "d", white_level=4095)
    dataset = open_dataset(root, "train")
    data = DataSpec(white_level=dataset.reading.white_level)
    plain = {"flip": 0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    stream = StepBatches(dataset, TrainTransform((16, 16), scale=(1, 1), **plain), 1, 0, 0, 3)
    cached = CachedDataset(dataset, {"labels"})
    for position in range(3):
        index = stream.index_at(position)
        file = dataset.files(index)[0]
        loaded = load_image(file, **Reading.of_model(data).options).pixels
        for same in (read_image(file, dataset.reading), dataset.sample(index).image, stream[position].image,
                     cached.sample(index).image, cached.sample(index).image):  # fmt: skip
            assert torch.equal(loaded.float(), same.float())
        assert (loaded.dtype == torch.uint8) == (index == 2) and loaded.max() > 250
        if index < 2:
            assert len(loaded[0].unique()) > 230 and (loaded != loaded.round()).any()
        (shown,) = Views().prepare(data, loaded)
        inputs = [
            network_input(data, [one], torch.device("cpu"), torch.float32) for one in (shown, stream[position].image)
        ]
        assert torch.equal(*inputs)


def test_the_caller_the_folder_and_the_model_decide(tmp_path):
    root = folder(tmp_path / "d")
    model = Reading(1023, "ignore")

    def found(**options):
        reading = open_dataset(root, "train", reading=Reading(**options)).reading
        return reading.white_level, reading.exif

    assert found() == (None, None) and found(white_level=255) == (255, None)
    assert found(otherwise=model) == (1023, "ignore") and found(exif="apply", otherwise=model) == (1023, "apply")
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], "white_level": 4095, "exif": "apply"}))
    assert found() == found(otherwise=model) == found(white_level=4095.0) == (4095, "apply")
    with pytest.raises(ValueError, match=r"white_level is 1023, but .*classes.json says 4095; leave one of them out"):
        found(white_level=1023)
    with pytest.raises(ValueError, match=r"exif is ignore, but .*classes.json says apply"):
        found(exif="ignore")
    for wrong, message in (({"white_level": "12 bit"}, "white_level='12 bit'"), ({"exif": "turn"}, "exif='turn'")):
        (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], **wrong}))
        with pytest.raises(ValueError, match=f"classes.json: {message}"):
            found()


def test_joined_folders_are_each_read_by_their_own_rules(tmp_path):
    a, b = folder(tmp_path / "a", 4095, white_level=4095), folder(tmp_path / "b", 255, white_level=255)
    data = open_dataset(f"{a},{b}", "train")
    assert all(data.sample(i).image.max() > 250 for i in range(6))
    assert data.reading.white_level is None  # they have no white in common
    c = folder(tmp_path / "c", 4095)
    assert open_dataset(f"{a},{c}", "train").reading.white_level == 4095
    with pytest.raises(ValueError, match="classes.json says 4095"):
        open_dataset(f"{a},{c}", "train", reading=Reading(255))


def test_panoptic_folders_are_read_by_the_same_rules(tmp_path):
    write_coco(tmp_path, range(2), size=(48, 48))
    plain = open_dataset(tmp_path, "val", ("segments",)).sample(0)
    picture, segments, _ = open_dataset(tmp_path, "val", ("segments",)).files(0)
    for file in (picture, segments):
        Image.open(file).save(file.with_suffix(".png"))
        tag(file, 3)
    turned = open_dataset(tmp_path, "val", ("segments",)).sample(0)
    assert np.array_equal(turned.objects.ids, plain.objects.ids[::-1, ::-1])
    assert np.array_equal(turned.labels, plain.labels[::-1, ::-1]) and torch.equal(turned.image, plain.image.flip(1, 2))
    (tmp_path / "classes.json").write_text(json.dumps({"exif": "ignore", "white_level": 1023}))
    stored = open_dataset(tmp_path, "val", ("segments",))
    assert torch.equal(stored.sample(0).image, plain.image) and stored.reading.white_level == 1023
    assert np.array_equal(stored.sample(0).objects.ids, plain.objects.ids)


def test_scenes_have_as_many_channels_as_they_can():
    scene = open_dataset("scenes:1@40x40", "val", reading=Reading(in_chans=1)).sample(0)
    assert scene.image.shape == (1, 40, 40)
    with pytest.raises(ValueError, match="scenes:1@40x40 has 3 channels, the model takes 4"):
        open_dataset("scenes:1@40x40", "val", reading=Reading(in_chans=4)).sample(0)


def test_rules_travel_in_config_and_the_usual_ones_leave_no_trace():
    usual = DataSpec().to_dict()
    assert "white_level" not in usual and "exif" not in usual and DataSpec.from_dict(usual) == DataSpec()
    mine = DataSpec(white_level=4095, exif="ignore")
    spec = ModelSpec("x", "perpixel", "fpn", "resnet18", 2, data=mine)
    again = ModelSpec.from_config(json.loads(json.dumps(spec.to_config()))).data
    assert again == mine and rules(**Reading.of_model(again).options) == (4095, "ignore", 3)
    assert Reading.of_model(again, 255, "apply") == Reading(255, "apply")
    for wrong in ({"white_level": 0}, {"exif": "no"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DataSpec(**wrong)


@pytest.mark.parametrize("high, level", [(1, "255"), (255, "255"), (256, "1023"), (4000, "4095"), (10000, "16383"),
                                         (65535, "65535"), (70000, "70000")])  # fmt: skip
def test_proposed_levels(high, level):
    assert proposed_level(high) == level
    assert proposed_level(high + 0.25, real=True) == ("255" if high == 1 else str(high + 1))
    assert proposed_level(0.25, real=True) == "1"
