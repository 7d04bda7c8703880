from __future__ import annotations

import dataclasses
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toys.prediction import PLAIN, BrightSquare, TwoSquares, box, square

from fapn_zoo.data.images import ImageError
from fapn_zoo.predict import predict, windows
from fapn_zoo.predict.inputs import input_size, network_input, resized
from fapn_zoo.tasks.result import Result

pytestmark = pytest.mark.unit


def with_data(**changes):
    return BrightSquare(dataclasses.replace(PLAIN, **changes))


# Alignment ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_divisor", [1, 32])
@pytest.mark.parametrize("height, width", [(135, 203), (97, 131), (128, 160)])
def test_a_shifted_square_comes_back_shifted(size_divisor, height, width):
    model = with_data(size_divisor=size_divisor)
    first = predict(model, square(height, width, 20, 24, 32))
    assert first.labels.shape == (height, width) and box(first) == [24, 20, 32, 32]
    moved = predict(model, square(height, width, 20 + 36, 24 + 52, 32))
    assert np.array_equal(moved.labels[36:, 52:], first.labels[:-36, :-52])
    for shift in range(1, 4):  # off the network's grid: every edge still moves by exactly the same pixels
        found = predict(model, square(height, width, 20 + shift, 24 + shift, 32))
        assert box(found) == [24 + shift, 20 + shift, 32, 32]


@pytest.mark.parametrize("scale", [0.5, 2, 3])
def test_alignment_survives_the_test_size(scale):
    height, width = 96, 144
    model = with_data(test_size=int(height * scale), size_divisor=32)
    for top, left in ((16, 24), (32, 64)):
        result = predict(model, square(height, width, top, left, 32))
        assert result.labels.shape == (height, width)
        assert np.abs(np.array(box(result)) - [left, top, 32, 32]).max() <= (0 if scale >= 1 else 1)
        centre = (result.labels * np.mgrid[:height, :width]).sum((1, 2)) / result.labels.sum()
        assert np.abs(centre - [top + 15.5, left + 15.5]).max() < 0.01, "no drift"


def test_input_is_normalised_ordered_and_padded():
    data = dataclasses.replace(
        PLAIN, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0), channel_order="bgr", size_divisor=32
    )
    model = BrightSquare(data)
    image = np.zeros((5, 40, 3), np.uint8)
    image[:] = (50, 60, 70)  # RGB
    predict(model, image)
    (x,) = model.inputs
    assert x.shape == (1, 3, 32, 64) and x.dtype == torch.float32
    assert x[0, :, 4, 39].tolist() == [30.0, 10.0, 4.0], "mean and std are those of the network's channels"
    assert not x[..., 5:, :].any() and not x[..., 40:].any()


def test_network_input_batches_different_sizes_of_equal_padding():
    data = dataclasses.replace(PLAIN, size_divisor=32)
    images = [torch.full((3, 30, 20), 255, dtype=torch.uint8), torch.full((3, 32, 32), 255, dtype=torch.uint8)]
    x = network_input(data, images, torch.device("cpu"), torch.float32)
    assert x.shape == (2, 3, 32, 32) and not x[0, :, 30:].any() and not x[0, :, :, 20:].any() and x[1].min() > 2


def test_resize_is_pillows_and_sizes_round_half_up():
    pixels = torch.randint(0, 256, (3, 61, 91), dtype=torch.uint8)
    for size, limit, expected in ((30, None, (30, 45)), (61, None, (61, 91)), (61, 50, (34, 50)), (None, 50, (34, 50))):
        data = dataclasses.replace(PLAIN, test_size=size, test_max_size=limit)
        assert input_size(data, (61, 91)) == expected  # 91 * 30 / 61 = 44.75
    assert input_size(dataclasses.replace(PLAIN, test_max_size=500), (61, 91)) == (61, 91)
    assert input_size(dataclasses.replace(PLAIN, test_size=8), (1, 400)) == (8, 3200)
    small = resized(pixels, (30, 45))
    whole = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((45, 30), Image.Resampling.BILINEAR)
    assert np.array_equal(small.permute(1, 2, 0).numpy(), np.array(whole))
    assert resized(pixels, (61, 91)) is pixels
    exact = resized(pixels.float(), (30, 45))
    assert exact.dtype == torch.float32 and (exact - small.float()).abs().max() <= 1
    assert resized(torch.zeros(6, 1, 400), (8, 3200)).shape == (6, 8, 3200)


# Kinds of input -----------------------------------------------------------------------------------------------------


