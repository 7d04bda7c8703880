"""The one loop from prepared images to answers: `predict`, `evaluate` and everything else that runs a network use it.

One image: prepared views -> network -> raw output -> answer of the task. Where there are several views of an image (or
windows of one), what is averaged is what MaskFormer's `SemanticSegmentorWithTTA` averages: the score maps of all
views, each already resized to the original image (and mirrored back). For per-pixel heads these are logits, not
probabilities; for mask classification the sums over queries of class probability times mask probability. Only the raw
outputs of the views are held (for windows: one row of windows); the mean is made a band of rows at a time.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import Output, covering
from fapn_zoo.postprocess.answers import Frame
from fapn_zoo.postprocess.decoders import decode, score_source, semantic_scores
from fapn_zoo.postprocess.semantic import Bands, Source, band_height, bands, best_of_bands
from fapn_zoo.predict.inputs import network_input, padded_size
from fapn_zoo.predict.views import Views
from fapn_zoo.predict.windows import Downwards, window_objects, window_scores
from fapn_zoo.runtime.device import AMP, autocast
from fapn_zoo.tasks.protocol import Task
from fapn_zoo.weights.finite import NotFinite, faults, faults_of_model, named_tensors, told
from fapn_zoo.zoo.spec import DataSpec


class Shown(NamedTuple):
    """One image for the network: its pixels (C, h, w) in every view, see `Views.prepare`, and (H, W) of the answer.

    `item` is whatever the caller knows it by; it comes back with the answer. `name` is for messages.
    """

    item: Any
    size: tuple[int, int]
    parts: list[Tensor]
    name: str = "an image"


Network = Callable[[Sequence[Tensor]], Output]  # pixels (C, h, w) of equal padded size, 0..255 -> raw output


class NotFiniteOutput(NotFinite):
    """There is no answer for the image at `place` of a batch; the message is `before`, what it is called, `after`."""

    def __init__(self, before: str, after: str, place: int = 0, image: str = "") -> None:
        super().__init__(f"{before}{image or f'image {place + 1} of the batch'}{after}")
        self.place, self.facts = place, (before, after, place)


@contextmanager
def naming(images: Sequence[str]) -> Iterator[None]:
    """Lets a `NotFiniteOutput` name its image. Of one image's windows each is that image."""
    try:
        yield
    except NotFiniteOutput as error:
        image = images[min(error.place, len(images) - 1)]
        raise NotFiniteOutput(*error.facts, image) from None


@dataclass(frozen=True)
class ModelNetwork:
    """Runs a model on prepared images, computing in `amp`, a key of `runtime.device.AMP`.

    Raises NotFiniteOutput for weights or an output that are NaN or infinite anywhere: no answer can be made of them.
    """

    model: nn.Module
    amp: str

    def __call__(self, pixels: Sequence[Tensor]) -> Output:
        name = self.model.spec.name
        # Not every NaN among the weights comes out: samples at a place that is NaN are 0, and so is 1 / infinity.
        if found := faults_of_model(self.model):
            raise NotFiniteOutput(f"{name}: no answer for ", f", since its weights are not finite: {told(found)}")
        device, dtype = device_and_type(self.model)
        x = network_input(self.model.data, pixels, device, dtype)
        sizes = torch.tensor([part.shape[1:] for part in pixels], device=device)
        with autocast(device, self.amp):
            output = self.model(x, sizes)
        if found := faults(named_tensors(output)):
            place = next((n for n in range(len(pixels)) if faults(named_tensors(output.image(n)))), 0)
            reason = f" is not finite ({told(found)}); {self._reason(dtype)}"
            raise NotFiniteOutput(f"{name}: the output for ", reason, place)
        return covering(output, tuple(x.shape[-2:]))

    def _reason(self, dtype: torch.dtype) -> str:
        if found := faults(self.model.state_dict().items()):
            return f"its weights hold {told(found)}"
        if dtype.itemsize < 4:
            kind = str(dtype).removeprefix("torch.")
            return f"its weights are finite, but {kind}, whose numbers end early: take model.float()"
        if AMP[self.amp] is not None:
            return f"its weights are finite; computing with amp={self.amp} may be why, try amp=no"
        return "its weights are finite, but too large to compute with"


