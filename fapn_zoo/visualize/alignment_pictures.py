"""The pictures of an `Alignment`: a sheet per level, and one with all levels below each other."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fapn_zoo.visualize import drawing
from fapn_zoo.visualize.alignment import Alignment, Level

PANEL = 460  # width of a map in the sheet of a level, in pixels
SMALL = 270  # and in the sheet with all levels
TALLEST = 1.25  # a panel is at most so many times as high as wide


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


def _panel_size(found: Alignment, width: int) -> tuple[int, int]:
    """(width, height) of a panel about `width` wide, in which a pixel of the finest level is a square."""
    rows, columns = found.levels[0].before.shape[1:]
    width = min(width, round(TALLEST * width * columns / rows))
    if columns <= width:
        width = columns * round(width / columns)
    return width, max(round(width * rows / columns), 1)


def _maps(level: Level, size: tuple[int, int], text: int, arrow_step: int) -> list[Image.Image]:
    """The panels that both sheets show: features before and after, and where there are any offsets and masks."""
    width = size[0]
    before, after = (drawing.enlarged(colours, size) for colours in feature_colours(level.before, level.after))
    panels = [drawing.captioned(before, "before alignment", text), drawing.captioned(after, "after alignment", text)]
    if level.offsets is None:
        return panels
    down, right = level.displacement
    longest = float(np.percentile(np.hypot(down, right), 99))
    field = drawing.enlarged(drawing.directions(down, right, longest), size)
    field = drawing.arrows(field, down, right, arrow_step, longest)
    shift = drawing.captioned(field, "mean displacement", text)
    legend = drawing.wheel(3 * text)
    words = [f"rim: {longest:.2f} px of this level", f"= {longest * level.stride:.1f} px of the input"]
    legend = drawing.beside([legend, drawing.text_block(words, width - legend.width - 8, text - 2)], 8)
    panels.append(drawing.stacked([shift, legend], 4))
    high = float(np.percentile(level.distance, 99))
    length = drawing.enlarged(drawing.ramp(level.distance, drawing.HEAT, 0, high), size)
    most = f"{high:.2f} px = {high * level.stride:.1f} px of input"
    bar = drawing.colour_bar(width, drawing.HEAT, "0", most, text - 2)
    panels.append(drawing.stacked([drawing.captioned(length, "length of offsets", text), bar], 4))
    low, high = (float(share) for share in np.percentile(level.modulation, (1, 99)))
    masks = drawing.enlarged(drawing.ramp(level.modulation, drawing.SHADE, low, high), size)
    bar = drawing.colour_bar(width, drawing.SHADE, f"{low:.2f}", f"{high:.2f}", text - 2)
    panels.append(drawing.stacked([drawing.captioned(masks, "mean of masks", text), bar], 4))
    return panels


def _gate(level: Level, size: tuple[int, int], text: int) -> Image.Image:
    if level.gate is None:
        return drawing.text_block(["no feature selection in this neck"], size[0], text, drawing.GREY)
    chart = drawing.bars(np.sort(level.gate)[::-1], size, 1.0, text - 2)
    return drawing.captioned(chart, f"selection gates, {len(level.gate)}", text)


def level_picture(found: Alignment, level: Level) -> Image.Image:
    """Everything about one level, next to the image."""
    size, text = _panel_size(found, PANEL), 16
    channels, height, width = level.before.shape
    image = drawing.captioned(drawing.enlarged(found.image, size, smooth=True), "image", text)
    before, after, *fields = _maps(level, size, text, arrow_step=22)
    rows = [drawing.beside([image, before, after])]
    if fields:
        rows.append(drawing.beside(fields))
    rows.append(_gate(level, (rows[0].width, 190), text))
    title = f"{found.model}    {found.name}    stride {level.stride}, {height} x {width}, {channels} channels"
    head = drawing.text_block([title, *level.absent], rows[0].width, text + 2)
    return drawing.framed(drawing.stacked([head, *rows]))


def contact_sheet(found: Alignment) -> Image.Image:
    """The image, what the levels say in numbers, and all levels below each other, fine to coarse."""
    text = 14
    size = _panel_size(found, SMALL)
    rows = []
    for level in found.levels:
        channels, height, width = level.before.shape
        facts = [f"stride {level.stride}", f"{height} x {width}", f"{channels} channels"]
        panels = _maps(level, size, text, arrow_step=20)
        gate = _gate(level, (max(size[0], 200), size[1]), text)
        rows.append(drawing.beside([drawing.text_block(facts, 105, text), *panels, gate]))
    image = drawing.captioned(drawing.enlarged(found.image, (2 * size[0], 2 * size[1]), smooth=True), found.name, text)
    width = max(max(row.width for row in rows), image.width + 480)
    words = drawing.text_block(_sentences(found), width - image.width - 3 * drawing.GAP, text + 1)
    head = drawing.stacked([drawing.text_block([found.model], width, text + 6), drawing.beside([image, words], 36)])
    return drawing.framed(drawing.stacked([head, *rows], 24))


def _sentences(found: Alignment) -> list[str]:
    """Means of every level, and what it does not have."""
    height, width = found.input_size
    lines = [
        "",
        f"input {height} x {width} pixels; lengths here are in pixels of the input",
        "arrows and colours point to where a pixel takes its samples from",
        "",
    ]
    for level in found.levels:
        lines.append(f"stride {level.stride}")
        if level.offsets is not None:
            shift = float(np.hypot(*level.displacement).mean()) * level.stride
            length = float(level.distance.mean()) * level.stride
            lines.append(f"    mean displacement {shift:.1f} px, of a single sample {length:.1f} px")
            lines.append(f"    masks: mean {level.masks.mean():.2f}, {(level.masks < 0.1).mean():.0%} below 0.1")
        if level.gate is not None:
            lines.append(f"    gates: {level.gate.min():.2f} to {level.gate.max():.2f}, mean {level.gate.mean():.2f}")
        lines += [f"    {missing}" for missing in level.absent]
    return lines
