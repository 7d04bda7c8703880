"""The first thing a newcomer runs: the embedded model on generated scenes and on photos, without any network."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fapn_zoo.data.scenes import generate_scene
from fapn_zoo.runtime.files import make_folder
from fapn_zoo.tasks.drawing import save_image


def demo(name: str, photos: Sequence[str], out: Path, scenes: int) -> tuple[str, bool]:
    """Writes two generated scenes, overlays and label PNGs of them and of the photos below ``out``.

    Args:
        name: a model with weights. photos: files or folders. scenes: how many further ones are scored.

    Returns:
        What was written and the score, as text, and whether every photo could be read. Raises as `predict_files` and
        `evaluate`.
    """
    from fapn_zoo import create_model
    from fapn_zoo.evaluate import evaluate, render
    from fapn_zoo.predict.files import predict_files

    model = create_model(name, pretrained=True)
    inputs = out / "scenes"
    make_folder(inputs)
    for seed in (1, 2):
        save_image(Image.fromarray(generate_scene(seed).image), inputs / f"scene_{seed}.png")
    progress = sys.stderr.isatty()
    summary = predict_files(model, [inputs, *photos], out, progress=progress)
    lines = [f"{out / image['overlay']}" for image in summary["images"]]
    report = evaluate(model, f"scenes:{scenes}", split="test", progress=progress, weights="embedded")
    return "\n".join([*lines, "", render(report)]), not summary["failed"]
