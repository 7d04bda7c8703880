"""From an image of any kind and size to a `Result` of the same size.

One image: load -> resize to the model's test size -> normalise -> pad -> network -> `postprocess` -> `Result`.
Everything that depends on the model (sizes, mean, colours, names) is read from its `DataSpec`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fapn_zoo.data.classes import full_names
from fapn_zoo.data.images import ImageError, LoadedImage, list_images, load_image
from fapn_zoo.data.labels import default_palette
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.predict.run import ModelNetwork, Shown, answers, device_and_type
from fapn_zoo.predict.views import tiles, views_for
from fapn_zoo.runtime.device import resolve_amp
from fapn_zoo.tasks import averaging_tasks, task_for
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec


def predict(
    model: nn.Module, x: Any, task: str | None = None, tile: int | tuple[int, int] | None = None, **options: Any
) -> Result | list[Result]:
    """Predicts on one image or many.

    Args: those below, and as `options` those of `predict_each` from `overlap` to `exif`.
        model: a `ZooModel`, on any device; its training flags are put back afterwards. Threads may share it.
        x: what `data.images.load_image` takes (path, URL, bytes, file object, PIL image, array, tensor), or a folder
            of images, or a list or tuple of all these, or a tensor (N, C, H, W).
        task: `"semantic"`; for mask classification models also `"panoptic"` and `"instance"`; for two-stage models
            `"detection"`, and with masks `"instance"`. None is the model's own.
        tile: not for panoptic. Run the image at its own resolution (without the model's test size) in overlapping
            windows of this many pixels, (height, width) or one number for both, and average their scores, or join
            their objects, see `fapn_zoo.postprocess.joining`: each comes out once, and one that is larger than the
            overlap is put together of its pieces. Windows are rounded up to multiples of 32 and of the model's
            padding; smaller images are run whole, not enlarged.

    Returns:
        A `Result` for one image; a list, in order, for a folder, list or batch. Every `Result` holds its image: for
        thousands of them iterate over `predict_each`, or let `predict_files` write pictures.

    Raises:
        FileNotFoundError: if a path does not exist.
        ImageError: if an image is unreadable or a folder has none; the message names it.
        ValueError: for a task the model does not have, or other arguments out of range; `NotFinite` where the output
            for an image is NaN or infinite anywhere, which is a fault of the model.
    """
    several = isinstance(x, (list, tuple)) and not isinstance(x, LoadedImage)
    items = [item for entry in (x if several else [x]) for item in _expand(entry)]
    results = [result for _, result in predict_each(model, items, task, tile, **options)]
    return results if several or _is_batch(x) else results[0]


def predict_each(
    model: nn.Module,
    items: Iterable[Any],
    task: str | None = None,
    tile: int | tuple[int, int] | None = None,
    *,
    overlap: float = 0.25,
    batch_size: int = 1,
    scales: str | Sequence[float] | None = None,
    flip: bool = False,
    amp: str = "auto",
    white_level: float | None = None,
    exif: str | None = None,
    on_error: Callable[[int, Exception], None] | None = None,
) -> Iterator[tuple[int, Result]]:
    """`predict` as a stream that holds at most one batch: yields (index, `Result`) in order.

    Args:
        model, task, tile: see `predict`. items: single images, no folders.
        overlap: share of a window that its neighbour covers again, 0..0.75.
        batch_size: how many images, or windows, enter the network at once. Only images of equal size (after
            resizing and padding) share a batch, so this changes results by rounding alone (in bfloat16, where that is
            coarse, the class of some pixels in ten thousand).
        scales, flip: semantic only. Average the scores of the image at several sizes, and mirrored: `"official"`,
            factors of the test size, or short sides in pixels; see `fapn_zoo.predict.views`.
        amp: `"bf16"`, `"fp16"` (GPUs) or `"no"`: what the network multiplies in. `"auto"` is bfloat16 where
            the processor has instructions for it and the weights are float32, else as the weights are.
        white_level, exif: how images are read, see `load_image`; None: as the model was trained.
        on_error: called with (index, error) for an image that cannot be read, which is then skipped; None raises.

    Arguments are checked at the call, before the first image is asked for.
    """
    asked, views = task_for(model.spec, task), views_for(model.spec, scales, flip)
    windows = tiles(model.data, tile, overlap)
    if windows is not None and (scales or flip):
        raise ValueError("scales and flip work without tile")
    views = windows or views
    if not (views.single or asked.averages_views or (windows is not None and asked.joins_windows)):
        what = "tile works" if windows is not None else "scales, flip and windows work"
        raise ValueError(f"{what} for {averaging_tasks(windows is not None)} only, not {asked.name!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected 1 or more")
    network = ModelNetwork(model, resolve_amp(amp, *device_and_type(model)))
    data = named(model)
    alone = isinstance(items, Sized) and len(items) == 1

    def shown_as(index: int, image: LoadedImage) -> str:
        return f"image {index + 1}" if image.name == "image" and not alone else image.name

    images = _load_each(items, Reading.of_model(data, white_level, exif), on_error)
    shown = (
        Shown((i, image), tuple(image.pixels.shape[1:]), views.prepare(data, image.pixels), shown_as(i, image))
        for i, image in images
    )
    found = answers(network, data, asked, views, shown, batch_size)
    return ((index, asked.result(answer, image, data)) for (index, image), answer in found)


def named(model: nn.Module) -> DataSpec:
    """The model's preprocessing and classes, with names and colours also where it has none of its own."""
    data = model.data
    names = full_names(data.labels, model.num_classes)
    return dataclasses.replace(data, labels=names, palette=data.palette or default_palette(len(names)))


def _load_each(
    items: Iterable[Any], reading: Reading, on_error: Callable[[int, Exception], None] | None
) -> Iterator[tuple[int, LoadedImage]]:
    for index, item in enumerate(items):
        try:
            image = load_image(item, **reading.options)
        except (ImageError, FileNotFoundError) as error:
            if on_error is None:
                raise
            on_error(index, error)
        else:
            yield index, image


def _is_batch(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.ndim == 4
    return isinstance(x, (str, Path)) and Path(x).is_dir()


def _expand(x: Any) -> list[Any]:
    """A folder -> its images, a batch -> its rows, anything else -> itself."""
    if not _is_batch(x):
        return [x]
    return list(x) if isinstance(x, Tensor) else list(list_images(x))
