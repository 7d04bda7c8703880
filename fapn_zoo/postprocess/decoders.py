"""Which function turns which raw output into which task's answer: two tables, and the doors to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fapn_zoo.modules.heads.outputs import (
    DetectionOutput,
    InstanceOutput,
    MaskFormerOutput,
    Output,
    PanopticFCNOutput,
    PanopticFPNOutput,
    PointRendOutput,
    SemanticOutput,
)
from fapn_zoo.postprocess import panoptic_fcn
from fapn_zoo.postprocess.answers import ClassMap, Frame
from fapn_zoo.postprocess.boxes import boxed_instances, detections
from fapn_zoo.postprocess.masks import instances, panoptic
from fapn_zoo.postprocess.merge import of_things, panoptic_of_parts
from fapn_zoo.postprocess.semantic import Source, bands, class_map, logits_source, masks_source
from fapn_zoo.zoo.spec import DataSpec

Decoder = Callable[..., Any]  # (output of one image, Frame, DataSpec, **options) -> an answer


def semantic(output: Output, frame: Frame, data: DataSpec, *, shares: bool = True) -> ClassMap:
    """The best class per pixel, with its probability where `shares` are wanted."""
    return class_map(score_source(output, frame.inside), frame.original, shares)


# Class scores that views of an image are averaged by: (output of one image, its size) -> a `Source`.
SOURCES: dict[type, Callable[[Any, tuple[int, int]], Source]] = {
    SemanticOutput: logits_source,
    MaskFormerOutput: masks_source,
    PointRendOutput: logits_source,
}
DECODERS: dict[type, Mapping[str, Decoder]] = {
    SemanticOutput: {"semantic": semantic},
    MaskFormerOutput: {"semantic": semantic, "panoptic": panoptic, "instance": instances},
    PointRendOutput: {"semantic": semantic},  # of training; predicting, the head gives a SemanticOutput
    DetectionOutput: {"detection": detections},
    InstanceOutput: {"instance": boxed_instances, "detection": detections},
    # no "semantic": things are one class of the map
    PanopticFPNOutput: {
        "panoptic": panoptic_of_parts,
        "instance": of_things(boxed_instances),
        "detection": of_things(detections),
    },
    PanopticFCNOutput: {"panoptic": panoptic_fcn.panoptic, "instance": panoptic_fcn.instances},
}


def register_output(
    kind: type, decoders: Mapping[str, Decoder], source: Callable[[Any, tuple[int, int]], Source] | None = None
) -> None:
    """Makes an output of the user's own known to this process: its decoder by task, and its class scores if it has any.

    Raises ValueError where it is known already.
    """
    if kind in DECODERS:
        raise ValueError(f"{kind.__name__} has decoders already")
    DECODERS[kind] = dict(decoders)
    if source is not None:
        SOURCES[kind] = source


def decode(output: Output, task: str, frame: Frame, data: DataSpec, **options: Any) -> Any:
    """The answer for one image (N = 1), by the decoder that `DECODERS` names for the output and the task.

    `data` are classes and things of the model, `options` the decoder's. Raises ValueError where the output does not
    answer the task, or its maps do not cover the image.
    """
    decoders = _entry(DECODERS, output)
    if task not in decoders:
        raise ValueError(f"{type(output).__name__} answers {', '.join(decoders)}, not {task!r}")
    return decoders[task](output, frame, data, **options)


def score_source(output: Output, size: tuple[int, int]) -> Source:
    """The class scores of one image (N = 1), made when they are asked for; `size` is (H, W) without the padding."""
    return _entry(SOURCES, output)(output, size)


def semantic_scores(output: Output, frame: Frame) -> Tensor:
    """Class scores of one image (N = 1), (K, h, w) float32 of the original size.

    Logits of per-pixel heads, or the sums of `masks_source`. The one function here whose memory grows with K x h x w.
    """
    return torch.cat([scores for _, _, scores in bands(score_source(output, frame.inside), frame.original)], dim=1)


def _entry(table: Mapping[type, Any], output: Output) -> Any:
    if type(output) not in table:
        known = ", ".join(kind.__name__ for kind in table)
        raise ValueError(f"cannot read an output of type {type(output).__name__}; expected {known}")
    return table[type(output)]
