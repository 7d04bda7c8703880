"""What a task is: one file each, in one order; `TASKS` is the only list of their names."""

from __future__ import annotations

from fapn_zoo.tasks.detection import DetectionTask
from fapn_zoo.tasks.instance import InstanceTask
from fapn_zoo.tasks.panoptic import PanopticTask
from fapn_zoo.tasks.protocol import Task
from fapn_zoo.tasks.semantic import SemanticTask
from fapn_zoo.zoo.parts import HEADS
from fapn_zoo.zoo.spec import ModelSpec

__all__ = ["TASKS", "averaging_tasks", "register_task", "task_for"]

TASKS: dict[str, Task] = {task.name: task for task in (SemanticTask(), PanopticTask(), InstanceTask(), DetectionTask())}


def register_task(task: Task) -> None:
    """Adds a task of the user's own to this process. Raises ValueError where its name is taken."""
    if task.name in TASKS:
        raise ValueError(f"task {task.name!r} exists already")
    TASKS[task.name] = task


def task_for(spec: ModelSpec, name: str | None = None) -> Task:
    """The task of this name, or the model's own. ValueError where the model's head does not answer it."""
    allowed = [task for task in HEADS[spec.head].tasks if task in TASKS]
    name = spec.task if name is None else name
    if name not in allowed:
        raise ValueError(f"task {name!r}; {spec.name} has {', '.join(allowed)}")
    return TASKS[name]


def averaging_tasks(windows: bool = False) -> str:
    """Words for an error: the tasks that take several views of an image, or that take windows of it."""
    fitting = (task for task in TASKS.values() if task.averages_views or (windows and task.joins_windows))
    return "task " + " or ".join(repr(task.name) for task in fitting)
