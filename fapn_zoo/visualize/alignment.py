"""What a feature-aligned pyramid does to one image: read by hooks while the model predicts, as numbers, and drawn.

A level joins a fine map with the coarse one below it. Kept of every level: the upsampled coarse map before and after
alignment, the offsets and masks of the deformable convolution between them, and the gate of the feature selection.
Pictures need matplotlib (extra `viz`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.data.images import load_image
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.modules.necks.fapn import DeconvAlignment, FaPN, FeatureSelection
from fapn_zoo.predict.inputs import input_size, resized
from fapn_zoo.predict.run import ModelNetwork, inference, naming
from fapn_zoo.tasks import fonts
from fapn_zoo.tasks.result import shown_pixels
from fapn_zoo.visualize.plots import written_figure

TAPS = 9  # of the deformable convolution
ARROWS = 16  # along a side of a map, at most


@dataclass(eq=False)
class Level:
    """One level of a neck, without the padding of the input; (h, w) is its size, C its channels.

    Attributes:
        index: 0 is the finest.
        stride: pixels of the network's input per pixel of this level.
        before, after: (C, h, w) float32, the upsampled coarse map, and the rectified result of its alignment.
        offsets: (G, 9, 2, h, w) float32, how far (down, right) every tap of every group samples from its grid point,
            in pixels of this level; None where alignment is a deconvolution.
        masks: (G, 9, h, w) float32 in 0..1, the weight of every sample; None likewise.
        gate: (C',) float32 in 0..1, selection weight of every channel of the backbone's map; None without selection.
    """

    index: int
    stride: int
    before: np.ndarray
    after: np.ndarray
    offsets: np.ndarray | None = None
    masks: np.ndarray | None = None
    gate: np.ndarray | None = None

    @property
    def displacement(self) -> np.ndarray | None:
        """(2, h, w): the mean offset (down, right) over groups and taps."""
        return None if self.offsets is None else self.offsets.mean((0, 1))

    @property
    def distance(self) -> np.ndarray | None:
        """(h, w): the mean length of the offsets over groups and taps, which opposite ones do not cancel."""
        return None if self.offsets is None else np.hypot(self.offsets[:, :, 0], self.offsets[:, :, 1]).mean((0, 1))

    @property
    def modulation(self) -> np.ndarray | None:
        """(h, w): the mean mask over groups and taps."""
        return None if self.masks is None else self.masks.mean((0, 1))

    @property
    def absent(self) -> list[str]:
        """What this neck does not have, in words."""
        missing = [] if self.offsets is not None else ["no offsets, no masks: a transposed convolution"]
        return missing + ([] if self.gate is not None else ["no selection: a plain lateral convolution"])


@dataclass(eq=False)
class Alignment:
    """A model's name and its levels, fine to coarse, on one image.

    Attributes:
        name: of the image.
        image: (H, W, 3) uint8 as it was given.
        input_size: (H, W) after resizing, in pixels.
    """

    model: str
    name: str
    image: np.ndarray
    input_size: tuple[int, int]
    levels: list[Level]


def read_alignment(model: nn.Module, image: Any) -> Alignment:
    """Runs a model on one image and keeps what its neck does. The model is left as it was.

    Args:
        model: a `ZooModel` on any device, with a `FaPN` of any kind.
        image: anything `load_image` takes.

    Raises:
        ValueError: the model aligns nothing, or its weights or output are not finite. ImageError, FileNotFoundError: as
            `load_image`.
    """
    neck = model.neck
    if not isinstance(neck, FaPN):
        kinds = "fapn, fam, fam_se, fam_noref_fsm or deconv_fsm"
        what = f"{model.spec.name} aligns no features (its neck is {type(neck).__name__})"
        raise ValueError(f"{what}; choose a model whose neck is {kinds}")
    loaded = load_image(image, **Reading.of_model(model.data).options)
    pixels = resized(loaded.pixels, input_size(model.data, tuple(loaded.pixels.shape[1:])))
    found: list[dict[str, Tensor]] = [{} for _ in neck.align]
    with inference(model), naming([loaded.name]), _listening(neck, found):
        ModelNetwork(model, "no")([pixels])
    size, strides = tuple(pixels.shape[1:]), model.backbone.strides
    levels = [_level(index, strides[index], values, size, neck) for index, values in enumerate(found)]
    return Alignment(model.spec.name, loaded.name, shown_pixels(loaded.pixels), size, levels)


@contextmanager
def _listening(neck: FaPN, found: list[dict[str, Tensor]]) -> Iterator[None]:
    """Hooks on the parts of every level while the block runs; `found[level]` gets their tensors by name."""
    with ExitStack() as hooks:

        def keep(values: dict[str, Tensor], name: str, module: nn.Module) -> None:
            # a clone: the neck goes on in the same memory
            hook = module.register_forward_hook(
                lambda _, inputs, output: values.update({name: output.detach().clone()})
            )
            hooks.callback(hook.remove)

        for values, align, lateral in zip(found, neck.align, neck.lateral, strict=True):
            hooks.callback(align.register_forward_hook(partial(_keep_upsampled, values)).remove)
            if isinstance(align, DeconvAlignment):
                keep(values, "aligned", align.deconv)
            else:
                keep(values, "aligned", align.dcn)
                keep(values, "guides", align.dcn.offset_mask)
            if isinstance(lateral, FeatureSelection):
                keep(values, "gate", lateral.gate)
        yield


def _keep_upsampled(values: dict[str, Tensor], module: nn.Module, inputs: tuple, output: Tensor) -> None:
    fine, coarse = inputs[:2]
    values["upsampled"] = F.interpolate(coarse.detach(), size=fine.shape[-2:], mode="bilinear", align_corners=False)


def _level(index: int, stride: int, values: dict[str, Tensor], input_size: tuple[int, int], neck: FaPN) -> Level:
    height, width = (-(-side // stride) for side in input_size)

    def plain(tensor: Tensor) -> np.ndarray:
        return tensor[0, :, :height, :width].float().cpu().numpy()

    level = Level(index, stride, plain(values["upsampled"]), plain(values["aligned"].relu()))
    if "guides" in values:
        groups = neck.align[index].dcn.groups
        guides = values["guides"].float()
        offsets, masks = plain(guides[:, : 2 * TAPS * groups]), plain(guides[:, 2 * TAPS * groups :].sigmoid())
        level.offsets = offsets.reshape(groups, TAPS, 2, *offsets.shape[1:])
        level.masks = masks.reshape(groups, TAPS, *masks.shape[1:])
    if "gate" in values:
        level.gate = values["gate"][0, :, 0, 0].float().sigmoid().cpu().numpy()
    return level


def summary(found: Alignment) -> dict[str, Any]:
    """What the arrays say in a few numbers, as plain JSON types; lengths are in pixels of the network's input."""
    rows = []
    for level in found.levels:
        channels, height, width = level.before.shape
        row: dict[str, Any] = {"level": level.index, "stride": level.stride, "size": [height, width]}
        row |= {"channels": channels, "absent": level.absent}
        if level.offsets is not None:
            row["displacement_px"] = _spread(np.hypot(*level.displacement) * level.stride)
            row["offset_length_px"] = _spread(level.distance * level.stride)
            row["modulation"] = _spread(level.masks)
        if level.gate is not None:
            row["selection"] = _spread(level.gate)
            row["selection"]["strongest_channels"] = np.argsort(-level.gate, kind="stable")[:8].tolist()
        rows.append(row)
    sizes = {"image_size": list(found.image.shape[:2]), "input_size": list(found.input_size)}
    return {"model": found.model, "image": found.name, **sizes, "levels": rows}


def _spread(values: np.ndarray) -> dict[str, float]:
    found = zip(("min", "p10", "median", "p90", "max"), np.percentile(values, (0, 10, 50, 90, 100)), strict=True)
    return {"mean": float(values.mean()), **{name: float(value) for name, value in found}}


def arrays(found: Alignment) -> dict[str, np.ndarray]:
    """What the pictures show, by name: `level0_displacement` (2, h, w) and so on, float32, in pixels of the level."""
    table = {}
    for level in found.levels:
        for name in ("displacement", "distance", "modulation", "gate"):
            value = getattr(level, name)
            if value is not None:
                table[f"level{level.index}_{name}"] = np.asarray(value, np.float32)
    return table


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