def test_one_many_folder_batch(tmp_path):
    model = BrightSquare()
    sizes = [(40, 40), (40, 40), (64, 48), (40, 40)]
    arrays = [square(*size, 8, 8 + 4 * i, 16) for i, size in enumerate(sizes)]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i + 8}.png")
    alone = [predict(model, array) for array in arrays]
    assert isinstance(alone[0], Result)
    for batch_size in (1, 2, 5):
        listed = predict(model, arrays, batch_size=batch_size)
        folder = predict(model, tmp_path, batch_size=batch_size)
        assert [result.name for result in folder] == ["8.png", "9.png", "10.png", "11.png"]
        for one, many, filed in zip(alone, listed, folder, strict=True):
            assert np.array_equal(one.labels, many.labels) and np.array_equal(one.labels, filed.labels)
            assert np.allclose(one.scores, many.scores, atol=1e-6)
    mixed = predict(model, [tmp_path, arrays[0], Image.fromarray(arrays[2])])
    assert len(mixed) == 6 and mixed[5].labels.shape == (64, 48)
    tensor = torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays[:2]])
    assert [np.array_equal(a.labels, b.labels) for a, b in zip(predict(model, tensor), alone, strict=False)] == [1, 1]
    assert predict(model, []) == []


def test_batches_hold_only_equal_sizes():
    model = with_data(size_divisor=32)
    predict(model, [square(h, w, 4, 4, 8) for h, w in ((40, 40), (60, 64), (40, 65), (40, 66))], batch_size=3)
    assert [tuple(x.shape) for x in model.inputs] == [(2, 3, 64, 64), (2, 3, 64, 96)]


def test_images_of_every_kind_give_their_own_size(tmp_path):
    model = BrightSquare()
    grey = square()[:, :, 0]
    deep = grey.astype(np.uint16) * 257
    rgba = np.dstack([square(), np.full(grey.shape, 255, np.uint8)])
    expected = predict(model, square()).labels
    for source in (grey, deep, rgba, grey / 255.0, Image.fromarray(grey), Image.fromarray(square()).quantize(4)):
        result = predict(model, source)
        assert np.array_equal(result.labels, expected)
        assert result.image.dtype == np.uint8 and np.abs(result.image.astype(int) - square()).max() <= 1
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.rot90(square()).copy())
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(predict(model, tmp_path / "turned.png").labels, expected)


def test_other_channel_counts():
    model = BrightSquare(dataclasses.replace(PLAIN, mean=(127.5,) * 5, std=(50.0,) * 5))
    image = np.dstack([square(), square()[:, :, :2]])
    result = predict(model, image)
    assert box(result) == [60, 40, 40, 40] and result.image.shape == (135, 203, 3)
    with pytest.raises(ImageError, match="has 3 channels, the model takes 5"):
        predict(model, square())
    single = BrightSquare(dataclasses.replace(PLAIN, mean=(127.5,), std=(50.0,)))
    assert box(predict(single, square())) == [60, 40, 40, 40]


# State of the model -------------------------------------------------------------------------------------------------


def test_training_flags_and_gradients_are_left_alone():
    model = BrightSquare()
    model.extra = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3))
    model.train()
    model.extra[1].eval()
    before = [module.training for module in model.modules()]
    predict(model, square())
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled() and model.cell.weight.requires_grad
    model.cell = nn.Conv2d(1, 1, 1)  # fails in forward
    with pytest.raises(RuntimeError):
        predict(model, square())
    assert model.training and model.extra[0].training and not model.extra[1].training


def test_threads_share_a_model_in_training_mode():
    """The first to be ready leaves the others in evaluation mode."""
    both_inside, first_is_done = threading.Barrier(2), threading.Event()

    class Waiting(BrightSquare):
        def forward(self, x, sizes=None):
            both_inside.wait(timeout=30)
            if threading.current_thread().name == "second":
                assert first_is_done.wait(timeout=30) and not self.training
            return super().forward(x)

    model, found = Waiting().train(), []
    second = threading.Thread(name="second", target=lambda: found.append(predict(model, square())))
    second.start()
    predict(model, square())
    first_is_done.set()
    second.join()
    assert found and model.training


def test_weights_of_lower_precision():
    model = BrightSquare().bfloat16()
    assert box(predict(model, square())) == [60, 40, 40, 40]
    assert model.inputs[0].dtype == torch.bfloat16


# Tiles --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(135, 203), (64, 333), (250, 97), (31, 45)])
@pytest.mark.parametrize("tile, overlap, batch_size", [(64, 0.5, 1), (96, 0.25, 3), ((64, 96), 0.4, 2)])
def test_tiles_equal_the_whole(height, width, tile, overlap, batch_size):
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3), dtype=np.uint8)
    image = np.minimum(square(height, width, 10, 15, 20).astype(int) + noise, 255).astype(np.uint8)
    for size_divisor in (1, 32):
        model = with_data(size_divisor=size_divisor)
        whole = predict(model, image)
        model.inputs.clear()
        tiled = predict(model, image, tile=tile, overlap=overlap, batch_size=batch_size)
        window = (tile, tile) if isinstance(tile, int) else tile
        assert all(x.shape[2] <= window[0] and x.shape[3] <= window[1] for x in model.inputs)
        assert np.array_equal(tiled.labels, whole.labels)
        assert np.abs(tiled.scores - whole.scores).max() < 1e-5


