"""From an image of any kind and size to a `Result` of the same size.

One image: load -> resize to the model's test size -> normalise -> pad -> network -> `postprocess` -> `Result`.
Everything that depends on the model (sizes, mean, colours, names) is read from its `DataSpec`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fapn_zoo import postprocess
from fapn_zoo.data.images import ImageError, LoadedImage, list_images, load_image
from fapn_zoo.data.labels import default_palette
from fapn_zoo.predict.inputs import network_input
from fapn_zoo.predict.views import Views, head_stride, merged_bands, score_sources, views_for
from fapn_zoo.predict.windows import predict_tiles, tile_size
from fapn_zoo.runtime.precision import autocast, resolve_amp
from fapn_zoo.tasks.result import Result, describe_regions, full_names, label_dtype

TASKS = ("semantic", "panoptic", "instance")


def predict(
    model: nn.Module,
    x: Any,
    task: str | None = None,
    tile: int | tuple[int, int] | None = None,
    *,
    overlap: float = 0.25,
    batch_size: int = 1,
    scales: str | Sequence[float] | None = None,
    flip: bool = False,
    amp: str = "auto",
) -> Result | list[Result]:
    """Predicts on one image or many.

    Args:
        model: a `ZooModel`, on any device; its training flags are put back afterwards. Threads may share it.
        x: what `data.images.load_image` takes (path, URL, PIL image, array, tensor), or a folder of images, or a
            list or tuple of all these, or a tensor (N, C, H, W).
        task: ``"semantic"``; for mask classification models also ``"panoptic"`` and ``"instance"``. None is the
            model's own.
        tile: semantic only. Run the image at its own resolution (without the model's test size) in overlapping
            windows of this many pixels, (height, width) or one number for both, and average their scores. Windows
            are rounded up to multiples of 32 and of the model's padding; smaller images are run whole, not enlarged.
        overlap: share of a window that its neighbour covers again, 0..0.75.
        batch_size: how many images, or windows, enter the network at once. Only images of equal size (after
            resizing and padding) share a batch, so this changes results by rounding alone (in bfloat16, where that is
            coarse, the class of some pixels in ten thousand).
        scales, flip: semantic only. Average the scores of the image at several sizes, and mirrored: ``"official"``,
            factors of the test size, or short sides in pixels; see `fapn_zoo.predict.views`.
        amp: ``"bf16"``, ``"fp16"`` (GPUs) or ``"no"``: what the network multiplies in. ``"auto"`` is bfloat16 where
            the processor has instructions for it and the weights are float32, else as the weights are.

    Returns:
        A `Result` for one image; a list, in order, for a folder, list or batch. Every `Result` holds its image: for
        thousands of them iterate over `predict_each`, or let `predict_files` write pictures.

    Raises:
        FileNotFoundError: if a path does not exist.
        ImageError: if an image is unreadable or a folder has none; the message names it.
        ValueError: for a task the model does not have, or other arguments out of range.
    """
    if isinstance(x, (list, tuple)):
        items = [item for entry in x for item in _expand(entry)]
    elif _is_batch(x):
        items = _expand(x)
    else:
        items = [x]
    options = {"overlap": overlap, "batch_size": batch_size, "scales": scales, "flip": flip, "amp": amp}
    results = [result for _, result in predict_each(model, items, task, tile, **options)]
    return results if isinstance(x, (list, tuple)) or _is_batch(x) else results[0]


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
    on_error: Callable[[int, Exception], None] | None = None,
) -> Iterator[tuple[int, Result]]:
    """`predict` as a stream that holds at most one batch: yields (index, `Result`) in order.

    Args:
        items: single images, no folders.
        on_error: called with (index, error) for an image that cannot be read, which is then skipped; None raises.

    Arguments are checked at the call, before the first image is asked for.
    """
    task = check_task(model, task)
    window = tile_size(tile, overlap, model.data.size_divisor)
    if window and task != "semantic":
        raise ValueError(f"tile works for task 'semantic' only, not {task!r}: objects are not joined across windows")
    views = views_for(model, scales, flip)
    if not views.single and (window or task != "semantic"):
        what = "without tile" if window else f"for task 'semantic' only, not {task!r}"
        raise ValueError(f"scales and flip work {what}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected 1 or more")
    amp = resolve_amp(amp, *device_and_type(model))
    images = _load_each(items, len(model.data.mean), on_error)
    if window:
        return ((index, _predict_tiled(model, image, window, overlap, batch_size, amp)) for index, image in images)
    return _predict_batched(model, images, views, task, batch_size, amp)


def _load_each(
    items: Iterable[Any], in_chans: int, on_error: Callable[[int, Exception], None] | None
) -> Iterator[tuple[int, LoadedImage]]:
    for index, item in enumerate(items):
        try:
            image = load_image(item, in_chans)
        except (ImageError, FileNotFoundError) as error:
            if on_error is None:
                raise
            on_error(index, error)
        else:
            yield index, image


def _predict_batched(
    model: nn.Module, images: Iterable[tuple[int, LoadedImage]], views: Views, task: str, batch_size: int, amp: str
) -> Iterator[tuple[int, Result]]:
    """Runs images of equal padded sizes together, at most ``batch_size`` of them."""
    run_batch = _run_batch if views.single else _run_views
    waiting: list[tuple[int, LoadedImage, list[Tensor]]] = []
    size_of_batch = None
    for index, image in images:
        size = views.padded(model.data, tuple(image.pixels.shape[1:]))
        if waiting and size != size_of_batch:
            yield from run_batch(model, waiting, views, task, amp)
            waiting = []
        waiting.append((index, image, views.prepare(model.data, image.pixels)))
        size_of_batch = size
        if len(waiting) == batch_size:
            yield from run_batch(model, waiting, views, task, amp)
            waiting = []
    if waiting:
        yield from run_batch(model, waiting, views, task, amp)


def check_task(model: nn.Module, task: str | None) -> str:
    """The task to run; raises ValueError, listing the allowed ones, if the model does not have it."""
    spec = getattr(model, "spec", None)
    if task is None:
        return getattr(spec, "task", "semantic")
    allowed = TASKS if getattr(spec, "head", "maskformer") == "maskformer" else ("semantic",)
    if task not in allowed:
        whose = f"{spec.name} has" if spec is not None else "expected one of"
        raise ValueError(f"task {task!r}; {whose} {', '.join(allowed)}")
    return task


@contextmanager
def inference(model: nn.Module) -> Iterator[tuple[torch.device, torch.dtype]]:
    """Evaluation mode without autograd; gives the model's device and floating type, and restores every flag."""
    with _evaluation_mode(model), torch.inference_mode():
        yield device_and_type(model)


# Models that are predicted with: how many times at this moment, and which of their modules are to train again.
_PREDICTING: dict[nn.Module, tuple[int, list[nn.Module]]] = {}
_PREDICTING_LOCK = threading.Lock()


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    # Threads may share a model: were each to put back the flags that it found, the first to be ready would have the
    # others train its batch norms.
    with _PREDICTING_LOCK:
        count, training = _PREDICTING.get(model, (0, []))
        if not count:
            training = [module for module in model.modules() if module.training]
            model.eval()
        _PREDICTING[model] = count + 1, training
    try:
        yield
    finally:
        with _PREDICTING_LOCK:
            count, training = _PREDICTING.pop(model)
            if count > 1:
                _PREDICTING[model] = count - 1, training
            else:
                for module in training:
                    module.training = True


def device_and_type(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a model's parameters are, and their floating type."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return first.device, first.dtype


def raw_output(model: nn.Module, pixels: Sequence[Tensor], amp: str) -> Any:
    """What the network answers to pixels (C, h, w) of equal padded size, computed in ``amp``, a key of `AMP`.

    To be called inside `inference`.
    """
    device, dtype = device_and_type(model)
    x = network_input(model.data, pixels, device, dtype)
    with autocast(device, amp):
        return model(x)


def _is_batch(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.ndim == 4
    return isinstance(x, (str, Path)) and Path(x).is_dir()


def _expand(x: Any) -> list[Any]:
    """A folder -> its images, a batch -> its rows, anything else -> itself."""
    if not _is_batch(x):
        return [x]
    return list(x) if isinstance(x, Tensor) else list(list_images(x))


def _run_batch(
    model: nn.Module, entries: list[tuple[int, LoadedImage, list[Tensor]]], views: Views, task: str, amp: str
) -> Iterator[tuple[int, Result]]:
    shown = [parts[0] for _, _, parts in entries]
    with inference(model):
        output = raw_output(model, shown, amp)
        results = [
            (index, _to_result(model, image, one_output(output, n), tuple(shown[n].shape[1:]), task))
            for n, (index, image, _) in enumerate(entries)
        ]
    yield from results


def _run_views(
    model: nn.Module, entries: list[tuple[int, LoadedImage, list[Tensor]]], views: Views, task: str, amp: str
) -> Iterator[tuple[int, Result]]:
    results, are_logits = [], False
    with inference(model):

        def observed(pixels: Sequence[Tensor]) -> Any:
            nonlocal are_logits
            output = raw_output(model, pixels, amp)
            are_logits = isinstance(output, postprocess.SemanticOutput)
            return output

        merged = score_sources(model, observed, views, [parts for _, _, parts in entries])
        for (index, image, _), sources in zip(entries, merged, strict=True):
            bands = merged_bands(sources, tuple(image.pixels.shape[1:]))
            chosen = [postprocess.choose(scores, are_logits) for _, _, scores in bands]
            labels, shares = (torch.cat(parts) for parts in zip(*chosen, strict=True))
            results.append((index, _semantic_result(model, image, labels, shares)))
    yield from results


def one_output(output: Any, n: int) -> Any:
    """The n-th image of a batch's output, without the auxiliary outputs of training."""
    return type(output)(*(part[n : n + 1] for part in output if isinstance(part, Tensor)))


def _to_result(model: nn.Module, image: LoadedImage, output: Any, image_size: tuple[int, int], task: str) -> Result:
    sizes = (image_size, tuple(image.pixels.shape[1:]))
    stride, things = head_stride(model), model.data.things
    if task == "panoptic":
        return _panoptic_result(model, image, postprocess.panoptic(output, *sizes, things=things, stride=stride)[0])
    if task == "instance":
        return _instance_result(model, image, postprocess.instances(output, *sizes, things=things, stride=stride)[0])
    labels, scores = postprocess.semantic_labels(output, *sizes, stride=stride)
    return _semantic_result(model, image, labels[0], scores[0])


def _predict_tiled(
    model: nn.Module, image: LoadedImage, window: tuple[int, int], overlap: float, batch_size: int, amp: str
) -> Result:
    with inference(model):

        def scored(parts: list[Tensor]) -> tuple[Tensor, bool]:
            output = raw_output(model, parts, amp)
            size = tuple(parts[0].shape[1:])
            scores = postprocess.semantic_scores(output, size, size, stride=head_stride(model))
            return scores, isinstance(output, postprocess.SemanticOutput)

        labels, scores = predict_tiles(scored, image.pixels, window, overlap, batch_size, model.data.size_divisor)
        return _semantic_result(model, image, labels, scores)


def _semantic_result(model: nn.Module, image: LoadedImage, labels: Tensor, scores: Tensor) -> Result:
    result = _blank_result(model, image, "semantic")
    result.labels = labels.cpu().numpy().astype(result.labels.dtype)
    result.scores = scores.cpu().numpy()
    regions = describe_regions(result.labels, result.scores).items()
    for value, region in sorted(regions, key=lambda item: (-item[1]["area"], item[0])):
        head = {"id": len(result.segments) + 1, "category_id": value, "name": result.names[value]}
        result.segments.append({**head, "isthing": value in model.data.things, **region})
    return result


def _panoptic_result(model: nn.Module, image: LoadedImage, found: postprocess.Panoptic) -> Result:
    result = _blank_result(model, image, "panoptic")
    result.segment_map = found.ids.cpu().numpy()
    result.scores = found.scores.cpu().numpy()
    regions = describe_regions(result.segment_map)
    for segment in found.segments:
        result.segments.append(_segment_dict(segment, result.names, regions[segment.id]["bbox"]))
    _paint_labels(result)
    return result


def _instance_result(model: nn.Module, image: LoadedImage, found: postprocess.Instances) -> Result:
    result = _blank_result(model, image, "instance")
    result.masks = found.masks.cpu().numpy()
    result.segment_map = np.zeros(result.labels.shape, np.int32)
    for segment, mask in reversed(list(zip(found.segments, result.masks, strict=True))):
        result.segment_map[mask] = segment.id
        result.scores[mask] = segment.score
    for segment, mask in zip(found.segments, result.masks, strict=True):
        result.segments.append(_segment_dict(segment, result.names, describe_regions(mask)[1]["bbox"]))
    _paint_labels(result)
    return result


def _blank_result(model: nn.Module, image: LoadedImage, task: str) -> Result:
    """A result without segments: no class anywhere, score 0."""
    data, size = model.data, image.pixels.shape[1:]
    names = full_names(data.labels, model.num_classes)
    labels = np.full(size, data.ignore_index, label_dtype(len(names), data.ignore_index))
    return Result(
        image=_picture(image.pixels), labels=labels, scores=np.zeros(size, np.float32), segments=[], names=names,
        palette=data.palette or default_palette(len(names)), ignore_index=data.ignore_index, name=image.name, task=task,
    )  # fmt: skip


def _picture(pixels: Tensor) -> np.ndarray:
    """(C, H, W) of 0..255 -> (H, W, 3) uint8: the first three channels, or the first one as grey."""
    shown = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    if shown.dtype != torch.uint8:
        shown = shown.round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(shown.permute(1, 2, 0).numpy())


def _segment_dict(segment: postprocess.Segment, names: Sequence[str], bbox: list[int]) -> dict[str, Any]:
    return {
        "id": segment.id, "category_id": segment.category_id, "name": names[segment.category_id],
        "isthing": segment.isthing, "area": segment.area, "bbox": bbox, "score": round(segment.score, 6),
    }  # fmt: skip


def _paint_labels(result: Result) -> None:
    """Fills the class map from the segment map; pixels without a segment keep the ignore index."""
    table = np.full(len(result.segments) + 1, result.ignore_index, result.labels.dtype)
    for segment in result.segments:
        table[segment["id"]] = segment["category_id"]
    result.labels = table[result.segment_map]
