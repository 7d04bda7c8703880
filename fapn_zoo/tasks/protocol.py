"""What a task is: all that differs between segmenting classes, objects and everything at once.

A task is handed outputs and samples; it runs no network and opens no data. `fapn_zoo.tasks.TASKS` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fapn_zoo.data.classes import Classes
from fapn_zoo.data.images import LoadedImage
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import Dataset, Sample
from fapn_zoo.metrics.accumulator import Tally
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.runtime.files import read_json
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec


class Columns(NamedTuple):
    """Names of a task's scores, as keys of a report -> as they are printed.

    Attributes:
        means: over classes; the first is the main score.
        by_class: of every class; the first is what the main score is the mean of.
        table: those that have a column in tables of results.
        near: scores near boundaries, which are only there when asked for; near_by_class: those of every class that
            are printed.
        truth, unit: keys of a class's row whose sum is how much of it is in the data, and what that counts.
    """

    means: Mapping[str, str]
    by_class: Mapping[str, str]
    table: Sequence[str]
    near: Mapping[str, str] = {}
    near_by_class: Mapping[str, str] = {}
    truth: Sequence[str] = ()
    unit: str = "segment"

    @property
    def main(self) -> str:
        return next(iter(self.means))


# Of the tasks of this package.
COLUMNS = {task: Columns(**table) for task, table in read_json(Path(__file__).with_name("columns.json")).items()}


@dataclass(frozen=True)
class Measure:
    """One score per class that models are compared by, made of sums over images.

    Attributes:
        name: a key of the report.
        kind: "iou" (rows: hits, truth, predicted) or "mean" (rows: sum, number).
        rows: the rows (R, K) int64 of an image's tally.
    """

    name: str
    kind: str
    rows: Callable[[Any], np.ndarray]

    @property
    def height(self) -> int:
        """R."""
        return 3 if self.kind == "iou" else 2

    def of(self, sums: np.ndarray) -> np.ndarray:
        """Sums (..., R, K) -> scores (..., K), NaN where undefined."""
        rows = np.moveaxis(sums, -2, 0)
        above, below = (rows[0], rows[1] + rows[2] - rows[0]) if self.kind == "iou" else (rows[0], rows[1])
        return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


class Scorer(Protocol):
    """Counts answers against the truth of one data set.

    Attributes:
        names: of the data set's classes, K of them.
        data: what answers are decoded with: the model's, with the things that count here.
        rank_by: what `image_score` is called in reports.
        measures: what two models are compared by; none where scores are no sums over images.
    """

    names: tuple[str, ...]
    data: DataSpec
    rank_by: str
    measures: tuple[Measure, ...]

    def empty(self) -> Tally:
        """A tally of no image."""

    def count(self, answer: Any, sample: Sample, place: int) -> Tally:
        """The tally of one image, which stands at `place` in the data set.

        ValueError, naming the sample, for an answer or a truth that cannot be counted.
        """

    def scores(self, tally: Tally) -> dict[str, Any]:
        """The task's part of the report, from the tally of all images: plain JSON values."""

    def image_score(self, tally: Tally) -> float | None:
        """One number 0..1 that ranks an image by its tally; None where nothing can be scored."""

    def confusion(self, tally: Tally) -> np.ndarray | None:
        """Pixel counts of (true, predicted) class; None where a pixel may be of several."""

    def maps(self, answer: Any, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Class maps (H, W) of an answer and of its truth, in ids of the data, to be drawn."""


class Task(Protocol):
    """Everything that differs between tasks, but what its answer is: `fapn_zoo.postprocess.decode`.

    Attributes:
        name: its key in `TASKS`.
        needs: what a sample must hold to train and score it: of "labels", "segments", "masks", "boxes".
        averages_views: whether an image may be shown several times, or in windows, and scores be averaged.
        joins_windows: whether an image may be shown in windows, and their objects be joined.
        scored: options of `decode` under which it computes what is scored, and no more.
        columns: names of its scores.
    """

    name: str
    needs: frozenset[str]
    averages_views: bool
    joins_windows: bool
    scored: Mapping[str, Any]
    columns: Columns

    def result(self, answer: Any, image: LoadedImage, data: DataSpec) -> Result:
        """The answer as users get it; `data` has names and colours for every class."""

    def targets(self, sample: Sample, labels: LabelMap) -> Targets:
        """The truth of one sample (N = 1), as the loss takes it."""

    def scorer(self, dataset: Dataset, classes: Classes, data: DataSpec, *, boundary: bool = False) -> Scorer:
        """Counts answers of a model with these `data` on this data set, `boundary`: also near boundaries.

        Raises ValueError for what cannot be scored.
        """


def plain(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
