"""Makes the picture of the front page: a scene, its classes, and an FPN beside a FaPN where they differ most.

    python hub/picture.py            from the root of the repository; ten minutes to half an hour on two cores

Trains both models from random weights (runs/picture/; a killed run goes on), scores them on other scenes
(hub/results/picture.csv), and draws docs/pictures/fpn-and-fapn.png. Recipe, data and seed are the same; the neck is all
that differs. The scene is the sixth one of the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fapn_zoo import create_model
from fapn_zoo.cli import main
from fapn_zoo.data.sources import ScenesDataset
from fapn_zoo.runtime.files import make_folder
from fapn_zoo.tasks.result import Result, save_image
from fapn_zoo.visualize import drawing

PICTURE, SCORES, RUNS = Path("docs/pictures/fpn-and-fapn.png"), Path("hub/results/picture.csv"), Path("runs/picture")
TWINS = {"FPN": "perpixel_fpn_resnet18_slim_camvid", "FaPN": "perpixel_fapn_resnet18_slim_camvid"}
TRAINING = (
    "data=scenes:200 val_data=none crop=192,256 steps=1000 ema=0.99 threads=1 amp=no log_every=50 seed=0 resume=auto"
)
SCORING = "--data scenes:100 --split test --boundary --seed 0"
PANEL, WINDOW = (384, 288), (144, 192)  # (width, height) of a panel; height and width of the enlarged part
WRONG, FIRST, SECOND = (215, 25, 45), (30, 110, 220), (20, 150, 80)


def folder(twin: str) -> Path:
    """Where the run of a twin lies."""
    return RUNS / twin.lower()


def train_and_score() -> None:
    """Trains what is not trained yet, and writes a row of scores for each."""
    for twin, name in TWINS.items():
        _run(["train", "finetune_folder", *TRAINING.split(), f"model={name}", f"out={folder(twin)}"])
    SCORES.unlink(missing_ok=True)
    _run(["eval", *(str(folder(twin) / "model") for twin in TWINS), *SCORING.split(), "--csv", str(SCORES)])


def _run(words: list[str]) -> None:
    if code := main(words):
        raise SystemExit(code)


def draw(results: Mapping[str, Result], truth: np.ndarray) -> Image.Image:
    """The sheet of six panels.

    Args:
        results: two semantic results of one image, the FPN's first. truth: (H, W) class ids.
    """
    (a, first), (b, second) = results.items()
    valid = truth != first.ignore_index
    errors = [valid & (result.labels != truth) for result in (first, second)]
    top, left = _window(errors[0] ^ errors[1])
    rows, columns = slice(top, top + WINDOW[0]), slice(left, left + WINDOW[1])

    photo = Image.fromarray(first.image)
    ImageDraw.Draw(photo).rectangle((left, top, left + WINDOW[1] - 1, top + WINDOW[0] - 1), outline=WRONG, width=3)
    differing = _pale(first.image)
    differing[errors[1] & ~errors[0]] = FIRST
    differing[errors[0] & ~errors[1]] = SECOND
    panels = [
        (np.asarray(photo), "a generated scene"),
        (np.asarray(second.overlay(alpha=0.6)), f"classes found by {b}"),
        (differing, f"only one is right: {a} blue, {b} green"),
        (first.image[rows, columns], "the window"),
    ]
    for name, wrong in zip(results, errors, strict=True):
        found = _pale(first.image)[rows, columns]
        found[wrong[rows, columns]] = WRONG
        panels.append((found, f"wrong pixels of {name}: {wrong[rows, columns].mean():.1%}"))
    pictures = [drawing.captioned(_fitted(pixels), words, 16) for pixels, words in panels]
    return drawing.framed(drawing.stacked([drawing.beside(pictures[:3]), drawing.beside(pictures[3:])]))


def _window(differ: np.ndarray) -> tuple[int, int]:
    """Top and left of the window with the most marked pixels."""
    sums = np.pad(differ.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    h, w = WINDOW
    counts = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = np.unravel_index(counts.argmax(), counts.shape)
    return int(top), int(left)


def _pale(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 in light greys, on which colours stand out."""
    grey = 165 + image.mean(2, keepdims=True) * (85 / 255)
    return np.repeat(grey.astype(np.uint8), 3, 2)


def _fitted(pixels: np.ndarray) -> Image.Image:
    return drawing.enlarged(np.ascontiguousarray(pixels), PANEL, smooth=len(pixels) > PANEL[1])


if __name__ == "__main__":
    train_and_score()
    sample = ScenesDataset("scenes:6", "test").sample(5)
    models = {twin: create_model(f"local-dir:{folder(twin) / 'model'}", pretrained=True) for twin in TWINS}
    found = {twin: model.predict(sample.image, amp="no") for twin, model in models.items()}
    sheet = draw(found, sample.labels).quantize(192, dither=Image.Dither.NONE)  # a third of the bytes
    make_folder(PICTURE.parent)
    save_image(sheet, PICTURE)
