"""Several sizes, mirror images and windows: the mean of the right scores, and no drift by parts of a pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from toys import ramps

from fapn_zoo import create_model
from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput
from fapn_zoo.postprocess import semantic as bands
from fapn_zoo.predict import predict, windows
from fapn_zoo.predict.run import merged_bands, score_sources
from fapn_zoo.predict.views import Views, views_for
from fapn_zoo.predict.windows import step_spans, window_scores
from fapn_zoo.zoo.registry import get_spec, list_models
from fapn_zoo.zoo.spec import FACTORS, SCALES, DataSpec, ModelSpec

pytestmark = pytest.mark.unit


class Noise(nn.Module):
    """Scores that depend on everything around a pixel, for either kind of head."""

    def __init__(self, kind: str, data: DataSpec):
        super().__init__()
        torch.manual_seed(0)
        self.data, self.kind, self.num_classes = data, kind, 5
        head = "perpixel" if kind == "logits" else "maskformer"
        self.spec = ModelSpec(f"{head}_toy", head, "fpn", "toy", 5, data=data)
        self.maps = nn.Conv2d(3, 5 if kind == "logits" else 7, 8, stride=4, padding=2)
        self.classes = nn.Linear(3, 7 * 6)

    def forward(self, x, sizes=None, targets=None):
        x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        if self.kind == "logits":
            return SemanticOutput(self.maps(x))
        return MaskFormerOutput(self.classes(x.mean((2, 3))).view(-1, 7, 6) * 3, self.maps(x) * 3)


def run_plain(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Scores (K, h, w) at the size of the pixels, padded to 32 and cropped, in the order of the official code."""
    height, width = pixels.shape[1:]
    x = (pixels.float() - 100) / 50
    output = model(F.pad(x, (0, -width % 32, 0, -height % 32))[None])
    if isinstance(output, SemanticOutput):
        scores = F.interpolate(output.logits, scale_factor=4, mode="bilinear")
    else:
        masks = F.interpolate(output.mask_logits, scale_factor=4, mode="bilinear").sigmoid()
        scores = torch.einsum("nqc,nqhw->nchw", output.class_logits.softmax(-1)[..., :-1], masks)
    return scores[0, :, :height, :width]


def resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("kind", ["logits", "masks"])
@pytest.mark.parametrize("budget", [2000, bands.BAND_FLOATS])
@torch.no_grad()
def test_the_mean_is_that_of_the_official_recipe(monkeypatch, kind, budget):
    """Resize to the test size, then to each size; mirror; scores to the original size; mirror back; average."""
    monkeypatch.setattr(bands, "BAND_FLOATS", budget)
    data = DataSpec(mean=(100.0,) * 3, std=(50.0,) * 3, test_size=64, test_max_size=128, size_divisor=32)
    model = Noise(kind, data).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 83, 117), dtype=np.uint8))
    base = resize(pixels, (64, 90))
    expected = torch.zeros(5, 83, 117)
    for size in [(32, 45), (64, 90), (91, 128)]:
        for mirrored in (False, True):
            small = resize(base, size)
            scores = run_plain(model, small.flip(-1) if mirrored else small)
            scores = F.interpolate(scores[None], (83, 117), mode="bilinear")[0]
            expected += (scores.flip(-1) if mirrored else scores) / 6
    views = Views((0.5, 1.0, 96), max_size=128, flip=True)

    def run(shown):
        x = (torch.stack(list(shown)).float() - 100) / 50
        return model(F.pad(x, (0, -x.shape[3] % 32, 0, -x.shape[2] % 32)))

    sources = score_sources(run, model.data, views, [views.prepare(data, pixels)])[0]
    parts = list(merged_bands(sources, (83, 117)))
    assert [first for first, _, _ in parts][1:] == [last for _, last, _ in parts][:-1]
    assert (len(parts) > 1) == (budget == 2000)
    torch.testing.assert_close(torch.cat([scores for _, _, scores in parts], 1), expected, atol=2e-5, rtol=0)
    result = predict(model, pixels, scales=(32, 1.0, 91), flip=True, amp="no")
    best = expected.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    assert clear.mean() > 0.99 and np.array_equal(result.labels[clear], expected.argmax(0).numpy()[clear])
    share = expected.softmax(0) if kind == "logits" else expected / expected.sum(0)
    assert np.abs(result.scores - share.amax(0).numpy()).max() < 1e-4


