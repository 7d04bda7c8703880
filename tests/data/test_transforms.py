from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from fapn_zoo.data.sample import SEGMENTS, Objects, Sample
from fapn_zoo.data.transforms import _RGB, _YIQ, TrainTransform, _change_colour

pytestmark = pytest.mark.unit


class Pairs:
    """A transform of (image (H, W, 3), labels) for short tests."""

    def __init__(self, *args, **options):
        self.transform = TrainTransform(*args, **options)

    def __call__(self, image, labels, seed):
        found = self.transform(Sample(torch.from_numpy(np.array(image)).permute(2, 0, 1), "name", labels), seed)
        return found.image, torch.from_numpy(found.labels)


PLAIN = dict(flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def picture(height=60, width=80, classes=11, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        rng.integers(0, classes, (height, width), dtype=np.uint8),
    )


def change(pixels, *factors):
    out = np.full((3, *pixels.shape[:2]), np.nan, np.float32)
    _change_colour(np.ascontiguousarray(pixels.transpose(2, 0, 1)), factors, out)
    return out


def test_shapes_types_and_ranges():
    image, labels = picture()
    for seed in range(20):
        out, classes = Pairs((32, 48))(image, labels, seed)
        assert out.shape == (3, 32, 48) and out.dtype == torch.float32 and out.is_contiguous()
        assert classes.shape == (32, 48) and classes.dtype == torch.int64 and classes.is_contiguous()
        assert 0 <= out.min() and out.max() <= 255
        assert set(classes.unique().tolist()) <= {*range(11), 255}


def test_identity():
    image, labels = picture(32, 48)
    out, classes = Pairs((32, 48), scale=(1, 1), **PLAIN)(image, labels, 3)
    assert np.array_equal(out.permute(1, 2, 0).numpy(), image) and np.array_equal(classes.numpy(), labels)
    out, classes = Pairs((32, 48), scale=(1, 1), **{**PLAIN, "flip": 1.0})(image, labels, 3)
    assert np.array_equal(out.permute(1, 2, 0).numpy(), image[:, ::-1])
    assert np.array_equal(classes.numpy(), labels[:, ::-1])


@pytest.mark.parametrize("scale", [(2.0, 2.0), (1.37, 1.37), (0.5, 0.5), (0.61, 0.61), (0.5, 2.0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_labels_stay_under_their_pixels(scale, axis):
    # Both carry the source coordinate: the picture as a ramp (bilinear keeps a ramp), the labels as an id.
    ramp = np.broadcast_to(np.arange(120)[:, None] if axis == 0 else np.arange(120), (120, 120))
    image = np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8)
    transform = Pairs((40, 40), scale=scale, ignore_index=999, **{**PLAIN, "flip": 0.5})
    differences = []
    for seed in range(30):
        out, labels = transform(image, ramp.astype(np.int32), seed)
        assert (labels != 999).all()
        inner = (labels > 2) & (labels < 117)  # at the picture's border the antialias filter is cut off
        differences.append((out[0] - labels)[inner])
    off = torch.cat(differences)
    step = 1 / scale[0]
    assert off.abs().max() <= 0.5 * max(step, 1) + 0.5  # half a pixel of rounding each
    assert off.mean().abs() < 0.3 and abs(off.median()) <= 0.5  # no shift to one side


@pytest.mark.parametrize("factor", [0.55, 0.8, 1.0, 1.45, 2.0])
def test_equals_resizing_all_and_cutting(factor):
    image, labels = picture(90, 120)
    image = np.asarray(Image.fromarray(image).resize((120, 90), Image.Resampling.BOX).reduce(3).resize((120, 90)))
    size = (round(90 * factor), round(120 * factor))
    whole = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    ids = np.arange(labels.size).reshape(labels.shape)
    out, seen = Pairs((40, 40), scale=(factor, factor), **PLAIN)(image, ids, 5)
    # Where the window lies is read off the labels: nearest resize of unique ids.
    grid = np.ix_(
        [int((y + 0.5) / size[0] * 90) for y in range(size[0])],
        [int((x + 0.5) / size[1] * 120) for x in range(size[1])],
    )
    full = ids[grid]
    spots = [
        (y, x)
        for y, x in zip(*np.nonzero(full == int(seen[0, 0])), strict=True)
        if np.array_equal(full[y : y + 40, x : x + 40], seen.numpy())
    ]
    assert spots
    best = min(np.abs(whole[y : y + 40, x : x + 40] - out.permute(1, 2, 0).numpy()).max() for y, x in spots)
    assert best <= 1  # one grey value of rounding


@pytest.mark.parametrize("size", [(60, 80), (80, 60), (61, 200)])
def test_short_sides_of_whole_pictures_are_those_of_the_official_pipeline(size):
    image, labels = picture(*size)
    transform = Pairs((0, 0), short_sides=(32, 40, 71), max_side=96, **PLAIN)
    # detectron2's rule in two steps: the short side, then the long one at most, halves up
    expected = set()
    for short in (32, 40, 71):
        sides = [side * short / min(size) for side in size]
        sides = [side * min(1, 96 / max(sides)) for side in sides]
        expected.add(tuple(int(side + 0.5) for side in sides))
    found = {}
    for seed in range(30):
        out, classes = transform(image, labels, seed)
        assert out.shape[1:] == classes.shape and (classes != 255).all()
        whole = np.asarray(Image.fromarray(image).resize(out.shape[:0:-1], Image.Resampling.BILINEAR))
        assert np.array_equal(out.permute(1, 2, 0), whole)
        found[tuple(classes.shape)] = True
    assert found.keys() == expected


def test_smaller_pictures_lie_at_the_top_left_with_short_sides():
    image, labels = picture(60, 80)
    for flip in (0.0, 1.0):
        transform = Pairs((64, 96), short_sides=(30,), **PLAIN | {"flip": flip})
        out, classes = transform(image, labels, 1)
        small = Image.fromarray(image).resize((40, 30), Image.Resampling.BILINEAR)
        assert np.array_equal(out[:, :30, :40].permute(1, 2, 0), np.asarray(small)[:, :: -1 if flip else 1])
        assert (classes[:30, :40] != 255).all() and (classes[30:] == 255).all() and (classes[:, 40:] == 255).all()


def test_no_class_fills_a_window_if_another_can_be_had():
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 40:44], labels[:2] = 1, 255
    image = np.zeros((64, 64, 3), np.uint8)

    def shares(**options) -> list[float]:
        transform = Pairs((16, 16), scale=(1, 1), **PLAIN, **options)
        seen = [transform(image, labels, seed)[1] for seed in range(60)]
        return [float((s == 0).sum() / (s != 255).sum()) for s in seen]

    free, limited = shares(), shares(category_max=0.8)
    assert sum(share >= 0.8 for share in free) > 30 and sum(share >= 0.8 for share in limited) < 12
    assert shares(category_max=1.0) == free


def test_small_pictures_are_padded():
    image, labels = np.full((20, 30, 3), 7, np.uint8), np.full((20, 30), 3, np.uint8)
    transform = Pairs((32, 48), scale=(1, 1), fill=(1, 2, 3), ignore_index=200, **PLAIN)
    places = set()
    for seed in range(40):
        out, classes = transform(image, labels, seed)
        inside = classes == 3
        assert inside.sum() == 600 and (classes[~inside] == 200).all()
        assert (out[:, inside] == 7).all()
        assert torch.equal(out[:, ~inside], torch.tensor([1.0, 2.0, 3.0])[:, None].expand(-1, 32 * 48 - 600))
        places.add(tuple(inside.nonzero()[0].tolist()))
    assert len(places) > 20 and max(y for y, _ in places) > 8 and min(y for y, _ in places) < 4


def test_padding_keeps_its_colour_under_jitter():
    out, classes = Pairs((64, 64), scale=(0.5, 0.5), brightness=0.9)(*picture(40, 40), 1)
    padding = out[:, classes == 255]
    assert torch.allclose(padding, torch.tensor([123.675, 116.28, 103.53])[:, None].expand_as(padding))


def test_crops_reach_every_border():
    ids = np.arange(60 * 80).reshape(60, 80)
    image = np.zeros((60, 80, 3), np.uint8)
    transform = Pairs((16, 16), scale=(1, 1), **PLAIN)
    seen = np.zeros(ids.size, bool)
    for seed in range(600):
        seen[transform(image, ids, seed)[1].numpy()] = True
    seen = seen.reshape(60, 80)
    assert seen[2:-2, 2:-2].mean() > 0.97
    assert all(border.any() for border in (seen[0], seen[-1], seen[:, 0], seen[:, -1]))


def test_only_the_seed_decides():
    image, labels = picture()
    transform = Pairs((32, 48), rare_classes=(3, 5), rare_prob=0.5)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = transform(image, labels, 12345)
    assert before[0] == random.getstate() and torch.equal(before[2], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    torch.manual_seed(1), np.random.seed(1)
    kept = image.copy(), labels.copy()
    again = pickle.loads(pickle.dumps(transform))(image, labels, 12345)
    other = transform(image, labels, 12346)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert np.array_equal(kept[0], image) and np.array_equal(kept[1], labels)  # the source is not written to
    first[0].zero_()
    assert np.array_equal(kept[0], image)
    transform(image, labels, 2**64 - 1)


def test_read_only_and_strided_sources():
    image, labels = picture(64, 64)
    image.setflags(write=False), labels.setflags(write=False)
    transform = Pairs((32, 32))
    a = transform(image[::-1, ::-1], labels[::-1, ::-1], 4)
    b = transform(image[::-1, ::-1].copy(), labels[::-1, ::-1].copy(), 4)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_rare_crop_finds_the_pixel():
    labels = np.zeros((200, 200), np.uint8)
    labels[150:152, 11:13] = 7
    image = np.zeros((200, 200, 3), np.uint8)
    common = dict(scale=(1, 1.5), **PLAIN)
    found = [(Pairs((32, 32), rare_classes=(9, 7), rare_prob=1, **common)(image, labels, s)[1] == 7)
             for s in range(60)]  # fmt: skip
    assert all(f.any() for f in found)
    spots = {tuple(f.nonzero()[0].tolist()) for f in found}
    assert len(spots) > 30  # not always the middle
    assert sum((Pairs((32, 32), **common)(image, labels, s)[1] == 7).any() for s in range(60)) < 15
    Pairs((32, 32), rare_classes=(9,), rare_prob=1)(image, labels, 0)  # none there: any window


def test_colour_change_equals_its_four_steps():
    pixels = picture(24, 24)[0] // 3 + 80  # far enough from 0 and 255 that nothing is cut off
    b, c, s, h = 1.1, 0.9, 1.2, 0.03
    luma = np.array([0.299, 0.587, 0.114])
    x = pixels.astype(np.float64) * b
    x = c * x + (1 - c) * (x @ luma).mean()
    x = s * x + (1 - s) * (x @ luma)[..., None]
    turn = np.exp(2j * np.pi * h)
    yiq = x @ _YIQ.T
    iq = (yiq[..., 1] + 1j * yiq[..., 2]) * turn
    x = np.stack([yiq[..., 0], iq.real, iq.imag], -1) @ _RGB.T
    assert np.allclose(change(pixels, b, c, s, h), x.transpose(2, 0, 1), atol=0.01)


def test_flip_is_the_mirror_of_no_flip():
    image, labels = picture()
    for size, scale in (((32, 48), (1, 2)), ((90, 100), (0.5, 1))):  # cut out, and padded
        plain, flipped = (Pairs(size, scale, flip=flip)(image, labels, 8) for flip in (0.0, 1.0))
        assert torch.equal(plain[1], flipped[1].flip(-1))
        assert torch.allclose(plain[0], flipped[0].flip(-1), atol=1e-2)


def test_threads_do_not_meet():
    image, labels = picture(200, 200)
    transform = Pairs((150, 150))
    alone = [transform(image, labels, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: transform(image, labels, seed), range(40)))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(alone, together, strict=True))


def test_colour_change_keeps_what_it_must():
    pixels = picture(16, 16)[0] // 2 + 60
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    assert np.allclose(change(grey, 1, 1, 1.5, 0.3), grey.transpose(2, 0, 1), atol=0.01)
    assert np.allclose(change(pixels, 1, 1, 1, 1), pixels.transpose(2, 0, 1), atol=0.01)  # a full turn
    assert np.array_equal(change(pixels, 1, 1, 1, 0), pixels.transpose(2, 0, 1))
    assert change(pixels, 3, 1, 1, 0).max() == 255
    grey_out = change(pixels, 1, 1, 0, 0)
    assert np.allclose(grey_out[0], grey_out[1], atol=0.01)


@pytest.mark.parametrize(
    "setting",
    [
        dict(crop_size=(0, 5)),
        dict(crop_size=(5,)),
        dict(scale=(0, 1)),
        dict(scale=(2, 1)),
        dict(scale=(1, float("inf"))),
        dict(flip=1.5),
        dict(hue=0.6),
        dict(brightness=-0.1),
        dict(rare_prob=2),
        dict(fill=()),
    ],
)
def test_bad_settings_are_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Pairs(**{"crop_size": (8, 8), **setting})


def test_bad_samples_are_named():
    image, labels = picture(20, 30)
    transform = Pairs((8, 8))
    with pytest.raises(ValueError, match=r"\(20, 29\).*\(20, 30\)"):
        transform(image, labels[:, :-1], 0)
    with pytest.raises(ValueError, match=r"image must be \(3, H, W\), not \(4, 20, 30\)"):
        transform(np.zeros((20, 30, 4), np.uint8), labels, 0)


def test_odd_sizes():
    for size in [(1, 1), (1, 97), (131, 3), (33, 257)]:
        out, classes = Pairs((31, 17))(*picture(*size), 2)
        assert out.shape == (3, 31, 17) and classes.shape == (31, 17) and torch.isfinite(out).all()


def test_segments_move_with_their_labels():
    image, labels = picture(60, 80)
    ids = labels.astype(np.int32) % 4
    objects = Objects(ids, np.array([5, 6, 7]), np.array([False, True, False]))
    sample = Sample(torch.from_numpy(image).permute(2, 0, 1), "name", labels, objects)
    for seed in range(20):
        found = TrainTransform((32, 48), needs=SEGMENTS)(sample, seed)
        seen = found.labels != 255
        assert np.array_equal(found.objects.ids[seen], found.labels[seen] % 4) and not found.objects.ids[~seen].any()
        assert found.objects.ids.dtype == np.int32 and found.objects.classes is objects.classes
        alone = TrainTransform((32, 48), needs=frozenset({"segments"}))(sample, seed)
        assert alone.labels is None and np.array_equal(alone.objects.ids, found.objects.ids)
    assert TrainTransform((32, 48))(sample, 0).objects is None


def test_images_of_more_than_8_bits_keep_them():
    image, labels = picture(40, 40)
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 3 + 0.125
    found = TrainTransform((40, 40), scale=(1, 1), **PLAIN)(Sample(pixels, "x", labels), 1).image
    assert torch.equal(found, pixels)
    other = TrainTransform((32, 32), scale=(0.6, 0.9), **PLAIN)(Sample(pixels, "x", labels), 1).image
    small = TrainTransform((32, 32), scale=(0.6, 0.9), **PLAIN)(Sample(pixels.round().byte(), "x", labels), 1).image
    assert 0 < (other - small).abs().max() <= 1.5 and not torch.equal(other, other.round())


@pytest.mark.parametrize("bands", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_any_number_of_bands(bands, kind):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(100, 256, (bands, 40, 48), dtype=np.uint8)).to(kind)
    labels, fill = rng.integers(0, 9, (40, 48), dtype=np.uint8), tuple(range(10, 10 + bands))
    plain = TrainTransform((56, 56), scale=(1, 1), fill=fill, **PLAIN)(Sample(pixels, "x", labels), 5)
    inside = torch.from_numpy(plain.labels != 255)
    assert torch.equal(plain.image[:, inside], pixels.float().flatten(1))
    assert torch.equal(plain.image[:, ~inside], torch.tensor(fill).float()[:, None].expand(-1, int((~inside).sum())))
    for seed in range(10):
        found = TrainTransform((32, 32), fill=fill)(Sample(pixels, "x", labels), seed)
        assert found.image.shape == (bands, 32, 32) and 0 <= found.image.min() and found.image.max() <= 255
    with pytest.raises(ValueError, match=rf"image must be \({bands}, H, W\)"):
        TrainTransform((32, 32), fill=fill)(Sample(pixels.repeat(2, 1, 1), "x", labels), 0)


def test_brightness_and_contrast_change_bands_alike():
    bands = np.random.default_rng(0).integers(60, 100, (4, 20, 20), dtype=np.uint8)
    out = np.empty(bands.shape, np.float32)
    _change_colour(bands, (1.5, 1, 0.2, 0.4), out)
    np.testing.assert_allclose(out, bands * 1.5, rtol=1e-5)
    _change_colour(bands, (1, 0.5, 1, 0), out)
    mean = bands.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(out, mean + (bands - mean) * 0.5, rtol=1e-5)
