"""The tasks of the harness: how their data are opened, and what counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from fapn_zoo.data.classes import Classes
from fapn_zoo.data.panoptic_sources import open_panoptic
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.predict.views import Views
from fapn_zoo.tasks.objects import InstanceTask, PanopticTask
from fapn_zoo.tasks.semantic import SemanticTask, Task

Maker = Callable[[nn.Module, Any, Classes, Views, bool], Task]


class TaskKind(NamedTuple):
    """``open`` makes a data set of a source and a split; ``make`` a task of model, data set, classes, views, boundary.

    Both raise ValueError before any image is read where they cannot do what is asked.
    """

    open: Callable[[str | os.PathLike, str], Any]
    make: Maker


def _semantic(model: nn.Module, dataset: Any, classes: Classes, views: Views, boundary: bool) -> Task:
    return SemanticTask(dataset.labels, classes, boundary)


TASKS = {
    "semantic": TaskKind(open_dataset, _semantic),
    "panoptic": TaskKind(open_panoptic, PanopticTask),
    "instance": TaskKind(open_panoptic, InstanceTask),
}
