from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest

from fapn_zoo.data.scenes import CLASSES, PALETTE, THINGS, VOID, generate_scene

pytestmark = pytest.mark.unit

SMALL = (96, 128)
DIGEST = """
import hashlib
from fapn_zoo.data.scenes import generate_scene
scene = generate_scene(7, (96, 128))
print(hashlib.sha256(b"".join(a.tobytes() for a in (scene.image, scene.semantic, scene.instances))).hexdigest())
"""


@pytest.fixture(scope="module")
def many():
    """Forty scenes, large enough for poles and far figures to leave a trace."""
    return [generate_scene(seed, (180, 240)) for seed in range(40)]


def arrays(scene):
    return [getattr(scene, field.name) for field in fields(scene) if field.name != "segments"]


def test_labels_are_those_of_camvid():
    names = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"
    assert " ".join(CLASSES) == names
    assert PALETTE[0] == (128, 128, 128) and PALETTE[4] == (60, 40, 222) and PALETTE[10] == (0, 128, 192)
    assert len(set(PALETTE)) == len(CLASSES) == 11
    assert [CLASSES[k] for k in THINGS] == ["Car", "Pedestrian", "Bicyclist"]


def test_same_seed_and_size_give_same_arrays_whatever_the_global_dice_say():
    np.random.seed(1)
    random.seed(1)
    first = generate_scene(3, SMALL)
    np.random.seed(2)
    random.seed(2)
    before = np.random.get_state()[1].copy(), random.getstate()
    second = generate_scene(3, SMALL)
    for a, b in zip(arrays(first), arrays(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.segments == second.segments
    assert (np.random.get_state()[1] == before[0]).all() and random.getstate() == before[1]


def test_another_process_draws_the_same_scene():
    scene = generate_scene(7, SMALL)
    here = hashlib.sha256(b"".join(a.tobytes() for a in (scene.image, scene.semantic, scene.instances))).hexdigest()
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_other_seeds_give_other_scenes():
    images = {generate_scene(seed, SMALL).image.tobytes() for seed in range(10)}
    assert len(images) == 10


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 200), (200, 32), (360, 480)])
def test_shapes_and_types(size):
    scene = generate_scene(0, size)
    assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
    assert scene.semantic.shape == size and scene.semantic.dtype == np.uint8
    assert scene.instances.shape == scene.panoptic.shape == size
    assert scene.instances.dtype == scene.panoptic.dtype == np.int32
    assert scene.image.flags.writeable
    with pytest.raises(FrozenInstanceError):
        scene.image = None


def test_default_size_is_camvids():
    assert generate_scene(1).image.shape == (360, 480, 3)


@pytest.mark.parametrize("size", [(0, 100), (-5, 100), (100, 0), (31, 64), (64, 31), (64,), (64, 64, 3)])
def test_bad_size_is_named(size):
    with pytest.raises(ValueError, match="at least 32") as caught:
        generate_scene(0, size)
    assert str(tuple(size)) in str(caught.value)


def test_negative_seed_is_refused():
    with pytest.raises(ValueError):
        generate_scene(-1, SMALL)


@pytest.mark.parametrize("seed", range(12))
def test_segments_say_what_the_maps_say(seed):
    scene = generate_scene(seed, (120, 160))
    ids = [segment["id"] for segment in scene.segments]
    assert ids == list(range(1, len(ids) + 1))
    assert set(np.unique(scene.panoptic)) - {0} == set(ids)
    for segment in scene.segments:
        mask = scene.panoptic == segment["id"]
        ys, xs = np.nonzero(mask)
        assert segment["area"] == mask.sum() > 0
        assert segment["bbox"] == (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
        assert segment["isthing"] is (segment["category_id"] in THINGS)
        assert set(np.unique(scene.semantic[mask])) == {segment["category_id"]}
        numbers = np.unique(scene.instances[mask])
        assert len(numbers) == 1 and (numbers[0] > 0) == segment["isthing"]
    stuff = [segment["category_id"] for segment in scene.segments if not segment["isthing"]]
    assert len(stuff) == len(set(stuff))


def test_maps_agree_with_each_other(many):
    for scene in many:
        assert ((scene.panoptic == 0) == (scene.semantic == VOID)).all()
        assert ((scene.instances > 0) == np.isin(scene.semantic, THINGS)).all()
        assert set(np.unique(scene.semantic)) <= {*range(11), VOID}
        numbers = np.unique(scene.instances[scene.instances > 0])
        things = [segment for segment in scene.segments if segment["isthing"]]
        assert list(numbers) == list(range(1, len(things) + 1))
        for number in numbers:
            assert len(np.unique(scene.semantic[scene.instances == number])) == 1


def test_every_class_appears(many):
    seen = set()
    for scene in many[:30]:
        seen |= set(np.unique(scene.semantic))
    assert set(range(11)) <= seen
    assert sum((scene.instances > 0).any() for scene in many) > 35


def test_class_shares_are_those_of_a_street(many):
    counts = sum(np.bincount(scene.semantic.ravel(), minlength=256) for scene in many)
    share = dict(zip(CLASSES, counts / counts.sum(), strict=False))
    assert max(share, key=share.get) == "Road" and 0.2 < share["Road"] < 0.45
    assert 0.1 < share["Sky"] < 0.3 and 0.1 < share["Building"] < 0.35
    assert 0.03 < share["Tree"] < 0.2 and 0.03 < share["Pavement"] < 0.15 and 0.03 < share["Car"] < 0.15
    for name in ("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist"):
        assert 0.001 < share[name] < 0.04, name
    assert counts[VOID] / counts.sum() < 0.02


def test_poles_are_thin():
    widths = []
    for seed in range(10):
        pole = generate_scene(seed).semantic == CLASSES.index("Pole")
        steps = np.diff(np.pad(pole, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        starts, ends = np.nonzero(steps == 1)[1], np.nonzero(steps == -1)[1]
        widths.extend(ends - starts)
    assert np.median(widths) <= 4 and np.percentile(widths, 90) <= 8


def test_the_sky_is_above_the_road_and_pictures_differ_in_light(many):
    rows = np.arange(180)[:, None]
    for scene in many:
        sky, road = scene.semantic == 0, scene.semantic == 3
        assert (rows * sky).sum() / max(sky.sum(), 1) < (rows * road).sum() / road.sum()
    means = [scene.image.mean() for scene in many]
    assert 60 < np.mean(means) < 160 and np.std(means) > 10


def test_objects_stand_out_in_the_picture_where_the_labels_are(many):
    """The step in the picture across a border of segments is several times that inside a segment."""
    across, inside = [], []
    for scene in many[:10]:
        grey = scene.image.astype(float).mean(2)
        step, border = np.abs(np.diff(grey, axis=1)), np.diff(scene.panoptic, axis=1) != 0
        across.append(step[border].mean())
        inside.append(step[~border].mean())
    assert np.mean(across) > 3 * np.mean(inside)
