"""Scores of a model on a data set: the way of `predict` over every image, exact counts, one report.

doors.py has the two doors; measure.py is the loop behind both. state.py says how a run goes on; report.py writes it
down. What is counted is the task's (`fapn_zoo.tasks`).
"""

from __future__ import annotations

from fapn_zoo.data.classes import check_classes, match_classes
from fapn_zoo.evaluate.doors import compare, evaluate, render_comparison
from fapn_zoo.evaluate.measure import Stopped
from fapn_zoo.evaluate.report import CSV_COLUMNS, render, write_report
from fapn_zoo.runtime.processes import on_cpu
from fapn_zoo.runtime.provenance import git_commit, versions

__all__ = [
    "CSV_COLUMNS",
    "Stopped",
    "check_classes",
    "compare",
    "evaluate",
    "git_commit",
    "match_classes",
    "on_cpu",
    "render",
    "render_comparison",
    "versions",
    "write_report",
]
