"""The pictures of an `Alignment`, by matplotlib (extra `viz`): a row of panels per level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fapn_zoo.tasks import fonts
from fapn_zoo.visualize.alignment import Alignment, Level
from fapn_zoo.visualize.plots import written_figure

ARROWS = 16  # along a side of a map, at most


def feature_colours(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two maps (C, h, w) -> two pictures (h, w, 3) uint8 whose colours can be compared.

    Alignment mixes the channels, so that a channel means something else after it. Shown are the three pairs of
    directions, one in the channels of each map, that vary most together over the pixels (the singular vectors of their
    cross-covariance): a pair is red, green or blue in both pictures, each from its 1st to its 99th percentile. The sign
    of a pair is that which makes its largest weight positive, so that equal maps always give equal pictures.
    """
    channels, height, width = before.shape
    points = []
    for values in (before, after):
        flat = values.reshape(channels, -1).T.astype(np.float32)
        flat = flat - flat.mean(0)
        points.append(flat / max(float(np.sqrt((flat**2).mean())), 1e-12))
    left, _, right = np.linalg.svd((points[0].T @ points[1]).astype(np.float64))
    axes = np.concatenate([left[:, :3], right[:3].T])
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    pictures = []
    for flat, weights in zip(points, np.split(axes.astype(np.float32), 2), strict=True):
        shares = flat @ weights
        low, high = np.percentile(shares, (1, 99), axis=0)
        colours = np.zeros((len(shares), 3), np.uint8)  # a map of one channel has only two directions
        colours[:, : shares.shape[1]] = (np.clip((shares - low) / np.maximum(high - low, 1e-6), 0, 1) * 255).round()
        pictures.append(colours.reshape(height, width, 3))
    return pictures[0], pictures[1]


def write_levels(found: Alignment, levels: Sequence[Level], side: float, path: Path) -> None:
    """Writes a .png file with a row of panels for every one of these levels; `side` of a panel in inches.

    Arrows point to where a pixel takes its samples from, and lengths are in pixels of the network's input.
    """
    height, width = found.image.shape[:2]
    size = 7.2 * side, len(levels) * (side * height / width + 0.9) + 0.6
    title = fonts.spelled(f"{found.model}    {found.name}")
    with written_figure(size, [title], path) as figure:
        figure.suptitle(title)
        for axes, level in zip(figure.subplots(len(levels), 7, squeeze=False), levels, strict=True):
            _draw(axes, found.image, level)


def _draw(axes: Sequence[Any], image: np.ndarray, level: Level) -> None:
    """The image and, where there are any, features, offsets, masks and gates of a level."""
    for place in axes:
        place.set(xticks=[], yticks=[])
    channels, rows, columns = level.before.shape
    pictures = {"image": image}
    pictures |= zip(("before alignment", "after alignment"), feature_colours(level.before, level.after), strict=True)
    for place, (title, picture) in zip(axes, pictures.items(), strict=False):
        place.imshow(picture, aspect="auto")
        place.set_title(title)
    axes[0].set_ylabel(f"stride {level.stride}: {rows} x {columns}, {channels} channels")
    maps = {}
    if level.offsets is not None:
        down, right = level.displacement * level.stride
        maps = {"mean displacement, px": np.hypot(down, right), "length of offsets, px": level.distance * level.stride}
        maps["mean of masks"] = level.modulation
    for place, (title, values) in zip(axes[3:], maps.items(), strict=False):
        drawn = place.imshow(values, aspect="auto", vmax=np.percentile(values, 99))
        place.figure.colorbar(drawn, ax=place, location="bottom")
        place.set_title(title)
    if level.offsets is not None and (down.any() or right.any()):
        y, x = (np.linspace(0, n - 1, min(n, ARROWS)).round().astype(int) for n in (rows, columns))
        axes[3].quiver(x, y, right[np.ix_(y, x)], down[np.ix_(y, x)], angles="xy", color="white")
    if level.gate is not None:
        axes[6].bar(range(len(level.gate)), np.sort(level.gate)[::-1], width=1)
        axes[6].set(ylim=(0, 1), yticks=[0, 0.5, 1], title="gates, strongest first")
    axes[6].set_xlabel("\n".join(level.absent))
