"""Objects of large images in windows: each comes out once, whole, and as a run on the whole image finds it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from toys.prediction import Toy

from fapn_zoo.modules.heads.outputs import DetectionOutput, InstanceOutput, MaskFormerOutput
from fapn_zoo.postprocess.answers import Detections, Segment
from fapn_zoo.postprocess.joining import Window, join_windows
from fapn_zoo.predict import predict
from fapn_zoo.predict.files import predict_files
from fapn_zoo.zoo.spec import DataSpec

pytestmark = pytest.mark.unit
DATA = DataSpec(
    labels=("red", "green"), palette=((200, 0, 0), (0, 200, 0)), mean=(0.0,) * 3, std=(1.0,) * 3, test_size=40
)


class Blobs(Toy):
    """Finds the connected blobs of the red and of the green channel; a blob's score is its brightness."""

    def __init__(self, kind: type):
        heads = {DetectionOutput: "faster_rcnn", InstanceOutput: "mask_rcnn", MaskFormerOutput: "maskformer"}
        super().__init__(heads[kind], DATA)
        task = "detection" if kind is DetectionOutput else "instance"
        self.kind, self.spec, self.windows = kind, self.spec.__class__(**vars(self.spec) | {"task": task}), []

    def forward(self, x, sizes=None, targets=None):
        outputs = [self.found(image) for image in x]
        self.windows += [tuple(image.shape[1:]) for image in x]
        if self.kind is MaskFormerOutput:
            return MaskFormerOutput(*(torch.cat(parts) for parts in zip(*outputs, strict=True)), stride=1)
        return self.kind(*zip(*outputs, strict=True))

    def found(self, image):
        rows = []
        for label in (0, 1):
            blobs, count = ndimage.label(image[label].numpy() > 0)
            for blob, (y, x) in enumerate(ndimage.find_objects(blobs), 1):
                bright = float(image[label].numpy()[blobs == blob].max()) / 255
                rows.append((bright, label, (x.start, y.start, x.stop, y.stop), blobs == blob))
        rows.sort(key=lambda row: -row[0])
        scores, classes = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows], dtype=torch.int64)
        if self.kind is MaskFormerOutput:
            logits, masks = torch.full((1, 60, 3), -20.0), torch.full((1, 60, *image.shape[1:]), -20.0)
            logits[..., 2] = 20
            for query, (score, label, _, mask) in enumerate(rows):
                logits[0, query] = torch.tensor([1 - score if n == 2 else score * (n == label) for n in range(3)]).log()
                masks[0, query][torch.from_numpy(mask)] = 20
            return logits.clamp_min(-20), masks
        boxes = torch.tensor([r[2] for r in rows], dtype=torch.float32).reshape(-1, 4)
        cells = torch.full((len(rows), 28, 28), 9.0)
        return (boxes, scores, classes, *([cells] if self.kind is InstanceOutput else []))


def picture(blobs: list[tuple[int, int, int, int, int, int]], size=(160, 224)) -> np.ndarray:
    """(class, y, x, height, width, brightness) each."""
    image = np.zeros((*size, 3), np.uint8)
    for label, y, x, height, width, bright in blobs:
        image[y : y + height, x : x + width, label] = bright
    return image


def listed(result) -> list[tuple]:
    return sorted((s["category_id"], *s["bbox"], s["area"], round(s["score"], 4)) for s in result.segments)


