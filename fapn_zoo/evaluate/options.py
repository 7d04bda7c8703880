"""How a model is evaluated: the arguments that `evaluate`, `compare` and the command line share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fapn_zoo.runtime.precision import check_amp
from fapn_zoo.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class Options:
    """Raises ValueError naming a value that makes no sense.

    Attributes:
        split: which part of a source to open; only noted for an opened data set.
        task: a key of `fapn_zoo.tasks.TASKS`: "semantic"; for mask classification models also "panoptic" (PQ) and
            "instance" (AP of masks and of the boxes around them; needs the extra `coco`).
        batch_size: how many images of equal (resized and padded) size, or how many windows, are run together.
        device: where to run; None = where the model is.
        amp: "bf16" or "fp16" autocast, or "no": full precision. Scores are to be the same on every processor, so there
            is no "auto" here as in `predict`.
        limit: the first so many images only.
        progress: show a progress bar (main process only).
        scales: also other sizes, and the mean of their scores: "official" (the list of the model's paper), factors of
            the test size, or short sides in pixels. `fapn_zoo.predict.run` says what is averaged.
        flip: also mirrored, at every size.
        window, stride: sliding windows, (height, width) in pixels of the resized image or one number; the stride is
            two thirds of the window if not given. The scores of all windows over a pixel are averaged.
        class_map: how to score where model and data have other classes: see `fapn_zoo.evaluate.match_classes`.
        boundary: also mIoU in bands around true boundaries, Boundary IoU and boundary F-score.
        threads: that read images, ahead of the model where it leaves a core free; None = one per core, up to 4.
    """

    split: str = "test"
    task: str = "semantic"
    batch_size: int = 1
    device: str | torch.device | None = None
    amp: str = "no"
    limit: int | None = None
    progress: bool = True
    scales: str | Sequence[float] | None = None
    flip: bool = False
    window: int | Sequence[int] | None = None
    stride: int | Sequence[int] | None = None
    class_map: Any = None
    boundary: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be {' or '.join(TASKS)}, got {self.task!r}")
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"batch_size and limit must be at least 1, got {self.batch_size} and {self.limit}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        check_amp(self.amp)