def test_small_images_are_not_enlarged_and_tiles_see_native_pixels():
    model = with_data(test_size=300, size_divisor=32)
    result = predict(model, square(50, 60, 8, 8, 16), tile=512)
    assert [tuple(x.shape) for x in model.inputs] == [(1, 3, 64, 64)]
    assert result.labels.shape == (50, 60)


@pytest.mark.parametrize("length", [1, 31, 64, 65, 96, 97, 200, 1000])
@pytest.mark.parametrize("size, overlap", [(64, 0.0), (64, 0.25), (128, 0.25), (128, 0.75)])
def test_spans_cover_the_image(length, size, overlap):
    spans = windows.grid_spans(length, size, overlap, 32)
    count = np.zeros(length, int)
    for span in spans:
        assert span.start % 32 == 0 and 0 <= span.start <= span.first < span.last <= span.end <= length
        assert span.end - span.start <= size
        count[span.first : span.last] += 1
    assert count.min() >= 1
    assert [span.first for span in spans] == sorted({span.first for span in spans})
    assert spans[0].first == 0 and spans[-1].last == length


def test_tiled_memory_is_one_row_of_windows(monkeypatch):
    held = []
    original = windows._RowSums.add

    def add(self, scores, top, left):
        original(self, scores, top, left)
        held.append(self.sums.shape[1])

    monkeypatch.setattr(windows._RowSums, "add", add)
    predict(BrightSquare(), square(1000, 64, 100, 8, 40), tile=64)
    assert max(held) <= 64


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tile": 0}, "tile=0; expected at least 1 pixels, one number or"),
        ({"tile": 64.0}, "tile=64.0"),
        ({"tile": (64, 64, 64)}, r"tile=\(64, 64, 64\)"),
        ({"tile": 64, "overlap": 0.9}, "overlap=0.9; expected 0..0.75"),
        ({"task": "panoptic"}, "task 'panoptic'; perpixel_toy has semantic"),
        ({"task": "depth"}, "task 'depth'; perpixel_toy has semantic"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        predict(BrightSquare(), square(), **options)


def test_panoptic_maps_have_no_tiles(pair):
    with pytest.raises(ValueError, match="tile works for .*'instance' or 'detection' only, not 'panoptic'"):
        predict(pair[0], pair[1], tile=64, task="panoptic")


# Mask classification ------------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    """A mask classifier and an image with two bright squares."""
    image = square(96, 160, 16, 16, 32)
    image[48:80, 104:144] = 235
    return TwoSquares(dataclasses.replace(PLAIN, things=(1,), size_divisor=32)), image


def test_semantic_of_masks(pair):
    model, image = pair
    result = predict(model, image)
    assert np.array_equal(result.labels == 1, predict(BrightSquare(), image).labels == 1)
    assert 0.99 < result.scores[30, 30] <= 1 and result.scores.min() >= 0.5


def test_panoptic(pair):
    model, image = pair
    result = predict(model, image, task="panoptic")
    assert [(s["name"], s["isthing"], s["bbox"]) for s in result.segments] == [
        ("ground", False, [0, 0, 160, 96]), ("square", True, [16, 16, 32, 32]), ("square", True, [104, 48, 40, 32]),
    ]  # fmt: skip
    assert [s["area"] for s in result.segments] == [int((result.segment_map == i).sum()) for i in (1, 2, 3)]
    assert result.segment_map[20, 20] == 2 and result.labels[20, 20] == 1 and result.labels[0, 0] == 0
    colours = np.array(result.overlay(alpha=1, boundaries=False, texts=False)).reshape(-1, 3).tolist()
    assert len(set(map(tuple, colours))) == 3
    json.dumps(result.to_dict())


def test_instances(pair):
    model, image = pair
    result = predict(model, image, task="instance")
    assert [s["bbox"] for s in result.segments] == [[104, 48, 40, 32], [16, 16, 32, 32]] or [
        s["bbox"] for s in result.segments
    ] == [[16, 16, 32, 32], [104, 48, 40, 32]]
    assert result.masks.shape == (2, 96, 160) and result.masks.dtype == bool
    assert result.labels[0, 0] == 255 and result.labels[20, 20] == 1 and result.scores[0, 0] == 0
    assert np.array_equal(np.array(result.overlay())[0, 0], image[0, 0]), "pixels without a class keep the image"
    assert sum(result.class_shares().values()) == pytest.approx((result.labels == 1).mean())
    nothing = predict(model, np.zeros((40, 40, 3), np.uint8), task="instance")
    assert nothing.segments == [] and nothing.masks.shape == (0, 40, 40) and "nothing found" in repr(nothing)
    nothing.overlay(legend=True)