SMALL = [(n % 2, 2 + 26 * (n // 8), 3 + 27 * (n % 8), 5 + n % 9, 4 + n % 11, 140 + 2 * n) for n in range(48)]
KINDS = [DetectionOutput, InstanceOutput, MaskFormerOutput]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile, overlap, batch_size", [(64, 0.5, 3), ((64, 96), 0.5, 1), (512, 0.25, 1)])
def test_small_objects_are_those_of_the_whole_image(kind, tile, overlap, batch_size):
    model, image = Blobs(kind), picture(SMALL)
    model.spec = model.spec.__class__(**vars(model.spec) | {"data": DataSpec(**vars(DATA) | {"test_size": None})})
    whole = predict(model, image, amp="no")
    tiled = predict(model, image, tile=tile, overlap=overlap, batch_size=batch_size, amp="no")
    assert listed(tiled) == listed(whole) and [s["id"] for s in tiled.segments] == [*range(1, 49)]
    if kind is not MaskFormerOutput:
        assert np.array_equal(tiled.boxes, whole.boxes)
    if kind is not DetectionOutput:
        assert np.array_equal(tiled.masks, whole.masks) and np.array_equal(tiled.segment_map, whole.segment_map)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_an_object_across_borders_comes_out_once(kind, overlap):
    """Wider than the overlap, over a corner of four windows, and over all windows of a row."""
    blobs = [(0, 40, 50, 50, 70, 200), (1, 5, 10, 20, 200, 150), (0, 120, 5, 6, 210, 250)]
    result = predict(Blobs(kind), picture(blobs), tile=64, overlap=overlap, amp="no")
    assert [s["bbox"] for s in result.segments] == [[5, 120, 210, 6], [50, 40, 70, 50], [10, 5, 200, 20]]
    scores = [s["score"] for s in result.segments]
    assert scores == pytest.approx([250 / 255, 200 / 255, 150 / 255], abs=1e-3)
    if kind is not DetectionOutput:
        assert [s["area"] for s in result.segments] == result.masks.sum((1, 2)).tolist()
    if kind is MaskFormerOutput:
        assert [s["area"] for s in result.segments] == [210 * 6, 70 * 50, 200 * 20]


def test_windows_see_native_pixels_and_nothing_is_found_in_nothing():
    model = Blobs(DetectionOutput)
    result = predict(model, picture([]), tile=64)
    assert result.segments == [] and result.boxes.shape == (0, 4) and set(model.windows) == {(64, 64)}
    assert predict(Blobs(InstanceOutput), picture([]), tile=64).masks.shape == (0, 160, 224)


def found(*boxes: tuple[int, list[float], float]) -> Detections:
    segments = tuple(Segment(i, c, True, score, 1) for i, (c, _, score) in enumerate(boxes, 1))
    return Detections(torch.tensor([box for _, box, _ in boxes]).reshape(-1, 4).float(), segments)


WINDOWS = [Window(0, 0, 100, 100), Window(0, 60, 100, 160)]


def test_two_of_one_window_stay_apart():
    """Two objects lie on each other where both windows see them: two of either window, not one of each pair."""
    pair = [(0, [70.0, 10, 90, 30], 0.9), (0, [72.0, 10, 92, 30], 0.8)]
    moved = [(c, [b[0] - 60, b[1], b[2] - 60, b[3]], score - 0.05) for c, b, score in pair]
    joined = join_windows(WINDOWS, [found(*pair), found(*moved)], (100, 160))
    assert joined.boxes.tolist() == [box for _, box, _ in pair] and [s.score for s in joined.segments] == [0.9, 0.8]


def test_a_piece_gives_way_to_the_whole_even_with_a_higher_score():
    cut, whole = (0, [80.0, 10, 100, 30], 0.99), (0, [20.0, 10, 60, 30], 0.6)
    joined = join_windows(WINDOWS, [found(cut), found(whole)], (100, 160))
    assert joined.boxes.tolist() == [[80, 10, 120, 30]] and joined.segments[0].score == pytest.approx(0.6)
    other = join_windows(WINDOWS, [found(cut), found((1, *whole[1:]))], (100, 160))
    assert len(other.segments) == 2, "another class is another object"


def test_a_piece_that_only_one_window_found_is_kept():
    joined = join_windows(WINDOWS, [found((0, [10.0, 10, 100, 30], 0.7)), found()], (100, 160))
    assert joined.boxes.tolist() == [[10, 10, 100, 30]]
    neighbours = found((0, [0.0, 40, 90, 60], 0.7))  # cut, too, but at another height
    joined = join_windows(WINDOWS, [found((0, [10.0, 10, 100, 30], 0.7)), neighbours], (100, 160))
    assert sorted(joined.boxes.tolist()) == [[10, 10, 100, 30], [60, 40, 150, 60]]


def test_files_are_tiled(tmp_path):
    from PIL import Image

    Image.fromarray(picture(SMALL)).save(tmp_path / "a.png")
    summary = predict_files(Blobs(DetectionOutput), tmp_path / "a.png", tmp_path / "out", tile=(64, 64), overlap=0.5)
    assert len(summary["images"][0]["segments"]) == 48 and summary["tile"] == (64, 64)