def answers(
    network: ModelNetwork,
    data: DataSpec,
    task: Task,
    views: Views,
    images: Iterable[Shown],
    batch_size: int,
    **options: Any,
) -> Iterator[tuple[Any, Any]]:
    """Yields (item, answer) in order, holding at most one batch.

    Args:
        data: of the model: padding, classes and things.
        views: how the images were prepared. Several views are for tasks that average them (`Task.averages_views`),
            windows alone also for those that join objects (`Task.joins_windows`).
        images: those that follow each other with equal padded sizes share a batch.
        batch_size: images, or windows of one image, that enter the network at once.
        options: of `decode`.

    Raises NotFiniteOutput, which names model and image.
    """

    def run(batch: list[Shown]) -> list[Any]:
        if views.single:
            output = network([image.parts[0] for image in batch])
            frames = [Frame(tuple(image.parts[0].shape[1:]), image.size) for image in batch]
            return [decode(output.image(n), task.name, frame, data, **options) for n, frame in enumerate(frames)]
        if not task.averages_views:
            return [_joined_objects(network, data, task.name, views, image, batch_size, options) for image in batch]
        merged = score_sources(network, data, views, [image.parts for image in batch], batch_size)
        streams = [merged_bands(sources, image.size) for sources, image in zip(merged, batch, strict=True)]
        return [best_of_bands(b, s[0][0].are_logits, **options) for b, s in zip(streams, merged, strict=True)]

    limit = 1 if views.window is not None else batch_size
    for _, alike in itertools.groupby(images, lambda i: [padded_size(data, part.shape[1:]) for part in i.parts]):
        while batch := list(itertools.islice(alike, limit)):
            with inference(network.model), naming([image.name for image in batch]):
                found = run(batch)
            yield from zip([image.item for image in batch], found, strict=True)


def score_sources(
    network: Network, data: DataSpec, views: Views, images: Sequence[Sequence[Tensor]], batch_size: int = 1
) -> list[list[tuple[Source, bool]]]:
    """For every image its views: a source of score rows, and whether they are mirrored.

    The images are as `Views.prepare` makes them, their padded sizes equal; `batch_size` windows are run together. All
    but the first row of windows are only run when their rows are asked for.
    """
    found: list[list[tuple[Source, bool]]] = [[] for _ in images]
    for parts, mirrored in itertools.product(zip(*images, strict=True), (False, True) if views.flip else (False,)):
        shown = [part.flip(-1) for part in parts] if mirrored else parts
        if views.window is None:
            output = network(shown)
            sources = [score_source(output.image(n), tuple(part.shape[1:])) for n, part in enumerate(shown)]
        else:
            sources = [_window_source(network, data, part, views, batch_size) for part in shown]
        for image, source in zip(found, sources, strict=True):
            image.append((source, mirrored))
    return found


def merged_bands(sources: Sequence[tuple[Source, bool]], out_size: tuple[int, int]) -> Bands:
    """Yields (first, last, mean scores (K, rows, w)) over the views of one image, from the top to the bottom."""
    step = min(band_height(source, out_size) for source, _ in sources)
    streams = [bands(source, out_size, step) for source, _ in sources]
    for first in range(0, out_size[0], step):
        total = None
        for stream, (_, mirrored) in zip(streams, sources, strict=True):
            _, last, scores = next(stream)
            scores = scores.flip(-1) if mirrored else scores
            total = scores if total is None else total + scores
        yield first, last, total / len(sources) if len(sources) > 1 else total


def _window_source(network: Network, data: DataSpec, pixels: Tensor, views: Views, batch_size: int) -> Source:
    size, are_logits = tuple(pixels.shape[1:]), []

    def run(parts: list[Tensor]) -> list[Tensor]:
        inside, output = tuple(parts[0].shape[1:]), network(parts)
        are_logits.append(score_source(output.image(0), inside).are_logits)
        return [semantic_scores(output.image(n), Frame(inside, inside)) for n in range(len(parts))]

    rows = Downwards(window_scores(run, pixels, *views.spans(data, size), batch_size))  # runs the first row of windows
    return Source(rows, len(rows.held), size, rows.held.device, are_logits=are_logits[0])


def _joined_objects(
    network: Network, data: DataSpec, task: str, views: Views, image: Shown, batch_size: int, options: dict[str, Any]
) -> Any:
    """The answer for an image of which one view is prepared, in windows, of the size of that view."""

    def run(parts: list[Tensor]) -> list[Any]:
        inside, output = tuple(parts[0].shape[1:]), network(parts)
        return [decode(output.image(n), task, Frame(inside, inside), data, **options) for n in range(len(parts))]

    (pixels,) = image.parts
    return window_objects(run, pixels, *views.spans(data, tuple(pixels.shape[1:])), batch_size)


def device_and_type(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a model's parameters are, and their floating type."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return first.device, first.dtype


# Models that are predicted with: how many times at this moment, and which of their modules are to train again.
_PREDICTING: dict[nn.Module, tuple[int, list[nn.Module]]] = {}
_PREDICTING_LOCK = threading.Lock()


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without autograd; restores every flag."""
    # Threads may share a model: were each to put back the flags that it found, the first to be ready would have the
    # others train its batch norms.
    with _PREDICTING_LOCK:
        count, training = _PREDICTING.get(model, (0, []))
        if not count:
            training = [module for module in model.modules() if module.training]
            model.eval()
        _PREDICTING[model] = count + 1, training
    try:
        with torch.inference_mode():
            yield
    finally:
        with _PREDICTING_LOCK:
            count, training = _PREDICTING.pop(model)
            if count > 1:
                _PREDICTING[model] = count - 1, training
            else:
                for module in training:
                    module.training = True
