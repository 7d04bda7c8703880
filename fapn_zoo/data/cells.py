"""Pictures of cells drawn from a seed, for a first look at models of cells: they train none."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = (360, 480)  # height, width


def draw_nuclei(seed: int) -> np.ndarray:
    """Stained nuclei under a fluorescence microscope, light on dark: uint8 (360, 480, 3) RGB."""
    rng, image = np.random.default_rng(seed), Image.new("L", SIZE[::-1], 12)
    for x, y in _places(rng, 26, 46):
        radius = rng.uniform(11, 19, 2)
        ImageDraw.Draw(image).ellipse(
            [x - radius[0], y - radius[1], x + radius[0], y + radius[1]], int(rng.uniform(70, 190))
        )
    noise = rng.normal(0, 4, SIZE)
    grey = np.clip(np.asarray(image.filter(ImageFilter.GaussianBlur(1.5))) + noise, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def draw_blood(seed: int) -> np.ndarray:
    """A stained smear: red cells with pale centres, one white cell, platelets: uint8 (360, 480, 3) RGB."""
    rng, image = np.random.default_rng(seed), Image.new("RGB", SIZE[::-1], (226, 216, 214))
    draw = ImageDraw.Draw(image)
    for n, (x, y) in enumerate(_places(rng, 18, 84)):
        radius = rng.uniform(34, 42)
        if n == 0:
            _disc(draw, x, y, 52, (196, 176, 206))
            for dx, dy in rng.uniform(-16, 16, (5, 2)):
                _disc(draw, x + dx, y + dy, 24, (104, 66, 150))
            continue
        _disc(draw, x, y, radius, (208, 156, 152))
        _disc(draw, x + 2, y + 2, radius * 0.45, (222, 190, 184))
    for x, y in rng.uniform(0.05, 0.95, (3, 2)) * SIZE[::-1]:
        _disc(draw, x, y, rng.uniform(5, 8), (150, 104, 168))
    noise = rng.normal(0, 3, (*SIZE, 3))
    return np.clip(np.asarray(image.filter(ImageFilter.GaussianBlur(2))) + noise, 0, 255).astype(np.uint8)


def _places(rng: np.random.Generator, most: int, apart: float) -> list[tuple[float, float]]:
    """At most so many points of the picture, none closer to another than `apart` pixels."""
    found: list[tuple[float, float]] = []
    for x, y in rng.uniform(0, 1, (most * 20, 2)) * SIZE[::-1]:
        if len(found) < most and all((x - a) ** 2 + (y - b) ** 2 > apart**2 for a, b in found):
            found.append((float(x), float(y)))
    return found


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], colour)