SIZES = [(53, 89), (51, 97), (64, 96)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [(0, 0), (-3, 5)])
@pytest.mark.parametrize("stride, divisor", [(4, 1), (1, 1), (4, 32)])
@pytest.mark.parametrize(
    "options",
    [{"scales": (s,), "flip": f} for s in FACTORS for f in (False, True)]
    + [{"scales": FACTORS, "flip": True}, {"scales": "official"}, {"scales": (37, 75)}, {"flip": True}],
)
def test_no_drift(size, shift, stride, divisor, options):
    for data in ({}, {"test_size": 71}):
        model = ramps.Grid(size, shift, stride, size_divisor=divisor, **data)
        result = predict(model, ramps.picture(size), **options)
        assert np.array_equal(result.labels, ramps.truth(size, shift))


@pytest.mark.parametrize("window, stride", [((40, 40), (20, 20)), ((33, 45), (17, 31)), ((32, 200), (32, 200))])
@pytest.mark.parametrize("size", [*SIZES, (31, 33), (32, 45)])
@torch.no_grad()
def test_windows_are_averaged_exactly(size, window, stride):
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, *size), dtype=np.uint8))

    def scores(part: torch.Tensor) -> torch.Tensor:  # depend on where in the window a pixel is
        rows = torch.arange(part.shape[1])[:, None] + torch.arange(part.shape[2]) * 64
        return torch.stack([part[0] * 1.0, part[1] * 0.5 + rows])

    sums, counts = torch.zeros(2, *size), torch.zeros(size)
    axes = list(zip(size, window, stride, strict=True))
    tops, lefts = ({max(min(i, length - side), 0) for i in range(0, length, step)} for length, side, step in axes)
    for y, x in itertools.product(tops, lefts):
        part = (slice(y, y + window[0]), slice(x, x + window[1]))
        sums[(slice(None), *part)] += scores(pixels[(slice(None), *part)])
        counts[part] += 1
    assert counts.min() > 0
    batches = []

    def run(parts):
        batches.append(len(parts))
        return [scores(part) for part in parts]

    for batch_size in (1, 3):
        batches.clear()
        spans = [step_spans(*axis) for axis in axes]
        found = torch.cat(list(window_scores(run, pixels, *spans, batch_size)), dim=1)
        assert torch.equal(found, sums / counts)
        assert max(batches) <= batch_size and sum(batches) == len(tops) * len(lefts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {"window": (40, 44)},
        {"window": 33, "stride": 20},
        {"window": (64, 400)},
        {"window": (40, 64), "scales": (0.75, 1.5), "flip": True},
    ],
)
def test_no_drift_in_windows(size, options):
    for shift, divisor in (((0, 0), 32), ((2, -4), 1)):
        # cells larger than a pixel would fray at the edges of windows
        model = ramps.Grid(size, shift, stride=1, size_divisor=divisor).eval()
        views = views_for(model.spec, **options)
        pixels = torch.from_numpy(ramps.picture(size) * 255).permute(2, 0, 1)

        def run(shown, model=model, divisor=divisor):
            x = torch.stack(list(shown)) / 255
            return model(F.pad(x, (0, -x.shape[3] % divisor, 0, -x.shape[2] % divisor)))

        sources = score_sources(run, model.data, views, [views.prepare(model.data, pixels)], batch_size=2)[0]
        with torch.no_grad():
            labels = torch.cat([scores.argmax(0) for _, _, scores in merged_bands(sources, size)])
        assert np.array_equal(labels, ramps.truth(size, shift))
        limit = tuple(-(-side // divisor) * divisor for side in views.window)
        assert all(shape[2] <= limit[0] and shape[3] <= limit[1] for shape in model.inputs)


def test_windows_hold_one_row_of_windows(monkeypatch):
    held = []
    add = windows._RowSums.add
    monkeypatch.setattr(windows._RowSums, "add", lambda self, *a: (add(self, *a), held.append(self.sums.shape[1]))[0])
    monkeypatch.setattr(bands, "BAND_FLOATS", 5000)
    size = (1000, 64)
    model = ramps.Grid(size)
    views = views_for(model.spec, window=(64, 64), stride=(40, 40))
    sources = score_sources(
        lambda p: model(torch.stack(p) / 255), model.data, views, [[torch.full((3, *size), 255.0)]]
    )[0]
    kept = []
    for _ in merged_bands(sources, size):
        kept.append(sources[0][0].rows.held.shape[1])
    assert max(held) <= 64 and max(kept) <= 64 and len(held) == 25


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            self.largest = max(self.largest, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return result


@pytest.mark.parametrize("window", [None, (64, 96)])
def test_the_mean_takes_bands_whatever_the_size_of_the_photo(monkeypatch, window):
    monkeypatch.setattr(bands, "BAND_FLOATS", 2**17)
    size = (900, 1200)
    model = ramps.Grid(size, test_size=90)
    views = views_for(model.spec, (0.75, 1, 1.5), flip=True, window=window)
    images = [views.prepare(model.data, torch.from_numpy(ramps.picture(size) * 255).permute(2, 0, 1))]
    with LargestTensor() as seen, torch.no_grad():
        sources = score_sources(lambda p: model(torch.stack(list(p)) / 255), model.data, views, images)[0]
        for _, _, scores in merged_bands(sources, size):
            assert scores.numel() <= 2**17
    assert seen.largest < 2**18 < 16 * 900 * 1200 / 50


def test_official_sizes():
    listed = {(m.label_set, m.data.test_size): m for m in (get_spec(name)[0] for name in list_models())}
    for key, (_, limit) in SCALES.items():
        data = listed[key].data
        assert limit == (4096 if key[0] == "cityscapes" else 1.75 * data.test_max_size)
    assert SCALES["ade20k", 512][0] == (256, 384, 512, 640, 768, 896)
    assert SCALES["cityscapes", 1024][0] == (512, 768, 1024, 1280, 1536, 1792)
    model = create_model("perpixel_fapn_resnet18_cityscapes")  # 512 x 1024, not in the list
    views = views_for(model.spec, "official", flip=True)
    assert views == Views(FACTORS, 1024 * 1.75, True)
    assert views.sizes(model.data, (1024, 2048)) == [(int(512 * f), int(1024 * f)) for f in FACTORS]
    assert views_for(model.spec, (0.5, 256)).max_size == 1024
    swin = get_spec("maskformer_fapn_swin_l_ade20k")[0]
    assert views_for(swin, "official") == Views((320, 480, 640, 800, 960, 1120), 4480)
    assert views_for(swin, (1.5,)).max_size == 4480  # the limit of the list, whatever part of it is used
    wide = views_for(swin, "official").sizes(swin.data, (300, 3000))
    assert wide[0] == (320, 3200 * 2560 // 2560) and all(max(size) <= 4480 for size in wide)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scales": "all"}, "scales='all'; expected 'official' or numbers"),
        ({"scales": (0, 1)}, r"scales=\(0, 1\); expected 'official', factors up to 8, or short sides of 32"),
        ({"scales": (0.5, 12)}, r"scales=\(0.5, 12\)"),
        ({"scales": 0.5}, "scales=0.5"),
        ({"scales": (float("inf"),)}, r"scales=\(inf,\)"),
        ({"scales": np.array([0.5, 1])}, r"scales=array\(\[0.5, 1. \]\); expected 'official', factors"),
        ({"scales": ("a",)}, r"scales=\('a',\)"),
        ({"window": 16}, "window=16; expected at least 32 pixels, one number or"),
        ({"window": (64, 64, 64)}, r"window=\(64, 64, 64\)"),
        ({"window": (64.0, 64)}, r"window=\(64.0, 64\)"),
        ({"window": 64, "stride": 0}, "stride=0; expected at least 1"),
        ({"window": (64, 96), "stride": (64, 97)}, r"stride=\(64, 97\) leaves gaps between windows of \(64, 96\)"),
        ({"stride": 3}, "stride=3 without window"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        views_for(ramps.Grid((64, 64)).spec, **options)


def test_predict_says_where_views_do_not_work():
    model = ramps.Grid((64, 64))
    with pytest.raises(ValueError, match="scales and flip work without tile"):
        predict(model, ramps.picture((64, 64)), tile=64, flip=True)
    masks = Noise("masks", DataSpec())
    with pytest.raises(ValueError, match="scales, flip and windows work for task 'semantic' only, not 'panoptic'"):
        predict(masks, ramps.picture((64, 64)), "panoptic", scales=(1, 2))


def test_images_of_one_batch_get_their_own_answer():
    sizes = [(53, 89), (51, 97), (53, 89)]
    model = Noise("logits", DataSpec(size_divisor=32))
    images = [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i, size in enumerate(sizes)]
    together = predict(model, images, scales=(1, 1.5), flip=True, batch_size=3)
    for image, result in zip(images, together, strict=True):
        assert np.array_equal(result.labels, predict(model, image, scales=(1, 1.5), flip=True).labels)
