"""Makes the picture of the front page: a scene, what an FPN and a FaPN find in it, and what alignment does to features.

    python hub/picture.py            from the root of the repository; half an hour on two busy cores

Trains both models from random weights (runs/picture/; a killed run goes on), scores them on other scenes
(hub/results/picture.csv), and draws docs/pictures/fpn-and-fapn.png. Recipe, data and seed are the same; the neck is all
that differs. The scene is a typical one: FaPN's gain on it is the median of those on all scenes scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from fapn_zoo import create_model
from fapn_zoo.cli import main
from fapn_zoo.data.generated import ScenesDataset
from fapn_zoo.data.scenes import generate_scene
from fapn_zoo.tasks.result import Result
from fapn_zoo.visualize import read_alignment
from fapn_zoo.visualize.alignment import Level, feature_colours
from fapn_zoo.visualize.plots import write_panels

PICTURE, SCORES, RUNS = Path("docs/pictures/fpn-and-fapn.png"), Path("hub/results/picture.csv"), Path("runs/picture")
TWINS = {"FPN": "perpixel_fpn_resnet18_slim_camvid", "FaPN": "perpixel_fapn_resnet18_slim_camvid"}
TRAINING = (
    "data=scenes:200 val_data=none crop=192,256 steps=1000 ema=0.99 threads=1 amp=no log_every=50 seed=0 resume=auto"
)
SCENES, SPLIT = 100, "test"
FIRST, SECOND = (30, 110, 220), (20, 150, 80)


def folder(twin: str) -> Path:
    """Where the run of a twin lies."""
    return RUNS / twin.lower()


def train_and_score() -> None:
    """Trains what is not trained yet, and writes a row of scores for each."""
    for twin, name in TWINS.items():
        _run(["train", "finetune_folder", *TRAINING.split(), f"model={name}", f"out={folder(twin)}"])
    SCORES.unlink(missing_ok=True)
    scoring = ["--data", f"scenes:{SCENES}", "--split", SPLIT, "--boundary", "--seed", "0", "--csv", str(SCORES)]
    _run(["eval", *(str(folder(twin) / "model") for twin in TWINS), *scoring])


def _run(words: list[str]) -> None:
    if code := main(words):
        raise SystemExit(code)


def typical_scene(models: Mapping[str, nn.Module]) -> int:
    """The seed of the scene whose gain, in share of right pixels from the first model to the second, is the median."""
    dataset = ScenesDataset(f"scenes:{SCENES}", SPLIT)
    gains = []
    for index in range(SCENES):
        sample = dataset.sample(index)
        first, second = (wrong(model.predict(sample.image, amp="no"), sample.labels) for model in models.values())
        gains.append(first.mean() - second.mean())
    return dataset.seed(int(np.argsort(gains, kind="stable")[SCENES // 2]))


def wrong(result: Result, truth: np.ndarray) -> np.ndarray:
    """(H, W) bool: where the class found is not the true one; never on unlabelled pixels."""
    return (result.labels != truth) & (truth != result.ignore_index)


def draw(results: Mapping[str, Result], truth: np.ndarray, finest: Level, path: Path) -> None:
    """Writes the sheet of six panels.

    Args:
        results: two semantic results of one image, the FPN's first. truth: (H, W) class ids. finest: the finest level
            of the FaPN's neck on this image.
    """
    image = next(iter(results.values())).image
    errors = [wrong(result, truth) for result in results.values()]
    panels = [(image, "a generated scene")]
    for (name, result), error in zip(results.items(), errors, strict=True):
        panels.append((np.asarray(result.overlay(alpha=0.6)), f"{name}: {1 - error.mean():.1%} of the pixels right"))
    before, after = feature_colours(finest.before, finest.after)
    panels += [(before, "FaPN, coarse features enlarged"), (after, "the same after alignment")]
    # light greys, on which colours stand out
    differing = np.repeat((165 + image.mean(2, keepdims=True) * (85 / 255)).astype(np.uint8), 3, 2)
    differing[errors[1] & ~errors[0]] = FIRST
    differing[errors[0] & ~errors[1]] = SECOND
    panels.append((differing, "only one is right: {} blue, {} green".format(*results)))
    height, width = image.shape[:2]
    whole = [(np.asarray(Image.fromarray(pixels).resize((width, height), 0)), words, "") for pixels, words in panels]
    write_panels([whole[:3], whole[3:]], "", path)


if __name__ == "__main__":
    train_and_score()
    twins = {twin: create_model(f"local-dir:{folder(twin) / 'model'}", pretrained=True) for twin in TWINS}
    scene = generate_scene(typical_scene(twins))
    found = {twin: model.predict(scene.image, amp="no") for twin, model in twins.items()}
    draw(found, scene.semantic, read_alignment(twins["FaPN"], scene.image).levels[0], PICTURE)
    sheet = Image.open(PICTURE).convert("RGB")
    sheet.quantize(256, dither=Image.Dither.NONE).save(PICTURE)  # a third of the bytes
